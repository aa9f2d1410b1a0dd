"""`docs/survival.md`, as the tests have it; written by ``python -m tests.conversion.survival_table``."""

from pathlib import Path

from tests.conversion.survivors import SURVIVORS

FILE = Path(__file__).parents[2] / "docs" / "survival.md"

_SWAPS = [name for name in SURVIVORS if name.startswith("class swap")]
_PACKED = ["class swap: torch.nn.TransformerEncoder"]
_FUSED = [name for name, survivor in SURVIVORS.items() if len(survivor.qkv) == 1]
_VIT, _SWIN, _TORCH, _LLAMA, _GPT2, _POLAR = [n for n, s in SURVIVORS.items() if s.change != "precondition"]

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
    **{
        ("restore of a quantized model", name): ("the plain model does not run quantized", "must be Tensor, not method")
        for name in ("class swap: torchvision Swin", _SWIN)
    },
    **{
        ("restore of a quantized model", name): (
            "the plain model does not run quantized",
            "'function' object has no attribute 'device'",
        )
        for name in ("class swap: torch.nn.TransformerEncoder", _TORCH)
    },
    ("quantize_dynamic of a converted model", _SWIN): (
        "the plain model does not run quantized",
        "must be Tensor, not method",
    ),
    **{
        ("DoRA (PEFT) on q, k, v of a converted model; merge", name): (
            "`fold` before the adapter is made",
            r"an adapter of PEFT \(DoRA\) reads the weight of a corrected projection.*call fold\(model\)",
        )
        for name in (_VIT, _SWIN, _LLAMA, _GPT2, _POLAR)
    },
    **{
        ("DoRA (PEFT) on q, k, v of a converted model; merge", name): (
            "PEFT has no DoRA for packed weights",
            "MultiheadAttention does not support",
        )
        for name in (*_PACKED, _TORCH)
    },
    ("state_dict saved, loaded into a plain model, converted again", _POLAR): (
        "C is in the state_dict: `apply_conditioning`, then load",
        r"Unexpected key\(s\) in state_dict: .*weight_correction",
    ),
    **{
        (f"LoRA {thing}; merge", name): ("the model passes its adapters by, as the plain one does", "does not call its")
        for name, things in {
            _SWIN: (
                "(PEFT) on q, k, v of a converted model",
                "on q, k, v, then conversion",
                "on the output projection of a converted model",
                "on the output projection, then conversion",
            ),
            _TORCH: (
                "on the output projection of a converted model",
                "on the output projection, then conversion",
            ),
        }.items()
        for thing in things
    },
    **{
        (thing, name): ("q, k and v are one weight", "q, k and v are one weight")
        for name in _FUSED
        for thing in (
            "tensor parallelism (parallelize_module on q, k, v, output) of a converted model; restore",
            "tensor parallelism, then conversion; restore",
        )
    },
}

_TEXT = """# What a converted model survives

Written by `python -m tests.conversion.survival_table`; `tests/conversion/test_survival.py` and `ranks.py` beside it
test every cell.

✓: outputs, and gradients where there are any, are those of the plain model with all attention rows normalised from
outside, or with C added to the weights themselves (float32, relative error below 2e-5; rounded to bfloat16 or 8 bits:
far nearer to it than the plain model is).  Where the thing is undone, the plain model's output comes back.  "no" is an
error with this reason, not a wrong number.  One exception: that adapters are passed by, as the plain model does before
they are merged, is found by the test and told by nobody.

"""

_PRECONDITIONED = """## Given to `precondition`

There is one small model for every way in which heads are reached; a report's `mechanism` tells which one a module has.

"""

_CORRECTED = """
## Given to `spectral_condition`

One for every way in which W_Q, W_K and W_V are kept; the last has ``correction="polar"``, whose C is in buffers.

"""

_NOTES = """
Also good to know:

- Convert before `torch.compile`, or after: a conversion makes it compile again.  An adapter that takes the place of the
  module behind a hook (LoRA on the output projection of a model whose mechanism is "hook") is found at the next call
  outside of compiled code: run the model once, or call `precondition` again, before you compile it; else it raises.
- torchvision's Swin V2 reads `qkv.weight` itself, converted or not, so adapters on `qkv` have no effect before they are
  merged.  The plain Swin reads `proj.weight` too; converted models call both modules of Swin, and `proj` of Swin V2.
- A forward that reads the weight of a projection without calling it, as those of torchvision's Swin and of
  `torch.nn.MultiheadAttention` do, passes an adapter on it by until that is merged.  `spectral_condition` leaves
  forwards as they are.
- A weight of W_Q, W_K, W_V that is replaced after `spectral_condition` by a property (`torch.nn.utils.parametrize`,
  LoRA on parameters), by a quantizer (torchao, quanto) or with its module makes the next call an error; `restore`
  works.  One that hooks set (pruning, the older weight and spectral norms) gets C on top.  One that is replaced before
  is refused.
- `quantize_dynamic` takes modules of exactly `torch.nn.Linear`: it leaves projections that `spectral_condition` has
  corrected in floating point.  `fold` before it, to have them quantized.
- Adapters of PEFT that add to what a projection gives (LoRA, AdaLoRA, LoHa, LoKr, VeRA, …) are exact on corrected
  projections; all others (DoRA, IA3, OFT, …) are refused when they are made.
- Attention that is called past `nn.Module.__call__`, by `attn.forward(x)`, computes with W + C, also with weights that
  it reads; hooks, of whomever, do not run then.
- `fold` adds C once to a weight that several modules share, and is refused where one of them is not corrected.

What nothing can notice, of `spectral_condition`:

- Programs that change W in place by a factor, and the layer before it by its inverse (SmoothQuant, AWQ), or that prune
  by the size of W, look at W and not at W + C: `fold` first.
- Somebody who calls `F.linear(x, attn.qkv.weight)` outside of the attention's own forward gets W: only forwards get
  W + C.  So does a forward that an instance was given under another name, where it is called past `nn.Module.__call__`
  and reads the weight.
- `spectral_condition` and `fold` of a part of a model do not see modules outside that part which share its weights.
- `quantize_dynamic` says nothing of the projections that it leaves.
- Distributed rows are two processes on CPUs (gloo), compared with one process: with one half of the batch each, or
  under tensor parallelism with half of the heads.  Where q, k and v are one weight nothing was tried: `ColwiseParallel`
  would cut it between them.
"""


def page(things):
    heads = [name for name, survivor in SURVIVORS.items() if survivor.change == "precondition"]
    weights = [name for name in SURVIVORS if name not in heads]
    return _TEXT + _PRECONDITIONED + _table(things, heads) + _CORRECTED + _table(things, weights) + _NOTES


def _table(things, names):
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows += [[f"{thing}", *(_cell(thing, name) for name in names)] for thing in things]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(thing, name):
    return f"no: {NO[thing, name][0]}" if (thing, name) in NO else "✓"


if __name__ == "__main__":
    from tests.conversion import ranks, test_survival

    FILE.write_text(page([*test_survival.THINGS, *ranks.THINGS]))
