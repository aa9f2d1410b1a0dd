"""Next-byte language modelling by a small GPT: the recipe ``next_byte``."""

from __future__ import annotations

from dataclasses import dataclass, field

from conditioned_attention.experiments.data.text.windows import split_windows, windows_of
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.recipes.text_source import TextSource
from conditioned_attention.experiments.tasks.next_token import NextToken
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training


@dataclass(frozen=True)
class NextByteRecipe(TextSource):
    """A byte-level GPT on text; by default, on English text that comes with every Python installation.

    Attributes:
        eval_windows: evaluate on this many windows, spread over the held-out text; None for all.
        model: the network; the default has 0.8 million parameters.
        training: how it is trained.
    """

    eval_windows: int | None = None
    model: GPT = field(default_factory=GPT)
    training: Training = field(default_factory=lambda: Training(epochs=8, batch_size=32, lr=2e-3, weight_decay=0.1))

    def task(self, *, tuning: bool = False) -> Task:
        notes: list[str] = []
        context, (train, held) = self.model.context, self.read(notes)
        if held is None:
            data = split_windows(train, context, tuning=tuning)
            notes.append("no evaluation set: every tenth block of 32 windows is held out")
        else:
            data = split_windows(train, context) if tuning else (windows_of(train, context), windows_of(held, context))
        return NextToken(data, self.model, self.eval_windows, notes)
