"""Whether a call is recorded for somebody else to run, instead of being run."""

import torch


def exported_or_traced() -> bool:
    """True inside ``torch.export`` and ``torch.jit.trace``; a call that ``torch.compile`` sees is neither.

    The flag, and not ``torch.compiler.is_exporting()``, which reads it: that function is always true inside
    ``torch.compile`` before PyTorch 2.12.
    """
    return torch.compiler._is_exporting_flag or torch._C._get_tracing_state() is not None
