import platform
from resource import RUSAGE_SELF, getrusage

import pytest

from cliptex_common.heap import keep_freed_memory, return_freed_memory


def page_faults() -> int:
    """Of allocating, writing and freeing 16 MiB, which are 4,096 pages."""
    before = getrusage(RUSAGE_SELF).ru_minflt
    b"1" * 2**24
    return getrusage(RUSAGE_SELF).ru_minflt - before


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a function of glibc")
def test_freed_memory_is_kept_for_the_next_batch_until_it_is_returned():
    keep_freed_memory()
    page_faults()
    assert page_faults() < 500
    return_freed_memory()
    assert page_faults() > 2_000
