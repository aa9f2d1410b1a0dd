"""Docstrings as the site shows them: examples as code, a public name in backticks as a link to its description."""

import re

import griffe

import conditioned_attention
from conditioned_attention import experiments, measure

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)  # from the prompt to the next empty line
PUBLIC = {
    name: f"{package.__name__}.{name}"
    for package in (experiments, measure, conditioned_attention)  # a name of two packages is shown under the last
    for name in package.__all__
}
TOGETHER = re.compile(r"^ +\w+(?:, \w+)+(?=:)", re.MULTILINE)  # names that are described together
NAME = re.compile(r"(?<!`)`([A-Za-z_]+)`(?!`)")


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **others: object) -> None:
        if obj.docstring is not None:
            parts = re.split(f"({EXAMPLE.pattern})", obj.docstring.value, flags=re.MULTILINE)
            parts[::2] = [NAME.sub(linked, TOGETHER.sub(joined, text)) for text in parts[::2]]
            parts[1::2] = [f"```pycon\n{code}\n```" for code in parts[1::2]]
            obj.docstring.value = "".join(parts)


def joined(names: re.Match[str]) -> str:
    """Without a space that breaks, behind which a type is looked for."""
    return names[0].replace(", ", ",\N{NO-BREAK SPACE}")


def linked(name: re.Match[str]) -> str:
    return f"[{name[0]}][{PUBLIC[name[1]]}]" if name[1] in PUBLIC else name[0]
