import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from stemwise import process
if sys.argv[1:]:
    process.keep_freed_memory()
def step():  # tensors of 40 to 100 MB, as many at once as a training step has
    held = [torch.ones(5_000_000 * (2 + number % 4)) for number in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_used_again():
    """A page that the kernel hands out anew is a fault."""
    assert faults("keep") < 0.2 * faults()


def test_another_c_library_is_left_alone(monkeypatch):
    from stemwise import process

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(process.ctypes, "CDLL", lambda _: pytest.fail("was asked"))
    process.keep_freed_memory()


def test_what_is_too_small_becomes_zero_in_every_thread():
    """Also in the threads that torch starts for a large tensor."""
    code = (
        "import torch; from stemwise import process; process.prepare(); torch.set_num_threads(2);"
        "tiny = torch.full((4_000_000,), 1e-38) * 0.1; print(int(tiny.count_nonzero()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
