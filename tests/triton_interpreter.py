"""Triton's kernels interpreted on a CPU: `prepare` must run before anything imports triton."""

import importlib.util
import os

import torch


def prepare():
    """Turns the interpreter on where there is no GPU; whether kernels can run at all."""
    if importlib.util.find_spec("triton") is None:
        return False
    if torch.cuda.is_available():
        return True
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def with_index(tensor, scope):
        patch(tensor, scope)
        # Triton 3.6 takes int() of arrays with one element, which numpy 2.4 refuses: loops would have no bounds.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = with_index
    return True
