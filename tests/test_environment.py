"""The memory of this process, as Linux counts it."""

import mmap
import sys

import pytest

from prunekit.environment import forget_peak_memory, peak_memory, resident_memory


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot forget a peak")
def test_a_peak_is_seen_until_it_is_forgotten():
    large = mmap.mmap(-1, 64 * 2**20)  # freed memory of other kinds may stay with the process
    for page in range(0, len(large), mmap.PAGESIZE):
        large[page] = 1
    assert 64 <= resident_memory() <= peak_memory()
    before = resident_memory()
    large.close()
    if not forget_peak_memory():
        pytest.skip("this kernel does not let a process forget its peak")
    assert peak_memory() < before - 32
