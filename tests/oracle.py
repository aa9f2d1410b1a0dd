"""The outside oracle: a plain model under it computes what the converted one should; no class or model is known here.

Heads that are `scaled_dot_product_attention`'s are easy (`NormalisedRows`).  Where attention is written out, softmax is
marked, and the mark goes with it through dropout, masks, reshapes and mixing until it meets the values
(`NormalisedHeads`).
"""

from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

# What may happen to weights, or to heads, on their way to where they are multiplied or added up; without underscores.
_CARRIES = {
    "getitem", "as_strided", "cat", "chunk", "clone", "contiguous", "dropout", "expand", "expand_as", "flatten",
    "float", "masked_fill", "movedim", "narrow", "pad", "permute", "reshape", "reshape_as", "split", "squeeze", "to",
    "transpose", "type", "type_as", "unbind", "unflatten", "unsqueeze", "view", "where",
}  # fmt: skip
# What leaves weights the weights of the same queries and keys if it keeps their shape, as gates and mixing of heads do.
_MIXES = {
    "add", "iadd", "radd", "sub", "rsub", "mul", "imul", "rmul", "div", "idiv", "truediv", "itruediv", "conv2d",
    "linear",
}  # fmt: skip
_MULTIPLIES = {"matmul", "bmm", "einsum"}
_ADDS = {"add", "iadd", "radd"}

EPS = 1e-6  # the library's default; dropout leaves smaller rows (1e-44) where masks are -100
_attention = F.scaled_dot_product_attention


def normalised_attention(*args, **kwargs):
    return _unit(_attention(*args, **kwargs), -1)


class NormalisedRows(TorchFunctionMode):
    """Every output row of ``scaled_dot_product_attention`` to unit length, C without gradient."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.multi_head_attention_forward:  # goes by as a whole, with the mode off inside
            with patch.object(F, "scaled_dot_product_attention", normalised_attention):
                return function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            return normalised_attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


class NormalisedHeads(NormalisedRows):
    """`NormalisedRows`, and unit rows in every product of a softmax (along its last axis) with the values.

    A sum of such products (weights that were cut into pieces) is one head, so it is normalised as a whole.  With
    ``of="weights"`` the rows of the softmax get unit length instead.  ``hits`` counts products.
    """

    def __init__(self, of="output"):
        super().__init__()
        self.of, self.hits = of, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "").strip("_")
        tensors = _tensors(args)
        weights = [i for i, tensor in enumerate(tensors) if hasattr(tensor, "_weights")]
        if name in _MULTIPLIES and weights:
            return self._product(function, name, args, weights[0])
        if name in _ADDS and len(tensors) == 2 and all(hasattr(tensor, "_raw") for tensor in tensors):
            return _head(tensors[0]._raw + tensors[1]._raw, tensors[0]._axis)
        result = super().__torch_function__(function, types, args, kwargs)
        if name == "softmax" and _dim(args, kwargs) in (-1, result.dim() - 1):
            return _mark(result)
        if weights and (name in _CARRIES or (name in _MIXES and result.shape == tensors[weights[0]].shape)):
            return _mark(result)
        if name in _CARRIES and args and hasattr(args[0], "_raw") and result.shape[-1:] == args[0].shape[-1:]:
            result._raw, result._axis = function(args[0]._raw, *args[1:], **(kwargs or {})), args[0]._axis
        return result

    def _product(self, function, name, args, position):
        self.hits += 1
        keys, row = _axes(name, args, position)
        if self.of == "output":
            return _head(function(*args), row)
        args = list(args)
        position += name == "einsum"
        args[position] = _unit(args[position], keys)
        return function(*args)


def _tensors(args):
    found = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (tuple, list)):
            found += [x for x in arg if isinstance(x, torch.Tensor)]
    return found


def _dim(args, kwargs):
    return (kwargs or {}).get("dim", args[1] if len(args) > 1 else None)


def _mark(result):
    for tensor in result if isinstance(result, (tuple, list)) else [result]:
        tensor._weights = True
    return result


def _axes(name, args, position):
    """The axis of the weights that is summed over, and the axis of the product that is the value's."""
    if name != "einsum":  # ``weights @ values``, or ``values.T @ weights.T``
        return (-1, -1) if position == 0 else (-2, -2)
    inward, _, out = args[0].replace(" ", "").partition("->")
    letters = inward.split(",")[position]
    (key,), (width,) = set(letters) - set(out), set(out) - set(letters)
    return letters.index(key) - len(letters), out.index(width) - len(out)


def _head(raw, axis):
    result = _unit(raw, axis)
    result._raw, result._axis = raw, axis
    return result


def _unit(rows, axis):
    norm = rows.detach().norm(dim=axis, keepdim=True)
    return rows / norm.clamp_min(EPS).where(norm > 0, 1.0)
