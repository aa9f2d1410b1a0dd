"""The monitor sees every head as the model computes it, and leaves no trace."""

import copy
import json
import random
from collections import namedtuple
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.overrides import TorchFunctionMode

from conditioned_attention import ConditionMonitor, condition_number, precondition, restore
from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.measure.probing.probe import head_outputs
from tests.models import MODELS, build, images, inputs, timm_vit

attention = F.scaled_dot_product_attention


class Spy(TorchFunctionMode):
    """Writes down what every ``scaled_dot_product_attention`` returned."""

    def __init__(self):
        super().__init__()
        self.outputs = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.multi_head_attention_forward:  # goes by as a whole, with the mode off inside
            with patch.object(F, "scaled_dot_product_attention", self.attention):
                return function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            return self.attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def attention(self, *args, **kwargs):
        self.outputs.append(attention(*args, **kwargs).detach())
        return self.outputs[-1]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("conditioned", [False, True])
def test_head_outputs_are_those_of_the_model(name, conditioned):
    model = build(name)
    if conditioned:
        precondition(model)
    with Spy() as spy, torch.no_grad():
        model(**inputs(model))
    calls = head_outputs(model, inputs(model))
    assert len(calls) == len(spy.outputs) == MODELS[name][1]
    for call, seen in zip(calls, spy.outputs):
        torch.testing.assert_close(call.before, seen)
        torch.testing.assert_close(call.after, F.normalize(seen, dim=-1))
        assert call.conditioned is conditioned


def test_records_are_medians_over_the_samples():
    model = build("timm_vit")
    calls = head_outputs(model, images())
    records = ConditionMonitor(model, images()).measure(7)
    assert [(r.layer, r.head) for r in records] == [(layer, head) for layer in range(2) for head in range(4)]
    record, call = records[5], calls[1]
    assert record.module == "blocks.1.attn"
    assert record.step == 7
    assert record.kappa_before == condition_number(call.before[:, 1]).min().item()  # the lower of two samples
    assert record.kappa_after == condition_number(call.after[:, 1]).min().item()
    assert record.largest_scale == pytest.approx((1 / call.before[:, 1].norm(dim=-1)).max().item(), rel=1e-5)
    assert not record.conditioned
    assert record.kappa == record.kappa_before
    precondition(model)
    after = ConditionMonitor(model, images()).measure(7)[5]
    assert after.conditioned
    assert after.kappa == after.kappa_after


class Noisy(nn.Module):
    """A model with dropout, running statistics and a buffer that counts calls."""

    def __init__(self):
        super().__init__()
        self.body = timm_vit(attn_drop_rate=0.2, proj_drop_rate=0.2)
        self.norm = nn.BatchNorm1d(10)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        torch.rand(3)
        return self.norm(self.body(x))


@pytest.mark.parametrize("conditioned", [False, True])
def test_the_probe_leaves_no_trace(conditioned):
    model = Noisy().train()
    model.body.blocks[1].eval()
    if conditioned:
        precondition(model)
    twin = copy.deepcopy(model)
    modes = [module.training for module in model.modules()]
    random_state, python_state = torch.get_rng_state(), random.getstate()
    monitor = ConditionMonitor(model, images(), every=2)
    assert monitor.step(0)
    assert not monitor.step(1)
    assert (torch.get_rng_state() == random_state).all()
    assert random.getstate() == python_state
    assert [module.training for module in model.modules()] == modes
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
    assert all((a == b).all() for a, b in zip(model.state_dict().values(), twin.state_dict().values()))
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(3)
    expected = twin(images())
    torch.manual_seed(3)
    assert (model(images()) == expected).all()


def test_the_model_is_left_as_it_was_if_the_probe_fails():
    model = build("timm_vit").train()
    monitor = ConditionMonitor(model, torch.randn(2, 3, 8, 8))
    with pytest.raises(RuntimeError):
        monitor.measure(0)
    assert model.training
    assert restore(model).names("restored") == []


def test_wrapped_models():
    plain = ConditionMonitor(build("vit"), images()).measure(0)
    compiled = torch.compile(build("vit"), backend="aot_eager")
    assert ConditionMonitor(compiled, (images(),)).measure(0) == plain
    AcceleratorState._reset_state()
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(build("vit"))
    assert prepared(images()).logits.dtype == torch.float32
    assert ConditionMonitor(prepared, {"pixel_values": images()}).measure(0) == plain, "without autocast"
    assert "forward" in vars(prepared), "Accelerate's own forward is back"
    AcceleratorState._reset_state()


def test_a_half_converted_model_shows_which_heads_are():
    model = build("bert")
    precondition(model, include="*layer.1*")
    records = ConditionMonitor(model, inputs(model)).measure(0)
    assert [r.conditioned for r in records] == [False] * 4 + [True] * 4
    assert restore(model).names("restored") == ["bert.encoder.layer.1.attention.self"]


def test_lines_of_json(tmp_path):
    model = build("timm_vit")
    model.blocks[0].attn.qkv.weight.data.zero_()  # every row the same: rank one
    monitor = ConditionMonitor(model, images(), every=5, path=tmp_path / "deep" / "log.jsonl")
    for step in range(6):
        monitor.step(step)
    lines = (tmp_path / "deep" / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert len(rows) == 16
    assert rows[0]["kappa_before"] is None
    assert rows[0]["floor_before"] == 1
    assert [HeadRecord.from_json(row) for row in rows] == monitor.records


def test_wrong_arguments():
    with pytest.raises(ValueError, match="no attention whose heads can be reached"):
        ConditionMonitor(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(TypeError, match="model must be a torch"):
        ConditionMonitor(3, images())
    with pytest.raises(TypeError, match="every must be an integer"):
        ConditionMonitor(build("timm_vit"), images(), every=2.5)
    with pytest.raises(ValueError, match="every must be at least 1"):
        ConditionMonitor(build("timm_vit"), images(), every=0)


def test_a_probe_may_be_a_named_tuple():
    Probe = namedtuple("Probe", "x")
    model = build("timm_vit")
    found = ConditionMonitor(model, Probe(images())).measure(0)
    assert found == ConditionMonitor(model, images()).measure(0)


def test_measuring_between_forward_and_backward():
    model = build("bert")
    monitor = ConditionMonitor(model, inputs(model))
    loss = model(**inputs(model)).logits.sum()
    monitor.measure(0)
    loss.backward()


class Rebinding(nn.Module):
    """Replaces its own buffer and attribute in forward, as rotary embeddings of growing length do."""

    def __init__(self):
        super().__init__()
        self.body, self.length = timm_vit(), 1
        self.register_buffer("table", torch.ones(2))

    def forward(self, x):
        self.length, self.late = self.length + 1, True
        self.register_buffer("table", torch.zeros(3))
        return self.body(x)


def test_what_the_probe_rebinds_is_put_back():
    model = Rebinding()
    table = model.table
    ConditionMonitor(model, images()).measure(0)
    assert model.table is table
    assert model.length == 1
    assert not hasattr(model, "late")
