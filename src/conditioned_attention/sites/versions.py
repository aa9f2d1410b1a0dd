"""Which versions of the other libraries the tables describe."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version

# package -> the first version that the tables describe, and the first that they may not describe any more
SUPPORTED = {
    "timm": ("1.0.20", "1.1"),
    "transformers": ("5.4", "6"),
    "torchvision": ("0.24", "1"),
}


@cache
def unsupported(package: str) -> str:
    """Why modules of the installed version of a package are not converted; empty if they are."""
    if package not in SUPPORTED:
        return ""
    try:
        installed = version(package)
    except PackageNotFoundError:  # on the path without having been installed
        return ""
    first, end = SUPPORTED[package]
    if _numbers(first) <= _numbers(installed) < _numbers(end):
        return ""
    known = f"{package} {installed} is installed, and conversion knows {package} from {first} on and below {end}"
    return f"{known}: pip install '{package}>={first},<{end}'"


def _numbers(text: str) -> tuple[int, ...]:
    """The release numbers of a version: (1, 0, 20) for ``1.0.20.dev0+cpu``."""
    release = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in release.group().split(".")) if release else ()
