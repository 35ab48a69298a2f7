"""glibc keeps freed memory for the process, unless the environment configures malloc differently."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
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


def run_script(**environment):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    once, again, *numbers = done.stdout.split()
    return once, again, *map(int, numbers)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns glibc only")
def test_kept_memory_is_not_requested_from_the_system_again():
    once, again, _, _, later = run_script()
    assert (once, again) == ("True", "True")
    assert later < 4096  # one block of 16 MiB is 4096 pages, and 20 were allocated


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_settings_of_the_environment_take_precedence(name):
    once, *_ = run_script(**{name: str(1 << 20)})
    assert once == "False"
