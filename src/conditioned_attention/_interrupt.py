"""Ends the process without a traceback if Ctrl-C comes while the command line is still being imported.

That import takes seconds.  This module is imported before everything else, and has no effect unless this process is
the command or one of its workers.
"""

from __future__ import annotations

import os  # only a few modules, as Ctrl-C may come while they are imported
import signal
import sys
from contextlib import suppress


def imported() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again; called when everything is imported."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    called = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if called == "-m":  # instead of a file's name, while `python -m` imports the package
        words = sys.orig_argv
        return "-m" in words[:-1] and words[words.index("-m") + 1] == "conditioned_attention"
    return called in ("conditioned-attention", "conditioned-attention.exe", "conditioned-attention-script.py")


def _leave(*_: object) -> None:
    """Exits at once: nothing has begun, and an exception in the middle of an import may be taken for another one."""
    if "--multiprocessing-fork" not in sys.orig_argv:  # only one of several processes says so
        os.write(2, b"\nstopped\n")
    os._exit(130)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # in a thread of somebody else's program
        signal.signal(signal.SIGINT, _leave)
