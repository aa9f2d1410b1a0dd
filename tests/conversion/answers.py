"""Does it convert?  The tables of the pages on timm and on transformers: the answer first, a heading a letter."""

from itertools import groupby

WORDS = """- **yes**: all of its attention converts.
- **partly**: some of its attention converts; the rest is refused, or converts only if `include` selects it.
- **no**: it has attention, but all of it is refused; the model stays as it is, and `strict=True` raises.
- **none**: it has no heads of the form softmax(q kᵀ) v, so there is nothing to convert."""

_CONVERTS = {"interface", "hook", "class swap"}
_NO_ATTENTION = "no attention"


def answer(ways):
    """A word on a model whose attention classes are converted, or not, in these ways."""
    ways = set(ways) - {_NO_ATTENTION}
    if not ways:
        return "none"
    return "yes" if ways <= _CONVERTS else "partly" if ways - {"refused"} else "no"


def count(found):
    """How often each answer stands in `by_letter`, in a sentence."""
    answers = [answer(classes.values()) for classes in found.values()]
    return ", ".join(f"{word} {answers.count(word)}" for word in ("yes", "partly", "no", "none"))


def by_letter(found, kind):
    """The lines of a table for each first letter.

    Args:
        found: by name of a model type or family, the ways of its attention classes by the name of the class.
        kind: what the names are.
    """
    lines = []
    for letter, names in groupby(sorted(found, key=str.lower), key=lambda name: name[0].upper()):
        lines += [f"## {letter}", "", f"| converts | {kind} | how |", "| --- | --- | --- |"]
        lines += [*(row(name, found[name]) for name in names), ""]
    return lines


def row(name, classes):
    by_way = {}
    for cls, way in sorted(classes.items()):
        by_way.setdefault(way, []).append(f"`{cls}`")
    how = "; ".join(f"{way}: {', '.join(names)}" for way, names in sorted(by_way.items()))
    return f"| {answer(classes.values())} | {name} | {how} |"


def by_reason(reasons):
    """A line for each reason, with the classes that it holds for.

    Args:
        reasons: by class; a reason may begin with the class's own name.
    """
    classes = {}
    for name, reason in sorted(reasons.items()):
        classes.setdefault(reason.removeprefix(name.rpartition(".")[2] + " "), []).append(f"`{name}`")
    return [f"- {', '.join(names)}: {reason}" for reason, names in sorted(classes.items(), key=lambda pair: pair[1])]
