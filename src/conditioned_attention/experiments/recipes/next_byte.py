"""Next-byte language modelling by a small GPT: the recipe ``next_byte``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.data.text.files import read_text_sets
from conditioned_attention.experiments.data.text.windows import (
    split_windows,
    standard_library_text,
    windows_of,
    wordnet_glosses,
)
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.tasks.next_byte import NextByte
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import added, place


@dataclass(frozen=True)
class NextByteRecipe(Choices):
    """A byte-level GPT on text; without options on English that every Python brings along.

    Attributes:
        text: ``"topics"`` (0.46 MB, the standard library's help), ``"wordnet"`` (9.3 MB of definitions) or
            ``"files"``.
        path: for ``"wordnet"`` the folder with its files; for ``"files"`` a text file, a folder of them, or a saved
            Hugging Face data set with a column ``text``.  An evaluation set that it has is what is scored on, and
            never trained on; without one, it is a tenth of the text.
        eval_split: of ``"files"``: which folder, file or split to evaluate on; needed if there are several.
        max_unreadable: of ``"files"``, more than so many that cannot be read are an error.
        eval_windows: score on so many windows, spread over the held-out text; None for all.
        model: the network; the default has 0.8 million parameters.
        training: how it is trained.
    """

    text: Literal["topics", "wordnet", "files"] = "topics"
    path: Path | None = place(None)
    eval_split: str | None = added(None)
    max_unreadable: int = place(10)
    eval_windows: int | None = None
    model: GPT = field(default_factory=GPT)
    training: Training = field(default_factory=lambda: Training(epochs=8, batch_size=32, lr=2e-3, weight_decay=0.1))

    def task(self, *, tuning: bool = False) -> Task:
        notes: list[str] = []
        context, (train, held) = self.model.context, self._read(notes)
        if held is None:
            data = split_windows(train, context, tuning=tuning)
            notes.append("no evaluation set: every tenth block of 32 windows is held out")
        else:
            data = split_windows(train, context) if tuning else (windows_of(train, context), windows_of(held, context))
        return NextByte(data, self.model, self.eval_windows, notes)

    def _read(self, notes: list[str]) -> tuple[bytes, bytes | None]:
        """The text to train on, and that to evaluate on if there is one."""
        if self.text == "files":
            if self.path is None:
                raise ValueError("text='files' needs a path: a text file, a folder of them or a saved data set")
            return read_text_sets(self.path, self.max_unreadable, eval_split=self.eval_split, notes=notes)
        if self.eval_split is not None:
            raise ValueError(f"eval_split={self.eval_split!r} needs text='files'")
        return self._read_known(), None

    def _read_known(self) -> bytes:
        if self.text == "wordnet":
            return wordnet_glosses((self.path or Path("/usr/share/wordnet")).expanduser())
        if self.path is not None:
            raise ValueError(f"path={str(self.path)!r} needs text='wordnet' or text='files'")
        return standard_library_text()
