"""Blocks that backward computes again: the same numbers to the bit, with chance in them too, and less memory."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conditioned_attention.experiments.training.blocks import blocks_of, recompute_blocks
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.profiling.memory import held_bytes
from tests.experiments.tiny import ShakenDigits
from tests.models import timm_vit

IDS = torch.arange(24).reshape(2, 12)


def vit(rate):
    return timm_vit(attn_drop_rate=rate, proj_drop_rate=rate, drop_path_rate=rate), torch.linspace(0, 1, 384)


def gpt2(rate):
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop"), rate) | {"attn_pdrop": 0.0}  # which rounds otherwise
    return GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, **drops)), IDS


def loss_of(model, data):
    if data is IDS:
        return model(input_ids=data).logits.square().mean()
    return model(data.reshape(6, 1, 8, 8)).square().mean()


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("build", [vit, gpt2])
def test_gradients_stay_and_memory_goes(build, rate):
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, data = build(rate)
        VARIANTS["preconditioned+spectral"].apply(model)
        if recompute:
            recompute_blocks(model)
        model.train()
        held = held_bytes(lambda: loss_of(model, data), model.parameters())  # noqa: B023
        torch.manual_seed(1)
        loss = loss_of(model, data)
        loss.backward()
        found.append((held, loss.detach(), [p.grad for p in model.parameters()]))
    (before, loss, gradients), (after, again, others) = found
    assert after < before / 2
    assert torch.equal(loss, again)
    assert all(torch.equal(one, two) for one, two in zip(gradients, others))


def test_a_run_has_the_same_numbers(tmp_path, monkeypatch):
    called = []
    block = type(timm_vit().blocks[0])
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x: called.append(torch.is_grad_enabled()) or forward(self, x))
    settings = Training(epochs=1, batch_size=30, evaluate_every=0.5, ema=0.9, monitor_every=0)
    rows, calls = [], []
    for wish in (False, True):
        called.clear()
        found = list(
            train(ShakenDigits(), settings, VARIANTS["preconditioned"], 0, tmp_path / str(wish), Launch(recompute=wish))
        )
        rows.append([{key: value for key, value in row.items() if key != "seconds"} for row in found])
        calls.append(sum(called))
    assert rows[0] == rows[1]
    assert calls[1] == 2 * calls[0] > 0


def test_blocks_are_the_innermost_lists_with_attention():
    assert list(blocks_of(timm_vit())) == ["blocks.0", "blocks.1"]
    assert list(blocks_of(gpt2(0.0)[0])) == ["transformer.h.0", "transformer.h.1"]
