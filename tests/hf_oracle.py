"""An outside oracle for softmax computed by hand; no class, module or model is known here."""

import torch

from tests.models import NormalisedRows

# What may happen to attention weights, or to heads, on their way to where they are multiplied or added up.
_CARRIES = {
    "__getitem__", "as_strided", "cat", "chunk", "clone", "contiguous", "dropout", "dropout_", "expand", "expand_as",
    "flatten", "float", "masked_fill", "movedim", "narrow", "pad", "permute", "reshape", "reshape_as", "split",
    "squeeze", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unsqueeze", "view", "where",
}  # fmt: skip
_MULTIPLIES = {"matmul", "__matmul__", "bmm", "einsum"}
_ADDS = {"add", "add_", "__add__", "__iadd__", "__radd__"}


class NormalisedHeads(NormalisedRows):
    """Marks what softmax returns, and normalises the rows of the products in which it is a factor.

    A sum of such products (weights that were cut into pieces) is one head, so it is normalised as a whole.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name == "softmax":
            return _mark(function(*args, **(kwargs or {})))
        tensors = _tensors(args)
        weights = bool(tensors) and hasattr(tensors[0], "_weights")
        if name in _MULTIPLIES and weights:
            return _head(function(*args, **(kwargs or {})), _row_axis(name, args))
        if name == "bmm" and hasattr(args[1], "_weights"):  # heads and weights, both transposed
            return _head(function(*args), -2)
        if name in _ADDS and len(tensors) == 2 and all(hasattr(t, "_raw") for t in tensors):
            return _head(tensors[0]._raw + tensors[1]._raw, tensors[0]._axis)
        result = super().__torch_function__(function, types, args, kwargs)
        if name in _CARRIES and weights:
            return _mark(result)
        if name in _CARRIES and args and hasattr(args[0], "_raw") and result.shape[-1:] == args[0].shape[-1:]:
            result._raw, result._axis = function(args[0]._raw, *args[1:], **(kwargs or {})), args[0]._axis
        return result


def _tensors(args):
    found = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (tuple, list)):
            found += [x for x in arg if isinstance(x, torch.Tensor)]
    return found


def _mark(result):
    for tensor in result if isinstance(result, (tuple, list)) else [result]:
        tensor._weights = True
    return result


def _row_axis(name, args):
    """The axis of the product that is the value's and not the weights'."""
    if name != "einsum":
        return -1
    letters, _, out = args[0].replace(" ", "").partition("->")
    (axis,) = set(out) - set(letters.split(",")[0])
    return out.index(axis) - len(out)


def _head(raw, axis):
    norm = raw.detach().norm(dim=axis, keepdim=True)
    result = raw / norm.where(norm > 0, 1.0)
    result._raw, result._axis = raw, axis
    return result
