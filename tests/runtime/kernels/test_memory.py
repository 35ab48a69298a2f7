"""Freed memory stays with the process where glibc can be told so, unless somebody else has told it something."""

import os
import platform
import subprocess
import sys

import pytest

ASK = """
import ctypes, resource, torch
from prunekit.runtime.kernels.memory import keep_freed
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4, 1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
first = faults()
print(keep_freed(), keep_freed(), first, faults(), faults())
"""


def asked(**environment):
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    once, again, *numbers = done.stdout.split()
    return once, again, *map(int, numbers)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks of glibc")
def test_memory_that_is_kept_is_not_taken_from_the_system_again():
    once, again, _, _, later = asked()
    assert (once, again) == ("True", "True")
    assert later < 4096  # one block of 16 MiB is 4096 pages, and 20 were made


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_what_the_environment_says_stands(name):
    once, *_ = asked(**{name: str(1 << 20)})
    assert once == "False"
