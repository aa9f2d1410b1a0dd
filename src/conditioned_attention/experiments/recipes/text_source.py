"""Where a recipe's text comes from: English that every Python brings along, WordNet, or the user's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.data.text.files import read_text_sets
from conditioned_attention.experiments.data.text.windows import standard_library_text, wordnet_glosses
from conditioned_attention.storage.settings import added, place


@dataclass(frozen=True)
class TextSource(Choices):
    """The settings that recipes on text have in common.

    Attributes:
        text: ``"topics"`` (0.46 MB, the standard library's help), ``"wordnet"`` (9.3 MB of definitions) or
            ``"files"``.
        path: for ``"wordnet"`` the folder with its files; for ``"files"`` a text file, a folder of them, or a saved
            Hugging Face data set with a column ``text``.  An evaluation set that it has is what is scored on, and
            never trained on; without one, it is a tenth of the text.
        eval_split: of ``"files"``: which folder, file or split to evaluate on; needed if there are several.
        max_unreadable: of ``"files"``, more than so many that cannot be read are an error.
    """

    text: Literal["topics", "wordnet", "files"] = "topics"
    path: Path | None = place(None)
    eval_split: str | None = added(None)
    max_unreadable: int = place(10)

    def read(self, notes: list[str]) -> tuple[bytes, bytes | None]:
        """The text to train on, and that to evaluate on if there is one; ``notes`` gets lines about them."""
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
