"""Language models that predict the next token: the recipes ``gpt`` and ``llama``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from conditioned_attention.experiments.data.text.blank import BlankBlocks
from conditioned_attention.experiments.data.text.byte_pairs import END, train_byte_pairs
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.llama import Llama
from conditioned_attention.experiments.recipes.packed_text import PackedText, filling
from conditioned_attention.experiments.tasks.next_token import NextToken
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training

_PLANNED = 1_000_000_000  # tokens of a text that is not there


def pretraining() -> Training:
    """As small language models are trained."""
    return Training(
        epochs=8, batch_size=32, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, final_lr=0.1, evaluate_every=0.5
    )


@dataclass(frozen=True)
class GPTRecipe(PackedText):
    """GPT-2 trained from scratch on your text, or on English text that comes with every Python installation.

    The text is turned into blocks of tokens at the first call, one document after another.  Every evaluation has the
    loss per token and per byte, so that vocabularies can be compared; the run ends with a generated sample.

    Attributes:
        vocabulary: largest number of tokens, byte pairs that are trained on your text; 257 are the bytes alone.
        apart: whether a token attends only to its own document, and not to those before it in its block; positions
            begin anew in each document.  This needs no mask of N × N numbers, for any length of a block.
        model: the network; the default has 1.3 million parameters, 0.5 million of them in its embedding.
        training: how it is trained.
    """

    vocabulary: int = 4096
    apart: bool = False
    model: GPT = field(default_factory=GPT)
    training: Training = field(default_factory=pretraining)

    def task(self, *, tuning: bool = False) -> Task:
        notes: list[str] = []
        make = partial(train_byte_pairs, vocabulary=self.vocabulary)
        how = ["byte pairs", self.vocabulary]
        data, tokenizer = self.blocks(self.model.context + 1, make, how, notes, tuning=tuning)
        notes += filling(tokenizer, self.vocabulary)
        end = tokenizer.token_to_id(END) if self.apart else None
        return NextToken(data, self.model, self.eval_blocks, notes, tokenizer, end=end)

    def stand_in(self) -> Task | None:
        """The task on as many blank blocks as a billion tokens fill, for a plan; None where a text is named.

        Documents are not apart, since what a step of those takes depends on where they end.
        """
        if self.apart:
            whole = replace(self, apart=False)
            return whole.stand_in() or whole.task()
        if self.text != "files" or self.path is not None or self.dataset is not None:
            return None
        sizes = self.model.context + 1, self.vocabulary
        data = BlankBlocks(_PLANNED // sizes[0], *sizes), BlankBlocks(1 + (self.eval_blocks or 0), *sizes)
        return NextToken(data, self.model, self.eval_blocks, [f"there is no path: counted for {_PLANNED:,} tokens"])


@dataclass(frozen=True)
class LlamaRecipe(GPTRecipe):
    """Llama trained from scratch on your text: rotary positions, grouped queries, RMSNorm and SwiGLU.

    Everything else is as in ``gpt``.

    Attributes:
        model: the network; the default has 1.3 million parameters, 0.5 million of them in its embedding.
    """

    model: Llama = field(default_factory=Llama)  # type: ignore[assignment]
