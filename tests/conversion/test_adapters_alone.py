"""Adapters that are saved without their base model."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from conditioned_attention import apply_conditioning, conditioning, precondition, restore
from tests.models import build, tokens

CANNOT = "will not say that its base model is conditioned"


def lora(**options):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens()).logits


@pytest.fixture
def base(tmp_path):
    build("llama").save_pretrained(tmp_path / "base")
    return lambda: type(build("llama")).from_pretrained(tmp_path / "base").eval()


ORDERS = {
    "converted, then adapted": lambda base: get_peft_model(_converted(base()), lora(task_type="CAUSAL_LM")),
    "adapted, then converted": lambda base: _converted(get_peft_model(base(), lora(task_type="CAUSAL_LM"))),
}


def _converted(model):
    precondition(model, eps=1e-4, include="*layers.1.*")
    return model


@pytest.mark.parametrize("order", ORDERS)
def test_the_config_of_an_adapter_remembers(order, base, tmp_path):
    model = ORDERS[order](base).eval()
    model.save_pretrained(tmp_path / "adapter")
    for loaded in (
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval(),
        PeftModel.from_pretrained(base(), tmp_path / "adapter").eval(),
    ):
        apply_conditioning(loaded)
        assert torch.equal(logits(loaded), logits(model))
        assert conditioning(loaded.get_base_model()) == conditioning(model.get_base_model())
        restore(loaded)
        assert loaded.peft_config["default"].auto_mapping is None
        assert not torch.allclose(logits(loaded), logits(model), rtol=1e-3)
    fresh = base()
    apply_conditioning(fresh, tmp_path / "adapter")
    assert conditioning(fresh) == conditioning(model.get_base_model())


def test_an_adapter_of_transformers_own_remembers(base, tmp_path):
    model = base()
    model.add_adapter(lora())
    precondition(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = base()
    loaded.load_adapter(str(tmp_path / "adapter"))
    apply_conditioning(loaded)
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_prompts_remember(base, tmp_path):
    model = get_peft_model(base(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    precondition(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    apply_conditioning(loaded)
    assert torch.equal(logits(loaded), logits(model))


def test_a_warning_where_peft_does_not_let_it(base, tmp_path):
    model = get_peft_model(base(), lora())
    with pytest.warns(UserWarning, match=CANNOT):
        precondition(model)
    later = get_peft_model(_converted(base()), lora())
    with pytest.warns(UserWarning, match=CANNOT):
        later.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path).eval()
    with pytest.raises(ValueError, match="no config in the model, nor that of an adapter"):
        apply_conditioning(loaded)
    apply_conditioning(loaded, conditioning(later))
    assert torch.equal(logits(loaded), logits(later.eval()))


def test_adapters_of_a_timm_model(recwarn):
    model = get_peft_model(build("timm_vit"), LoraConfig(r=2, target_modules=["qkv"], task_type="FEATURE_EXTRACTION"))
    precondition(model)
    assert not [w for w in recwarn if CANNOT in str(w.message)]
    record = model.peft_config["default"].auto_mapping["conditioned_attention"]
    assert record == conditioning(model.get_base_model())
