"""The memory that a process has freed and its C library keeps. Libraries other than glibc have no
such functions, and nothing is done."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# parameters of glibc's mallopt(3)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
RETAINED_BYTES = 512 * 2**20


def keep_freed_memory() -> None:
    """Keep up to half a gigabyte of what is freed for the next batch. By default glibc gives large
    blocks back to the system at once, and the page faults of taking them again were a tenth of the
    processor time of a linear probe."""
    with suppress(AttributeError):
        library = ctypes.CDLL(None)
        if not library.mallopt(
            MMAP_THRESHOLD, RETAINED_BYTES
        ):  # some versions refuse more than 32 MiB
            library.mallopt(MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(TRIM_THRESHOLD, RETAINED_BYTES)


def return_freed_memory() -> None:
    """Give freed memory back to the system."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
