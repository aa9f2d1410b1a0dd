"""What a checkpoint remembers."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertForMaskedLM, BertModel, BloomConfig, BloomModel

from conditioned_attention import apply_conditioning, conditioning, precondition, restore
from conditioned_attention.controls import HeadRMSNorm
from conditioned_attention.conversion import convert
from tests.models import build, output


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "clip", "vit"])
def test_hugging_face_checkpoint_remembers(name, tmp_path):
    model = build(name)
    precondition(model, eps=1e-4)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with pytest.raises(RuntimeError, match=r"call conditioned_attention\.apply_conditioning\(model\) before"):
        output(loaded)
    apply_conditioning(loaded)
    assert (output(loaded) == output(model)).all()
    assert conditioning(loaded) == conditioning(model)
    restore(loaded)
    plain = type(model).from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert (output(loaded) == output(plain)).all()
    assert not torch.allclose(output(plain), output(model), rtol=1e-3)
    loaded.save_pretrained(tmp_path / "plain")
    assert "conditioned_attention" not in (tmp_path / "plain" / "config.json").read_text()
    again = type(model).from_pretrained(tmp_path / "plain").eval()
    assert (output(again) == output(plain)).all()


def test_trained_weights_are_warned_of(tmp_path, recwarn):
    model = build("bert")
    precondition(model)
    restore(model)
    assert not [w for w in recwarn if "trained with C" in str(w.message)]
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match=r"does not say that it was trained with C; if it was not, .*restore\(model\) takes C away"
    ):
        precondition(loaded)
    loaded.save_pretrained(tmp_path / "conditioned")
    recwarn.clear()
    apply_conditioning(type(model).from_pretrained(tmp_path / "conditioned"))
    precondition(type(model)(loaded.config.from_pretrained(tmp_path)))  # its shape alone
    assert not [w for w in recwarn if "trained with C" in str(w.message)]


# The library may be imported before transformers or after it; without it a checkpoint is refused by its name.
OURS_FIRST = "import conditioned_attention; from transformers import AutoModelForCausalLM"
OURS_LAST = """
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(folder)
except ValueError as error:
    print(error)
import conditioned_attention
"""
UNKNOWN = 'attn_implementation="conditioned_attention"` is not supported'


@pytest.mark.slow
@pytest.mark.parametrize("imports", [OURS_FIRST, pytest.param(OURS_LAST, marks=pytest.mark.slow)])
def test_in_a_new_process_a_checkpoint_says_what_to_do(imports, tmp_path):
    model = build("llama")
    precondition(model)
    model.save_pretrained(tmp_path)
    code = f"""
folder = {str(tmp_path)!r}
import torch
{imports}
model = AutoModelForCausalLM.from_pretrained(folder)
try:
    model(torch.tensor([[3, 4]]))
except RuntimeError as error:
    print(error)
conditioned_attention.apply_conditioning(model)
torch.save(model(torch.tensor([[3, 4]])).logits, {str(tmp_path / "logits.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "call conditioned_attention.apply_conditioning(model) before" in done.stdout
    assert (UNKNOWN in done.stdout) == (imports == OURS_LAST)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(torch.tensor([[3, 4]])).logits)


def test_an_error_leaves_a_loaded_checkpoint_as_it_was(tmp_path):
    model = build("clip")
    precondition(model, include="text_model.*")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    wrong = {"format": 1, "transforms": [{"kind": "row_norm", "modules": ["nothing"]}]}
    with pytest.raises(ValueError, match="has no attention module 'nothing'"):
        apply_conditioning(loaded, wrong)
    with pytest.raises(
        ValueError, match=r"trained with conditioned attention: call apply_conditioning\(model\) to go on"
    ):
        precondition(loaded)
    with pytest.raises(RuntimeError, match="apply_conditioning"):
        output(loaded)
    apply_conditioning(loaded)
    assert loaded.config.vision_config._attn_implementation == "sdpa"
    assert (output(loaded) == output(model)).all()


def test_base_model_of_a_checkpoint_with_a_head(tmp_path):
    model = build("bert")
    precondition(model)
    model.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path)
    apply_conditioning(loaded)
    assert [e["modules"] for e in conditioning(loaded)["transforms"]] == [
        ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"]
    ]


def test_a_wrapper_around_a_hugging_face_model(tmp_path):
    wrapper = nn.ModuleDict({"backbone": build("vit")})
    precondition(wrapper)
    wrapper["backbone"].save_pretrained(tmp_path)
    loaded = type(wrapper["backbone"]).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert (output(loaded) == output(wrapper["backbone"])).all()


def test_plain_state_dict_with_the_data_beside_it():
    model, loaded = build("timm_vit"), build("timm_vit")
    precondition(model, include="blocks.0.*", gradient="through")
    convert(model, HeadRMSNorm(), include="blocks.1.*")
    data = json.loads(json.dumps(conditioning(model)))
    assert [entry["kind"] for entry in data["transforms"]] == ["row_norm", "head_rmsnorm"]
    apply_conditioning(loaded, data)
    assert (output(loaded) == output(model)).all()
    apply_conditioning(loaded, data)  # again: nothing to do
    restore(loaded)
    assert conditioning(loaded) == {"format": 1, "transforms": []}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "no config in the model, nor that of an adapter"),
        ({"format": 2, "transforms": []}, "format 1"),
        ({"format": 1, "transforms": ["row_norm"]}, "format 1"),
        ({"format": 1, "transforms": [{"kind": "row_norm"}]}, "format 1"),
        ({"format": 1, "transforms": [{"kind": "row_norm", "modules": "blocks"}]}, "format 1"),
        ({"format": 1, "transforms": [{"kind": "head_rmsnorm", "eps": -1.0, "modules": []}]}, "eps must be positive"),
        (
            {
                "format": 1,
                "transforms": [
                    {"kind": "row_norm", "modules": ["blocks.0.attn"]},
                    {"kind": "head_rmsnorm", "modules": ["blocks.0.attn"]},
                ],
            },
            "already converted",
        ),
        ({"format": 1, "transforms": [{"kind": "magic", "modules": []}]}, "kind='magic' is unknown"),
        ({"format": 1, "transforms": [{"kind": "row_norm", "gain": 1, "modules": []}]}, "options of 'row_norm'"),
        ({"format": 1, "transforms": [{"kind": "row_norm", "modules": ["blocks.9.attn"]}]}, "'blocks.9.attn'"),
    ],
)
def test_wrong_data(data, words):
    with pytest.raises(ValueError, match=words):
        apply_conditioning(build("timm_vit"), data)


def test_data_of_another_type():
    with pytest.raises(TypeError, match=r"data must be what conditioning.* or a path, got list"):
        apply_conditioning(build("timm_vit"), [])


def test_a_record_says_all_that_is_conditioned():
    model, other = build("timm_vit"), build("timm_vit")
    precondition(model)
    precondition(other, include="blocks.1.*")
    for record in (conditioning(build("timm_vit")), conditioning(other)):
        with pytest.raises(ValueError, match=r"blocks\.0\.attn is already converted"):
            apply_conditioning(model, record)


def test_models_that_ask_for_masks_only_raise_as_well(tmp_path):
    sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}
    model = BloomModel(BloomConfig(**sizes)).eval()
    precondition(model)
    model.save_pretrained(tmp_path)
    loaded = BloomModel.from_pretrained(tmp_path).eval()
    with pytest.raises(RuntimeError, match="apply_conditioning"):
        loaded(torch.tensor([[3, 4, 5]]))
    apply_conditioning(loaded)
    ids = torch.tensor([[3, 4, 5]])
    assert (loaded(ids)[0] == model(ids)[0]).all()


def test_a_conflict_changes_nothing():
    model, other = build("timm_vit"), build("timm_vit")
    precondition(model)
    precondition(other, include="blocks.1.*", eps=1e-3)
    before = output(other)
    with pytest.raises(ValueError, match="already converted"):
        apply_conditioning(other, conditioning(model))
    assert (output(other) == before).all()


def test_a_compiled_model_is_remembered_under_its_own_names(tmp_path):
    compiled = torch.compile(build("bert"), backend="aot_eager")
    precondition(compiled)
    compiled.save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert (output(loaded) == output(compiled._orig_mod)).all()


def test_one_tower_of_a_model(tmp_path):
    """The inner model's own config remembers; the outer model finds it there."""
    model = build("clip")
    precondition(model.text_model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert len(conditioning(loaded)["transforms"][0]["modules"]) == 2
    assert (output(loaded) == output(model)).all()


def saved(model, path):
    """Through a file, as weights alone."""
    safetensors.torch.save_file(model.state_dict(), path)
    return safetensors.torch.load_file(path)


@pytest.mark.parametrize("name", ["timm_vit", "torch_encoder"])
def test_guard(name, tmp_path):
    plain, model = build(name), build(name)
    keys = list(plain.state_dict())
    precondition(model, guard=True, eps=1e-5)
    added = [key for key in model.state_dict() if key not in keys]
    assert len(added) == 2
    assert all("call_apply_conditioning_before_load_state_dict" in key for key in added)
    state = saved(model, tmp_path / "model.safetensors")

    with pytest.raises(RuntimeError, match=r"Unexpected key(.|\n)*call_apply_conditioning_before_load_state_dict"):
        plain.load_state_dict(state)
    apply_conditioning(plain, state)
    plain.load_state_dict(state)
    assert (output(plain) == output(model)).all()
    assert conditioning(plain) == conditioning(model)

    for strict in (True, False):
        with pytest.raises(RuntimeError, match="If it comes from a plain model: load it before precondition"):
            model.load_state_dict(build(name).state_dict(), strict=strict)
    other = build(name)
    precondition(other, guard=True, eps=1e-4)  # a record of the same length
    with pytest.raises(RuntimeError, match=r"conditioned differently(.|\n)*'eps': 1e-05"):
        other.load_state_dict(state)

    restore(model)
    assert list(model.state_dict()) == keys
    model.load_state_dict(build(name).state_dict())
    precondition(model)
    assert list(model.state_dict()) == keys, "a guard comes only when asked for"


def test_guard_follows_later_changes(tmp_path):
    model = build("timm_vit")
    precondition(model, include="blocks.0.*", guard=True)
    precondition(model, include="blocks.1.*", gradient="through")
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    twin.register_load_state_dict_pre_hook(lambda *args: None)  # does not push ours out
    twin.load_state_dict(saved(model, tmp_path / "model.safetensors"))
    with pytest.raises(RuntimeError, match="does not say that it was conditioned"):
        twin.load_state_dict(build("timm_vit").state_dict())
    loaded = build("timm_vit")
    apply_conditioning(loaded, saved(model, tmp_path / "model.safetensors"))
    assert conditioning(loaded) == conditioning(model)
    with precondition(build("timm_vit"), guard=True) as report:
        assert len(report.converted) == 2


def test_guard_inside_of_wrappers(tmp_path):
    """It stands on the model itself, and is found below the names that wrappers give."""
    model = nn.ModuleDict({"backbone": build("timm_vit")})
    precondition(torch.compile(model["backbone"], backend="eager"), guard=True)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    assert any(key.startswith("module.backbone.blocks.1.attn.conditioned_attention__") for key in state)
    loaded = nn.ModuleDict({"backbone": build("timm_vit")})
    apply_conditioning(loaded, state)
    loaded.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    assert conditioning(loaded) == conditioning(model)
    with pytest.raises(ValueError, match=r"no attention module 'module\.backbone\.blocks\.0\.attn'"):
        apply_conditioning(build("timm_vit"), state)
    with pytest.raises(ValueError, match=r"nor the state_dict of a model that was converted with guard=True"):
        apply_conditioning(build("timm_vit"), build("timm_vit").state_dict())


def test_a_state_dict_with_one_record_that_does_not_fit_changes_nothing():
    parts = nn.ModuleDict({"a": build("timm_vit"), "b": build("timm_vit")})
    for part in parts.values():
        precondition(part, guard=True)
    other = nn.ModuleDict({"a": build("timm_vit"), "b": build("torch_encoder")})
    with pytest.raises(ValueError, match=r"has no attention module 'b\.blocks\.0\.attn'"):
        apply_conditioning(other, parts.state_dict())
    assert conditioning(other)["transforms"] == []
    assert not any("conditioned_attention" in key for key in other.state_dict())


def test_plain_checkpoints_and_conditioned_ones_have_the_same_keys(tmp_path):
    """Without a guard: strict both ways, and a plain checkpoint may be converted later."""
    plain, model = build("bert"), build("bert")
    precondition(model)
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    plain.save_pretrained(tmp_path)
    loaded = type(plain).from_pretrained(tmp_path).eval()
    precondition(loaded)
    assert (output(loaded) == output(model)).all()


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_wrapper_of_peft_does_not_enter_the_record(wrapped_first, tmp_path):
    """It shows the config of the model inside as its own; the record speaks of the model that is saved and loaded."""
    model = build("llama")
    options = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    if wrapped_first:
        wrapper = get_peft_model(model, options)
        precondition(wrapper)
    else:
        precondition(model)
        wrapper = get_peft_model(model, options)
    merged = wrapper.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = type(merged).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert (output(loaded) == output(merged)).all()
    again = get_peft_model(type(merged).from_pretrained(tmp_path), options)
    apply_conditioning(again)
    assert conditioning(again.get_base_model()) == conditioning(merged)


def test_not_a_module():
    for function in (conditioning, apply_conditioning, restore):
        with pytest.raises(TypeError, match="model must be a torch"):
            function(3)
