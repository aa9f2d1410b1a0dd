"""`docs/survival.md`, as the tests have it; written by ``python -m tests.conversion.survival_table``."""

from pathlib import Path

from tests.conversion.survivors import SURVIVORS

FILE = Path(__file__).parents[2] / "docs" / "survival.md"

_SWAPS = [name for name in SURVIVORS if name.startswith("class swap")]

# what does not work, and for which model -> the reason, and the words of the error that says so
NO = {
    **{
        ("fully_shard on the attention module itself, then conversion", name): (
            "convert before `fully_shard`",
            "convert before fully_shard",
        )
        for name in _SWAPS
    },
    **{
        ("restore with the attention module itself sharded", name): (
            "restore before `fully_shard`",
            "cannot be restored: it has become a FSDP",
        )
        for name in _SWAPS
    },
    ("restore of a quantized model", "class swap: torchvision Swin"): (
        "the plain model does not run quantized",
        "must be Tensor, not method",
    ),
    ("restore of a quantized model", "class swap: torch.nn.TransformerEncoder"): (
        "the plain model does not run quantized",
        "'function' object has no attribute 'device'",
    ),
}

_TEXT = """# What a converted model survives

Written by `python -m tests.conversion.survival_table`; `tests/conversion/test_survival.py` and `ranks.py` beside it
test every cell.

✓: outputs, and gradients where there are any, are those of the plain model with all attention rows normalised from
outside (float32, relative error below 2e-5; rounded to bfloat16 or 8 bits: far nearer to it than the plain model is).
Where the thing is undone, the plain model's output comes back.  "no" is an error with this reason, not a wrong number.

There is one small model for every way in which heads are reached; a report's `mechanism` tells which one a module has.

"""

_NOTES = """
Also good to know:

- Convert before `torch.compile`, or after: a conversion makes it compile again.  An adapter that takes the place of the
  module behind a hook (LoRA on the output projection of a model whose mechanism is "hook") is found at the next call
  outside of compiled code: run the model once, or call `precondition` again, before you compile it; else it raises.
- torchvision's Swin V2 reads `qkv.weight` itself, converted or not, so adapters on `qkv` have no effect before they are
  merged.  The plain Swin reads `proj.weight` too; converted models call both modules of Swin, and `proj` of Swin V2.
- Distributed rows are two processes on CPUs (gloo) with one half of the batch each, compared with one process.
"""


def page(things):
    names = list(SURVIVORS)
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows += [[f"{thing}", *(_cell(thing, name) for name in names)] for thing in things]
    return _TEXT + "".join(f"| {' | '.join(row)} |\n" for row in rows) + _NOTES


def _cell(thing, name):
    return f"no: {NO[thing, name][0]}" if (thing, name) in NO else "✓"


if __name__ == "__main__":
    from tests.conversion import ranks, test_survival

    FILE.write_text(page([*test_survival.THINGS, *ranks.THINGS]))
