"""Keeps a program running if it cannot write its output: limited terminals, full disks, readers that have left.

Only for programs, which own their standard output and error: the command line and the worker processes of a comparison.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from contextlib import suppress
from typing import Any

_PLAIN_LETTERS = "conditioned_attention.plain_letters"
_SPELT = {
    "κ": "kappa", "λ": "lambda", "σ": "sigma", "μ": "mu", "µ": "mu", "δ": "delta", "α": "alpha", "ε": "eps", "τ": "tau",
    "π": "pi", "×": "x", "±": "+/-", "−": "-", "–": "-", "—": "-", "·": "*", "‖": "||", "√": "sqrt ", "≤": "<=",
    "≥": ">=", "≈": "~", "→": "->", "←": "<-", "…": "...", "ᵀ": "^T", "⁻": "-",
}  # fmt: skip


def survive(*, quiet: bool = False) -> None:
    """Makes sure that `sys.stdout` and `sys.stderr` can always be written to.

    Characters that a terminal cannot print are spelt out (κ becomes kappa), and names of files that are not UTF-8 are
    printed byte by byte, as they are.  Output that cannot be written because the disk is full or the reader has left is
    dropped, which is reported once on standard error.  A stream that was closed when the program began accepts
    everything and keeps nothing.

    Streams that other code has put there keep their destination.

    Args:
        quiet: do not report a lost stream.
    """
    codecs.register_error(_PLAIN_LETTERS, _in_plain_letters)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nowhere(number))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _kept(stream, number, quiet))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_errors(stream))


def lost(stream: Any) -> OSError | None:
    """Why a stream of `survive` can no longer be written to; None if it can, or if only its reader has left."""
    with suppress(ValueError):  # it is closed
        stream.flush()
    raw = getattr(stream, "buffer", None)
    raw = getattr(raw, "raw", raw)
    reason = raw.lost if isinstance(raw, _Kept) else None
    return None if reason is None or reason.errno == errno.EPIPE else reason


class _Kept(io.FileIO):
    """A file descriptor whose writes do not fail: after the first one that would, nothing more is written.

    Attributes:
        lost: the reason; None as long as everything is written.
    """

    def __init__(self, number: int, quiet: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self.lost: OSError | None = None
        self.quiet = quiet or number == 2  # a loss of standard error cannot be reported

    def write(self, data: Any, /) -> int:
        if self.lost is None:
            try:
                while (written := super().write(data)) is None:  # it does not block, and a slow terminal is not ready
                    select.select([], [self.fileno()], [])
                return written
            except OSError as error:
                self.lost = error
                if not self.quiet:
                    reason = "its reader has left" if error.errno == errno.EPIPE else error.strerror
                    print(f"warning: cannot write to standard output ({reason}); continuing", file=sys.stderr)
        return memoryview(data).nbytes


def _kept(stream: io.TextIOWrapper, number: int, quiet: bool) -> io.TextIOWrapper:
    with suppress(OSError):
        stream.flush()
    raw = _Kept(number, quiet)
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer, stream.encoding, _errors(stream), line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )  # fmt: skip


def _nowhere(number: int) -> io.TextIOWrapper:
    """A stream that keeps nothing; its descriptor is occupied, since the next file to be opened would get it."""
    try:
        os.fstat(number)
    except OSError:
        taken = os.open(os.devnull, os.O_WRONLY)
        if taken != number:
            os.dup2(taken, number)
            os.close(taken)
    return open(os.devnull, "w", encoding="utf-8", errors=_PLAIN_LETTERS)


def _errors(stream: Any) -> str:
    """Our error handler, unless the user has chosen another one (``PYTHONIOENCODING=ascii:ignore``)."""
    return _PLAIN_LETTERS if stream.errors in ("strict", "surrogateescape", "backslashreplace") else str(stream.errors)


def _in_plain_letters(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler for `codecs`: spells out the next character that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter, following = error.object[error.start], error.start + 1
    if "\udc80" <= letter <= "\udcff":  # a byte of a name that Python could not read
        return bytes([ord(letter) - 0xDC00]), following
    decomposed = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return _SPELT.get(letter) or decomposed or "?", following


def meanwhile(words: str) -> None:
    """Says on a terminal what is going on while there is no other output; never in a file or a pipe."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"{words} …", file=sys.stderr)
