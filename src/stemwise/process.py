"""How a program of ours sets up the process that it runs in, before it computes anything.

Freed memory is kept for the next tensors: what the kernel hands out is filled with zeros page by page, which takes
longer than an activation function does. Numbers too small for float32's full precision (below 1.2e-38) become zero:
a processor takes many times as long for them, and gradients are full of them. TensorFlow, and so Spleeter, does that
too.
"""

import ctypes
import platform

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's <malloc.h>


def prepare() -> None:
    """For a program's start, before torch has started its threads, which inherit it."""
    keep_freed_memory()
    torch.set_flush_denormal(True)


def keep_freed_memory() -> None:
    """From now on freed memory stays with the process. Does nothing without glibc.

    By default glibc maps every block of more than 32 MB anew (mallopt(3)). A training step in float32 takes a third
    less time without that, and memory at its peak is the same.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)  # never
