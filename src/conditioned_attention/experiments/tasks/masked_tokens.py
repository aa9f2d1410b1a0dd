"""Prediction of masked tokens, scored by the mean loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.text.packing import Blocks
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.next_token import spread
from conditioned_attention.experiments.tasks.task import Evaluator, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class MaskedModel(Protocol):
    """Settings of a network that predicts masked tokens."""

    def build(self, vocabulary: int) -> nn.Module:
        """The model with fresh weights; it is called like `CrammedBertForMaskedLM`."""


def mask_tokens(
    ids: Tensor, mask_id: int, vocabulary: int, share: float = 0.25, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Hides the same number of tokens in every sequence; special tokens can be hidden too.

    Of the K = round(share · N) chosen tokens, round(K / 10) become a random token of the vocabulary, as many stay as
    they are, and the rest become ``mask_id``: for K = 32 these are 3, 3 and 26.  This is done as in
    JonasGeiping/cramming; Hugging Face's collator draws for each token separately, so that K varies between sequences.

    Args:
        ids: (B, N), int64.
        mask_id: id of the token that stands for hidden ones.
        vocabulary: number of tokens.
        share: share of the tokens that are chosen, above 0 and at most 1.
        generator: source of random numbers; default torch's global one.

    Returns:
        ``input_ids`` (B, N), ``masked_positions`` (B, K) and ``labels`` (B, K), the original tokens there.

    Raises:
        ValueError: ``share`` is out of its range, or too small to choose a token.

    >>> found = mask_tokens(torch.zeros(2, 128, dtype=torch.long), mask_id=6, vocabulary=1)
    >>> found["labels"].shape, (found["input_ids"] == 6).sum(1)
    (torch.Size([2, 32]), tensor([26, 26]))
    """
    count = check_share(share, ids.shape[1])
    positions = torch.rand(ids.shape, generator=generator).argsort(1)[:, :count]
    labels = ids.gather(1, positions)
    tenth = round(count / 10)
    anything = torch.randint(vocabulary, (len(ids), tenth), generator=generator)
    hidden = torch.full((len(ids), count - 2 * tenth), mask_id)
    shown = torch.cat([hidden, anything, labels[:, count - tenth :]], dim=1)
    return {"input_ids": ids.scatter(1, positions, shown), "masked_positions": positions, "labels": labels}


def check_share(share: float, length: int) -> int:
    """The number of tokens that are this share of ``length``; raises ValueError unless it is from one to all."""
    if not 0 < share <= 1 or not round(share * length):
        raise ValueError(f"share must be in (0, 1] and a token at least of {length}, got {share}")
    return round(share * length)


class AlwaysMasked(Dataset[Any]):
    """Blocks whose hidden tokens are fixed by the index of the block; batches are those of `mask_tokens`."""

    def __init__(self, blocks: Blocks, mask_id: int, share: float) -> None:
        self.blocks, self.mask_id, self.share = blocks, mask_id, share

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        blocks = self.blocks.__getitems__(indices)
        each = [self._masked(int(index), block[None]) for index, block in zip(indices, blocks)]
        return {name: torch.cat([masked[name] for masked in each]) for name in each[0]}

    def _masked(self, index: int, block: Tensor) -> dict[str, Tensor]:
        chance = torch.Generator().manual_seed(index)
        return mask_tokens(block, self.mask_id, self.blocks.vocabulary, self.share, chance)

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the blocks, and the share of hidden tokens."""
        return {**self.blocks.fingerprint(), "masked": self.share}


class MaskedTokens(Task):
    """Prediction of hidden tokens by cross entropy at these tokens only, scored by its mean.

    In training, different tokens are hidden every time; in evaluations, always the same ones.

    Args:
        data: blocks to train and to evaluate on.
        model: what is trained.
        tokenizer: the tokenizer that made the blocks; it is saved in the folder of a finished run.
        share: share of the tokens that are hidden.
        eval_blocks: score on this many blocks, spread over the held-out text; None for all.
        notes: what a report should say about the data.
    """

    metric = Metric("loss (nats a masked token)", higher_is_better=False)

    def __init__(
        self,
        data: tuple[Blocks, Blocks],
        model: MaskedModel,
        tokenizer: Tokenizer,
        share: float = 0.25,
        eval_blocks: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._train, held = data
        held = held.part(spread(len(held), eval_blocks, "eval_blocks"))
        mask_id: int | None = tokenizer.token_to_id("<mask>")
        if mask_id is None:
            raise ValueError("the tokenizer has no token '<mask>'")
        self._eval = AlwaysMasked(held, mask_id, share)
        self._model, self._mask_id, self._share, self.notes = model, mask_id, share, list(notes)
        self._tokenizer = tokenizer.to_str()
        self.tokens_per_sample = self._train.length
        check_share(share, self._train.length)
        self.about = f"blocks of {self._train.length} tokens of {self._train.vocabulary:,}"

    def build_model(self) -> nn.Module:
        return self._model.build(self._train.vocabulary)

    def train_data(self) -> Blocks:
        return self._train

    def eval_data(self) -> AlwaysMasked:
        return self._eval

    def collate_train(self, items: Any) -> Any:
        return mask_tokens(items, self._mask_id, self._train.vocabulary, self._share)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return _losses(model, batch)[0].mean()

    def evaluator(self) -> Evaluator:
        return _MeanLoss()

    def probe(self) -> dict[str, Tensor]:
        return {"input_ids": self._eval.__getitems__(range(min(8, len(self._eval))))["input_ids"]}

    def calibration(self) -> dict[str, Tensor]:
        masked = AlwaysMasked(self._train, self._mask_id, self._share)
        return {"input_ids": masked.__getitems__(range(min(8, len(masked))))["input_ids"]}

    def finish(self, model: nn.Module) -> dict[str, str]:
        """Gives ``tokenizer.json``, without which the model could not be used."""
        return {"tokenizer.json": self._tokenizer}


class _MeanLoss:
    """The mean loss of a masked token, in nats, and the share that is predicted correctly, in per cent."""

    def __init__(self) -> None:
        from torchmetrics import MeanMetric

        self.mean, self.right = MeanMetric(sync_on_compute=False), MeanMetric(sync_on_compute=False)

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        losses, right = _losses(model, batch)
        self.mean.update(gather(losses.mean(-1)).cpu())
        self.right.update(gather(right.float().mean(-1)).cpu())

    def compute(self) -> dict[str, float]:
        return {"score": float(self.mean.compute()), "accuracy": 100 * float(self.right.compute())}


def _losses(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The loss of every hidden token (B, K), and whether it has the largest logit."""
    labels = batch["labels"]
    logits = model(input_ids=batch["input_ids"], masked_positions=batch["masked_positions"]).logits
    return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none"), logits.argmax(-1) == labels
