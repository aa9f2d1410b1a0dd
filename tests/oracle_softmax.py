"""The outside oracle for attention that is written out: softmax, then whatever, then the product with the values.

A softmax is marked with the axis its keys lie on, and the mark goes with it until it meets the values.
"""

from tests.models import NormalisedRows

# Operations on a marked tensor (with or without underscores around) whose result has its keys where they were.
_KEEP = {
    *("add", "iadd", "radd", "sub", "rsub", "mul", "imul", "rmul", "div", "idiv", "truediv", "itruediv"),
    *("contiguous", "conv2d", "dropout", "float", "linear", "to", "type_as"),
}
_PRODUCTS = {"bmm", "matmul"}
_RESHAPE = {"flatten", "reshape", "unflatten", "view"}


class NormalisedAttention(NormalisedRows):
    """`NormalisedRows`, and unit rows in every product of a softmax (mixed over heads or not) with the values."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        name = function.__name__.strip("_")
        if name == "softmax":
            dim = (kwargs or {}).get("dim", args[1] if len(args) > 1 else None)
            result.key_axis = dim if dim < 0 else dim - result.dim()
            return result
        marks = [getattr(x, "key_axis", None) for x in args[:2]]
        if marks == [None] * len(marks):
            return result
        if name in _PRODUCTS:
            return _unit(result, -1 if marks[0] is not None else -2, marks)
        keys = next(mark for mark in marks if mark is not None)
        if name in _KEEP or (name in _RESHAPE and result.shape[keys:] == args[0].shape[keys:]):
            result.key_axis = keys
        elif name in ("permute", "transpose"):
            result.key_axis = _moved(name, args, keys)
        return result


def _unit(product, dim, marks):
    """``weights @ values`` has its rows along the last axis, ``values.T @ weights.T`` along the one before."""
    assert marks in ([-1, None], [None, -2]), "a softmax is multiplied along another axis than that of its keys"
    norm = product.detach().norm(dim=dim, keepdim=True)
    return product / norm.where(norm > 0, 1.0)


def _moved(name, args, keys):
    x, *axes = args
    if name == "permute":
        order = axes[0] if isinstance(axes[0], (tuple, list)) else axes
    else:
        order = list(range(x.dim()))
        order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
    return [axis % x.dim() for axis in order].index(keys % x.dim()) - x.dim()
