"""A model that was changed after its conversion: records say what is true when they are asked for."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel
from transformers import LlamaConfig, LlamaForCausalLM

from conditioned_attention import (
    apply_conditioning,
    conditioning,
    precondition,
    register_attention,
    restore,
    spectral_condition,
)
from tests.conversion.survivors import Bare, Block
from tests.models import build, output, timm_vit, tokens


def llama(layers):
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model


def vit(depth):
    torch.manual_seed(3)
    return (
        timm_vit()
        .__class__(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=depth, num_heads=4)
        .eval()
    )


# what is done to the layers after conversion
SURGERY = {
    "the first dropped": lambda layers: layers[1:],
    "the last dropped": lambda layers: layers[:-1],
    "doubled, copies": lambda layers: [copy.deepcopy(layers[i]) for i in (0, 1, 2, 0, 1, 2)],
    "doubled, the same": lambda layers: [layers[i] for i in (0, 1, 2, 0, 1, 2)],
    "turned around": lambda layers: layers[::-1],
    "one put in": lambda layers: [layers[0], copy.deepcopy(layers[2]), *layers[1:]],
}


def operate(model, how, layers):
    changed = SURGERY[how]([*layers])
    for index, layer in enumerate(changed):
        if hasattr(layer, "self_attn"):
            layer.self_attn.layer_idx = index
    return changed


@pytest.mark.one_in(3)
@pytest.mark.parametrize("include", [None, "*layers.1.*", "*layers.2.*"])
@pytest.mark.parametrize("how", [how for how in SURGERY if how != "doubled, the same"])  # which transformers refuses
def test_layers_of_a_hugging_face_model(how, include, tmp_path):
    model = llama(3)
    precondition(model, include=include)
    layers = operate(model, how, model.model.layers)
    model.model.layers, model.config.num_hidden_layers = nn.ModuleList(layers), len(layers)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    if conditioning(model)["transforms"]:
        apply_conditioning(loaded)
    ids, once = tokens(), {"use_cache": False}  # a layer that stands twice has one place in a cache
    assert torch.equal(loaded(ids, **once).logits, model(ids, **once).logits)
    assert conditioning(loaded) == conditioning(model)


@pytest.mark.one_in(9)
@pytest.mark.parametrize("change", [precondition, lambda model, **names: spectral_condition(model, 0.5, **names)])
@pytest.mark.parametrize("include", [None, "blocks.1.*", "blocks.2.*"])
@pytest.mark.parametrize("how", SURGERY)
def test_layers_of_a_guarded_model(how, include, change):
    model = vit(3)
    precondition(model, include="blocks.0.*", guard=True)
    change(model, include=include)
    model.blocks = nn.Sequential(*operate(model, how, model.blocks))
    state, loaded = model.state_dict(), vit(len(model.blocks))
    apply_conditioning(loaded, state)
    loaded.load_state_dict(state)
    assert torch.equal(output(loaded), output(model))
    assert conditioning(loaded) == conditioning(model)
    model.load_state_dict(state)


def test_a_block_that_was_moved_takes_its_guard_with_it():
    model, other = vit(2), vit(2)
    precondition(model, guard=True)
    other.blocks[1] = model.blocks[0]
    plain = vit(2)
    with pytest.raises(RuntimeError, match=r"Unexpected key(.|\n)*blocks\.1\.attn\.conditioned_attention__call_apply"):
        plain.load_state_dict(other.state_dict())
    apply_conditioning(plain, other.state_dict())
    plain.load_state_dict(other.state_dict())
    assert torch.equal(output(plain), output(other))
    assert conditioning(plain)["transforms"][0]["modules"] == ["blocks.1.attn"]


def test_a_plain_block_that_was_put_in_is_not_recorded():
    model = vit(2)
    precondition(model, guard=True)
    model.blocks[0] = vit(1).blocks[0]
    assert [key.partition(".conditioned")[0] for key in model.state_dict() if "conditioned" in key] == ["blocks.1.attn"]


def test_all_that_was_conditioned_is_gone(tmp_path):
    model = llama(2)
    precondition(model, include="*layers.1.*", guard=True)
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    llama(1).load_state_dict(model.state_dict())
    model.load_state_dict(llama(1).state_dict())
    restore(model)


def test_a_conversion_of_a_part_of_a_guarded_model():
    """The part does not know that there is a guard around it."""
    model = vit(2)
    precondition(model, include="blocks.0.*", guard=True)
    precondition(model.blocks[1], gradient="through")
    restore(model.blocks[0])
    loaded = vit(2)
    apply_conditioning(loaded, model.state_dict())
    assert conditioning(loaded) == conditioning(model)
    assert conditioning(loaded)["transforms"][0]["modules"] == ["blocks.1.attn"]


def checkpoint_every(model, name):
    apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == name)


@pytest.mark.parametrize("first", ["wrapped", "converted"])
def test_activation_checkpointing_leaves_no_trace_in_records(first, tmp_path):
    """torch's wrapper takes its name out of state_dict keys, and so it has to go out of records."""
    model, hugging = vit(2), llama(2)
    for each, name in ((model, "Block"), (hugging, "LlamaDecoderLayer")):
        if first == "wrapped":
            checkpoint_every(each, name)
        precondition(each, include="*1.*", guard=each is model)
        if first == "converted":
            checkpoint_every(each, name)
    loaded = vit(2)
    apply_conditioning(loaded, model.state_dict())
    loaded.load_state_dict(model.state_dict())
    model.load_state_dict(loaded.state_dict())
    assert torch.equal(output(loaded), output(model))
    assert conditioning(loaded) == conditioning(model)
    hugging.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    apply_conditioning(again)
    assert torch.equal(again(tokens()).logits, hugging(tokens()).logits)
    record = conditioning(vit(2)) | {"transforms": [{"kind": "row_norm", "modules": ["blocks.1.attn"]}]}
    fresh = vit(2)
    checkpoint_every(fresh, "Block")
    apply_conditioning(fresh, record)
    assert conditioning(fresh)["transforms"][0]["modules"] == ["blocks.1.attn"]


def test_names_of_records_of_earlier_versions_with_wrappers_in_them():
    loaded = vit(2)
    names = ["_orig_mod.blocks.0._checkpoint_wrapped_module.attn", "module.blocks.1._fsdp_wrapped_module.attn"]
    apply_conditioning(loaded, {"format": 1, "transforms": [{"kind": "row_norm", "modules": names}]})
    assert conditioning(loaded)["transforms"][0]["modules"] == ["blocks.0.attn", "blocks.1.attn"]


def test_compiled_blocks_and_averages_leave_no_trace():
    model = vit(2)
    for block in model.blocks:
        block.attn = torch.compile(block.attn, backend="eager")
    precondition(model)
    assert conditioning(model)["transforms"][0]["modules"] == ["blocks.0.attn", "blocks.1.attn"]
    average = AveragedModel(vit(2))
    precondition(average, guard=True)
    loaded = vit(2)
    apply_conditioning(loaded, average.state_dict())
    loaded.load_state_dict(average.module.state_dict())
    assert torch.equal(output(loaded), output(average.module))


class Twice(nn.Module):
    """With a child that is called as wrappers call theirs, and one beside it that has the same name but for that."""

    def __init__(self):
        super().__init__()
        self.attn = Bare(32, 4)
        self.module = nn.Module()
        self.module.attn = Bare(32, 4)


def test_a_child_called_module_keeps_its_name():
    register_attention(Bare, at=None)
    model, loaded = Twice(), Twice()
    precondition(model, include="module.attn")
    apply_conditioning(loaded, conditioning(model))
    assert conditioning(loaded)["transforms"][0]["modules"] == ["module.attn"]
    with pytest.raises(ValueError, match=r"no attention module 'module\.module\.attn'"):
        apply_conditioning(
            nn.Sequential(Block()),
            {"format": 1, "transforms": [{"kind": "row_norm", "modules": ["module.module.attn"]}]},
        )


def test_a_saved_module_of_an_earlier_version_is_brought_up_to_date():
    """Its config holds a plain dictionary, and no hook."""
    model = build("llama")
    precondition(model)
    model._state_dict_pre_hooks.clear()
    model.config.conditioned_attention = conditioning(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    restore(again.model.layers[0])
    precondition(again, include="*0.*", gradient="through")
    assert [e["gradient"] for e in again.config.to_dict()["conditioned_attention"]["transforms"]] == [
        "through",
        "stopped",
    ]
