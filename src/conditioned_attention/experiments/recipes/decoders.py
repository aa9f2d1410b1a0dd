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
    """GPT-2 with fresh weights on your text, or on English that every Python brings along.

    Text becomes blocks of tokens at the first call, one document behind the other.  Every evaluation has the loss of a
    token and of a byte, so that vocabularies can be compared; the run ends with a sample.

    Attributes:
        vocabulary: at most so many tokens, byte pairs that are trained on your text; 257 are the bytes alone.
        apart: whether a token sees those of its own document alone, and not what lies before it in a block; positions
            begin anew in each.  It needs no mask of N × N numbers, for any length of a block.
        model: the network; the default has 1.3 million parameters, 0.5 of them its embedding.
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
    """Llama with fresh weights on your text: rotary positions, grouped queries, RMSNorm and SwiGLU.

    All else is as in ``gpt``.

    Attributes:
        model: the network; the default has 1.3 million parameters, 0.5 of them its embedding.
    """

    model: Llama = field(default_factory=Llama)  # type: ignore[assignment]
