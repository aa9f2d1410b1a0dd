"""Whether a call is recorded for somebody else to run, instead of being run."""

import torch

# Before PyTorch 2.12 its function is true in all that torch.compile sees; the flag behind it is right there too.
_ONLY_THE_FLAG_IS_RIGHT = torch.__version__ < "2.12"


def exported_or_traced() -> bool:
    """True inside ``torch.export`` and ``torch.jit.trace``; a call that ``torch.compile`` sees is neither."""
    exporting: bool = torch.compiler._is_exporting_flag if _ONLY_THE_FLAG_IS_RIGHT else torch.compiler.is_exporting()
    return exporting or torch._C._get_tracing_state() is not None
