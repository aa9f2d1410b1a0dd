"""Help texts of the command line: adds examples, and shows no ``{None}`` for options that may be omitted."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import Any, get_args

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

_WIDTH = 80  # of a terminal of the usual size

EXAMPLES = {
    "compare": (
        "digits --seeds 5 --variants baseline preconditioned head_rmsnorm",
        "digits --tune 5e-4 1e-3 2e-3 --seeds 5",
        "next_byte --tokens 1000000 --dry-run --gpu H100",
    ),
    "train": ("digits --variant preconditioned --epochs 10", "image_folder --data-dir photographs/ --dry-run"),
    "inspect": (
        "vit_small_patch16_224",
        "vit_small_patch16_224 --pretrained --input photographs/ --picture heads.png",
        "path/to/checkpoint --input sentences.txt --spectral auto",
    ),
    "report": ("runs/digits", "conditions.jsonl", "runs/digits runs/fashion_mnist --output both.html"),
    "bench": ("operator --cases vit_b gpt", "step --models vit_b --threads 2"),
    "list": ("variants", "gpus"),
    "reproduce": ("table1 --data-dir imagenet/", "table1 --recipes vit_b --dry-run --gpu A100"),
}


def with_examples(command: str, about: str) -> str:
    """The text at the top of a command's help page: what it does, and examples."""
    lines = [f"$ conditioned-attention {command} {example}" for example in EXAMPLES.get(command, ())]
    return "\n".join([about, "", "Examples:", *map(_broken, lines)]) if lines else about


def _broken(line: str) -> str:
    """Breaks a long command into lines that a shell reads as one."""
    found = textwrap.wrap(line, _WIDTH - 2, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(found)


_asking: list[Any] = []


def _optional(info: PrimitiveTypeInfo) -> Any:
    """Shows ``--folder PATH`` instead of ``--folder {None}|PATH``; None can still be given."""
    if type(None) not in get_args(info.type) or info.type in _asking:
        return None
    _asking.append(info.type)
    try:
        spec: Any = ConstructorRegistry.get_primitive_spec(info)
    finally:
        _asking.remove(info.type)
    if not isinstance(spec, PrimitiveConstructorSpec):
        return spec  # an error of tyro's
    shown = spec.metavar.removeprefix("{None}|").removeprefix("{None,")
    return replace(spec, metavar=shown if "|" in spec.metavar else "{" + shown)


REGISTRY = ConstructorRegistry()
REGISTRY.primitive_rule(_optional)
