from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from fffconvert.runtime.heap import keep_freed_memory
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(4 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(keep_freed_memory(), faults(), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be asked")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    kept, _, faults = done.stdout.split()
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert int(faults) < 1000  # 20 tensors of 16 MiB have 80,000 pages
