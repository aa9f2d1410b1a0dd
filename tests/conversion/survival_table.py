"""`docs/survival.md`, as the tests have it; written by ``python -m tests.conversion.survival_table``."""

from pathlib import Path

from tests.conversion.survivors import SURVIVORS

FILE = Path(__file__).parents[2] / "docs" / "survival.md"

_SWAPS = [name for name in SURVIVORS if name.startswith("class swap")]
_PRECONDITIONED = [name for name, survivor in SURVIVORS.items() if survivor.change == "precondition"]
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
        ("torch.compile of the attention's forward, then conversion; restore", name): (
            "convert first, or compile the model or module (`module.compile()`)",
            "its forward has become torch.compile of a method: convert first",
        )
        for name in _SWAPS
    },
    **{
        ("another forward (MethodType), then conversion", name): (
            "what it computes is not known",
            "its forward has been replaced by tests.conversion.test_survival.put_another_forward",
        )
        for name in _PRECONDITIONED
    },
    **{
        ("another forward (MethodType) on the attention of a converted model", name): (
            "what it computes is not known; raises when it is called, `restore` works",
            "was converted",
        )
        for name in _PRECONDITIONED
        if not name.startswith("interface")  # which it still calls
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
    ("LoRA saved alone, loaded onto the plain model, `apply_conditioning`", _POLAR): (
        "C is in the state_dict of the base model: load that too",
        "load the checkpoint's state_dict into the model",
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
error with this reason, not a wrong number.  One exception: where a model passes unmerged adapters by, as the plain
model does, no error is raised.

"""

_GIVEN_TO_PRECONDITION = """## Given to `precondition`

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
- A forward on the instance (`module.forward = …`) that is accelerate's, or the module's own method, goes along with a
  conversion.  A wrapper around the method (torch.compile, activation checkpointing, a decorator) is exact where the
  mechanism is "hook" or "interface"; for a class swap convert first, and wrap then.  A function that is something else
  is refused by name, and so is one put on the class of a library; on the interface one that calls
  `ALL_ATTENTION_FUNCTIONS` itself is converted.  One that comes after the conversion raises when the module is called.
- Where timm's `fused_attn` is False, converted modules call `attn_drop` (and Swin's `softmax`) on the weights as timm
  does, so hooks on them read, and change, what they did before.
- Heads may be pruned before or after conversion: their number is read at each call, where the module's own forward
  reads it.
- Distributed rows are two processes on CPUs (gloo), compared with one process: with one half of the batch each, or
  under tensor parallelism with half of the heads.  Where q, k and v are one weight nothing was tried: `ColwiseParallel`
  would cut it between them.
- Rows about records go by the guard (`precondition(model, guard=True)`), or for `spectral_condition` by what
  `conditioning(model)` returns.  A record says what is true when the state_dict, or the config, is written: a block
  that was dropped, doubled or moved is recorded where it stands then.  A record of a model around the one that is
  loaded, or of a part of it, fits with `apply_conditioning(model, partial=True)`.
- Non-persistent buffers of a model that is built on meta, and the ties of its weights, are its own affair, as without
  conversion.  `AveragedModel(use_buffers=True)` damages integer buffers (Swin's indices), converted or not.

## What nothing can notice

These run without C and say nothing, because nothing of ours is there when they happen:

- a block that computes attention itself and never calls the attention module, or that calls
  `attention.forward(x)` past the hooks of one whose mechanism is "hook" and whose heads are its output; a wrapper that
  holds the module's method and calls it only sometimes, or, before a hook, not at all; a compiled function that was
  handed such a forward after conversion, until the model runs once uncompiled; heads pruned from a class that was
  registered with their number, and not with the name of an attribute;
- programs that change W in place by a factor, and the layer before it by its inverse (SmoothQuant, AWQ), or that prune
  by the size of W, look at W and not at W + C: `fold` first;
- somebody who calls `F.linear(x, attn.qkv.weight)` outside of the attention's own forward gets W: only forwards get
  W + C; so does a forward that an instance was given under another name, where it is called past `nn.Module.__call__`
  and reads the weight;
- modules outside of a part that is given to `spectral_condition` or `fold`, which share its weights: they are not seen;
- `quantize_dynamic` says nothing of the projections with a correction that it leaves;
- a checkpoint without config.json and without a guard: weights do not tell;
- a guarded checkpoint loaded into a *plain* model with `strict=False`, as Trainer does to resume, by
  `from_pretrained` (which lists the guard as UNEXPECTED), or by `torch.distributed.checkpoint`, which reads the keys
  that the model asks for and no others; there, give `apply_conditioning(model, folder)` the folder first;
- `DefaultLoadPlanner(allow_partial_load=True)`, which leaves what is missing as it is, into a model that is
  conditioned differently;
- an adapter loaded without `apply_conditioning(model)` afterwards; PEFT puts no field of ours into
  adapter_config.json where `task_type` is None, which is a warning when the model is converted, or when its
  state_dict is made;
- a part of a Hugging Face model converted by itself, `precondition(whole.vision_model)`, when the whole is saved:
  config.json of the whole says nothing, so what is loaded runs plain until `apply_conditioning`, which finds the
  record of the part. A warning says so where the part is of a kind that stands inside of others;
- a converted block that is moved into an unguarded model: it computes with C there, and the record of that model is
  made only if somebody asks `conditioning` for it;
- a Hugging Face checkpoint that is loaded, and saved again without `apply_conditioning` in between: transformers drops
  the mark that makes it raise; the record stays, and `apply_conditioning` finds it;
- a model that is built from the config object of a converted one;
- a model of a Hugging Face class that asks neither for attention functions nor for masks, loaded without
  `apply_conditioning`.
"""


def page(things):
    heads = [name for name, survivor in SURVIVORS.items() if survivor.change == "precondition"]
    weights = [name for name in SURVIVORS if name not in heads]
    return _TEXT + _GIVEN_TO_PRECONDITION + _table(things, heads) + _CORRECTED + _table(things, weights) + _NOTES


def _table(things, names):
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows += [[f"{thing}", *(_cell(thing, name) for name in names)] for thing in things]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(thing, name):
    return f"no: {NO[thing, name][0]}" if (thing, name) in NO else "✓"


if __name__ == "__main__":
    from tests.conversion import ranks, test_survival

    FILE.write_text(page([*test_survival.THINGS, *ranks.THINGS]))
