"""Makes the C library's heap keep freed memory, so that page faults do not drown what is measured."""

from __future__ import annotations

import ctypes
import platform

# mallopt's parameters in glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Keeps freed memory for reuse by the process instead of returning it; False where that is not possible.

    glibc returns large blocks to the system and gets them back page by page, at 1.3 µs per page on a virtual machine;
    whether it does so depends on the history of the heap.  One tensor more or less can then, by chance, make a larger
    difference in time than the arithmetic that is compared, for plain attention as well.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 1 << 30), (_M_TOP_PAD, 1 << 26))
    return all(mallopt(parameter, value) == 1 for parameter, value in wanted)
