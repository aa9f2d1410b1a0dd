"""The guard's record is in the names of buffers: nobody can hurt it, and whoever loads by keys compares it."""

import copy
import json
from argparse import Namespace

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from timm.models import load_checkpoint
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conditioned_attention import apply_conditioning, conditioning, precondition, spectral_condition
from conditioned_attention.controls import ConstantGain, HeadRMSNorm
from conditioned_attention.conversion import convert
from conditioned_attention.conversion.guard import GUARD
from tests.models import build, images, output


def vit():
    return build("timm_vit")


def guarded(**options):
    model = vit()
    precondition(model, guard=True, **options)
    return model


def loads(state, **options):
    """A plain model that is given a state_dict as it is meant to be."""
    model = vit()
    apply_conditioning(model, state)
    model.load_state_dict(state, **options)
    return model


def averaged(model):
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9999), use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    return average.module.state_dict()


def timms(ema):
    def average(model):
        ema_model = ema(model)
        ema_model.update(model)
        ema_model.update(model)
        return ema_model.module.state_dict()

    return average


def soup(model):
    states = [model.state_dict(), model.state_dict()]
    return {key: torch.stack([state[key].float() for state in states]).mean(0) for key in states[0]}


def in_half_precision(model):
    return {
        key: value.half().float() if value.is_floating_point() else value for key, value in model.state_dict().items()
    }


def task_vector(model):
    """The difference of two checkpoints, added to one again."""
    states = [model.state_dict(), vit().state_dict()]
    return {key: states[1].get(key, 0) + 1.0 * (value - states[1].get(key, 0)) for key, value in states[0].items()}


ARITHMETIC = {
    "AveragedModel with buffers": averaged,
    "ModelEmaV2": timms(ModelEmaV2),
    "ModelEmaV3": timms(ModelEmaV3),
    "soup": soup,
    "half precision": in_half_precision,
    "task vector": task_vector,
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_cannot_hurt_it(name):
    model = guarded(eps=1e-5)
    state = ARITHMETIC[name](model)
    loaded = loads(state)
    assert conditioning(loaded) == conditioning(model)
    model.load_state_dict(state)
    torch.testing.assert_close(output(loaded), output(model))
    with pytest.raises(RuntimeError, match="conditioned differently"):
        guarded(eps=1e-4).load_state_dict(state)


@pytest.mark.parametrize("how", ["assign", "to_empty"])
def test_a_model_that_was_built_on_meta(how):
    model = guarded()
    state = model.state_dict()
    with torch.device("meta"):
        fresh = vit().eval()
    apply_conditioning(fresh, state)
    assert all(tensor.is_meta for tensor in fresh.state_dict().values())
    if how == "to_empty":
        fresh.to_empty(device="cpu")
    fresh.load_state_dict(state, assign=how == "assign")
    assert torch.equal(output(fresh), output(model))
    with pytest.raises(RuntimeError, match="does not say that it was conditioned"):
        fresh.load_state_dict(vit().state_dict(), assign=how == "assign")


CHECKPOINTS = [({"include": "blocks.1.*"}, {"include": "blocks.0.*"}), ({"gradient": "through"}, {})]


@pytest.mark.parametrize(("theirs", "mine"), CHECKPOINTS)
def test_torch_distributed_checkpoint_compares_it(theirs, mine, tmp_path):
    """It writes into the tensors of model.state_dict(), before anything of ours could look at them."""
    trained, other, same = guarded(**theirs), guarded(**mine), guarded(**theirs)
    dcp.save({"model": trained.state_dict()}, checkpoint_id=tmp_path)
    with pytest.raises(CheckpointException, match=r"Missing key(.|\n)*call_apply_conditioning_before_load_state_dict"):
        dcp.load({"model": other.state_dict()}, checkpoint_id=tmp_path)
    for parameter in same.parameters():
        nn.init.zeros_(parameter)
    state = {"model": same.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path)
    same.load_state_dict(state["model"])
    assert torch.equal(output(same), output(trained))
    fresh = vit()
    apply_conditioning(fresh, tmp_path)
    assert conditioning(fresh) == conditioning(trained)
    set_model_state_dict(fresh, get_model_state_dict(trained))
    assert torch.equal(output(fresh), output(trained))


def test_a_plain_checkpoint_of_torch_distributed_checkpoint(tmp_path):
    dcp.save({"model": vit().state_dict()}, checkpoint_id=tmp_path)
    with pytest.raises(CheckpointException, match=r"Missing key(.|\n)*call_apply_conditioning_before_load_state_dict"):
        dcp.load({"model": guarded().state_dict()}, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match=r"nor the state_dict of a model that was converted with guard=True"):
        apply_conditioning(vit(), tmp_path)


def lora(model, task_type=None):
    options = LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False, task_type=task_type)
    return get_peft_model(model, options).eval()


@pytest.mark.parametrize("wrapped_first", [True, False])
@pytest.mark.filterwarnings("ignore:adapter_config.json of this adapter")
def test_it_stays_when_a_wrapper_goes(wrapped_first):
    if wrapped_first:
        wrapper = lora(vit())
        precondition(wrapper, guard=True)
    else:
        wrapper = lora(guarded())
    expected = output(wrapper, x=images())
    merged = wrapper.merge_and_unload()
    state = copy.deepcopy(merged.state_dict())  # torch says what is wrong, and loads what fits
    with pytest.raises(RuntimeError, match="Unexpected key"):
        vit().load_state_dict(state)
    with pytest.raises(RuntimeError, match="does not say that it was conditioned"):
        merged.load_state_dict(vit().state_dict(), strict=False)
    torch.testing.assert_close(output(loads(state)), expected)


def test_it_lets_adapters_alone():
    """They bring no weights of the model itself; and neither does a new classifier."""
    wrapper, other = lora(guarded()), lora(guarded())
    state = get_peft_model_state_dict(other)
    assert not any("conditioned" in key for key in state)
    set_peft_model_state_dict(wrapper, state)
    assert torch.equal(output(wrapper, x=images()), output(other, x=images()))
    guarded().load_state_dict({"head.weight": torch.zeros(10, 32)}, strict=False)
    with pytest.raises(RuntimeError, match="does not say that it was conditioned"):
        guarded().load_state_dict({"blocks.0.attn.qkv.weight": torch.zeros(96, 32)}, strict=False)


def test_an_attention_module_alone():
    model, loaded = build("torch_mha"), build("torch_mha")
    precondition(model, guard=True)
    state = model.state_dict()
    assert [key for key in state if key.startswith(GUARD)]
    apply_conditioning(loaded, state)
    loaded.load_state_dict(state)
    assert torch.equal(output(loaded), output(model))
    with pytest.raises(RuntimeError, match="does not say that it was conditioned"):
        loaded.load_state_dict(build("torch_mha").state_dict(), strict=False)


@pytest.mark.parametrize("transform", [HeadRMSNorm(), ConstantGain(0.1)])
def test_any_settings_go_into_a_name(transform):
    model = vit()
    convert(model, transform, guard=True)
    spectral_condition(model, 0.3, roles="qk", include="blocks.1.*")
    keys = [key for key in model.state_dict() if GUARD in key]
    assert len(keys) == 3
    assert all(key.rpartition(".")[2].isidentifier() for key in keys)
    assert max(map(len, keys)) < 240, "some programs make it the name of a file"
    loaded = vit()
    apply_conditioning(loaded, model.state_dict())
    loaded.load_state_dict(model.state_dict())
    assert conditioning(loaded) == conditioning(model)
    assert torch.equal(output(loaded), output(model))


def test_an_unknown_spelling():
    with pytest.raises(ValueError, match="does not know a guard of this spelling"):
        apply_conditioning(vit(), {f"blocks.0.attn.{GUARD}row_5fnorm_20eps": torch.zeros(1)})


def test_timm_prints_what_to_do(tmp_path):
    torch.save({"state_dict": guarded().state_dict()}, tmp_path / "model.pth")
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\)(.|\n)*call_apply_conditioning_before_load_state_dict"):
        load_checkpoint(vit(), str(tmp_path / "model.pth"))


WAYS = {
    "state_dict": lambda state, folder: state,
    "timm": lambda state, folder: {"epoch": 3, "arch": "vit", "state_dict": state, "state_dict_ema": state},
    "deeper": lambda state, folder: {"checkpoint": {"model": state, "optimizer": {"state": {0: {"step": 1}}}}},
    "a .pth file": lambda state, folder: written(torch.save, {"state_dict": state}, folder / "model.pth"),
    "an old .pth file": lambda state, folder: written(old_file, state, folder / "model.pth"),
    "a path as a string": lambda state, folder: str(written(torch.save, state, folder / "model.pt")),
    "safetensors": lambda state, folder: written(safetensors.torch.save_file, state, folder / "model.safetensors"),
}


def old_file(state, path):
    """As PyTorch wrote before 1.6: no zip file."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


def written(write, data, path):
    write(data, path)
    return path


@pytest.mark.parametrize("way", WAYS)
def test_where_a_state_dict_may_be(way, tmp_path):
    model = guarded()
    loaded = vit()
    apply_conditioning(loaded, WAYS[way](model.state_dict(), tmp_path))
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(output(loaded), output(model))


def test_where_a_record_may_be(tmp_path):
    model = build("llama")
    precondition(model)
    model.save_pretrained(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps(conditioning(model)))
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "record.json"):
        loaded = build("llama")
        apply_conditioning(loaded, path)
        assert conditioning(loaded) == conditioning(model)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        apply_conditioning(build("llama"), tmp_path / "nothing.pt")
    torch.save({"state_dict": guarded().state_dict(), "args": Namespace(lr=1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"more\.pth' is not made of tensors and plain data alone"):
        apply_conditioning(build("llama"), tmp_path / "more.pth")
    torch.save(torch.zeros(1), tmp_path / "one.pth")
    with pytest.raises(ValueError, match=r"one\.pth' holds a Tensor, no record"):
        apply_conditioning(build("llama"), tmp_path / "one.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has neither a config\.json nor"):
        apply_conditioning(build("llama"), tmp_path / "empty")
    different = {"state_dict": guarded().state_dict(), "state_dict_ema": guarded(eps=1e-3).state_dict()}
    with pytest.raises(ValueError, match="conditioned in different ways"):
        apply_conditioning(vit(), different)


def test_it_goes_through_compilers_and_copies():
    model = guarded()
    expected = output(model)
    assert torch.equal(output(copy.deepcopy(model)), expected)
    program = torch.export.export(model, (torch.zeros(2, 1, 8, 8),))
    assert any(GUARD in key for key in program.state_dict)
    traced = torch.jit.trace(model, torch.zeros(2, 1, 8, 8))
    assert any(GUARD in key for key in traced.state_dict())
    assert [*model.half().state_dict()] == [*guarded().state_dict()]
