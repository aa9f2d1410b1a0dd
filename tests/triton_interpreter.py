"""Triton's kernels on a CPU, interpreted; this must run before anything else imports triton."""

import importlib.util
import os

import numpy as np
import torch

VARIABLE = "TRITON_INTERPRET"


KERNELS_RUN = importlib.util.find_spec("triton") is not None


def prepare():
    """Imports the kernels, if there is a Triton, and for the interpreter if there is no GPU.

    Whether they are interpreted is settled by that for the process; the variable, which others read too, is left as it
    was.
    """
    if not KERNELS_RUN or torch.cuda.is_available():
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    from triton.runtime import interpreter

    from conditioned_attention.attention.triton import backward, decode, forward  # noqa: F401

    if before is None:
        del os.environ[VARIABLE]
    _take_bounds_of_loops_from_arrays()
    _ask_for_each_dtype_once()
    _check_each_shape_once()
    _check_for_overflow_in_one_step()
    if hasattr(interpreter, "_LangPatchScope"):  # not in Triton 3.5
        _patch_the_language_once_a_launch()


def _take_bounds_of_loops_from_arrays():
    """Triton takes ``int()`` of arrays with one element, which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def with_index(tensor, *scope):  # Triton 3.5 has no scope, and leaves its patches in place
        patch(tensor, *scope)
        set_attribute = scope[0].set_attr if scope else setattr
        set_attribute(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = with_index


def _ask_for_each_dtype_once():
    """Triton makes a table of 18 dtypes at each of its operations: a tenth of the time of the kernels' tests."""
    from triton.runtime import interpreter

    look_up, known = interpreter._get_np_dtype, {}

    def remembered(its_type):
        name = its_type.scalar.name
        if name not in known:
            known[name] = look_up(its_type)
        return known[name]

    interpreter._get_np_dtype = remembered


def _check_each_shape_once():
    """Each tensor of Triton has a type of its own, whose shape it looks over: a seventh of the time after the above."""
    from triton.language.core import block_type

    look_over, known = block_type.__init__, {}

    def remembered(self, element_ty, shape):
        key = element_ty.name, tuple(getattr(size, "value", size) for size in shape)
        if key not in known:
            look_over(self, element_ty, shape)
            known[key] = self.shape, self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = known[key]

    block_type.__init__ = remembered


def _check_for_overflow_in_one_step():
    """Triton finds overflows of integers by eight interpreted operations for each; NumPy does it by three."""
    from triton.language.semantic import TritonSemantic

    def check(self, lhs, rhs, operation):
        bits = lhs.type.scalar.int_bitwidth
        if bits < 64:
            left, right = (side.handle.data.astype(np.int64) for side in (lhs, rhs))
            found = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__](left, right)
            ends = lhs.type.scalar.get_int_min_value(), lhs.type.scalar.get_int_max_value()
            assert ((found >= ends[0]) & (found <= ends[1])).all(), f"int{bits} overflow in {operation.__name__}"

    TritonSemantic.binary_op_sanitize_overflow_impl = check


def _patch_the_language_once_a_launch():
    """Triton looks through all of its language, and patches it, at every call of one kernel's function by another.

    That was two fifths of the time of the kernels' tests.  Functions of one module see the same language, so within a
    launch the first of them is enough; the end of a launch takes the patches back.
    """
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    seen = set()

    def patch_once(function):
        known = id(function.__globals__) in seen
        seen.add(id(function.__globals__))
        return interpreter._LangPatchScope() if known else patch(function)

    def launch_anew(self, *args, **kwargs):
        seen.clear()
        return launch(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_anew
