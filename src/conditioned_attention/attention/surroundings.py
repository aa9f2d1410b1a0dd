"""Tells whether a call is being recorded into a graph that is run later, instead of being run now."""

import torch

# Before PyTorch 2.12 its function is also True in everything that torch.compile traces; the flag behind it is right.
_ONLY_THE_FLAG_IS_RIGHT = torch.__version__ < "2.12"


def exported_or_traced() -> bool:
    """True inside ``torch.export`` and ``torch.jit.trace``, and False in a call that ``torch.compile`` traces."""
    exporting: bool = torch.compiler._is_exporting_flag if _ONLY_THE_FLAG_IS_RIGHT else torch.compiler.is_exporting()
    return exporting or torch._C._get_tracing_state() is not None
