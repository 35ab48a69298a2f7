"""The memory of this process, as Linux counts it."""

import sys

import pytest

from prunekit.environment import forget_peak_memory, peak_memory, resident_memory


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot forget a peak")
def test_a_peak_is_seen_until_it_is_forgotten():
    large = bytearray(b"1") * (64 * 2**20)
    assert peak_memory() >= resident_memory() >= 64
    before = peak_memory()
    del large
    if not forget_peak_memory():
        pytest.skip("this kernel does not let a process forget its peak")
    assert peak_memory() < before - 32
