"""torch.compile for training: says what takes so long, and what to do where it cannot.

A compiled function is made for the shapes of its first call; call it with others and it is compiled again.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import CppCompileError, GPUTooOldForTriton, InvalidCxxCompiler, TritonMissing

from stemwise.errors import UserError

log = logging.getLogger(__name__)

# Modes of torch.compile. Those with CUDA graphs launch a whole step at once; on a CPU they are like the others.
GRAPHS = ("reduce-overhead", "max-autotune")
# What the machine lacks; anything else that goes wrong in a compilation is no mistake of the user.
LACKING = (InvalidCxxCompiler, CppCompileError, TritonMissing, GPUTooOldForTriton)
MODES = ("default", *GRAPHS, "max-autotune-no-cudagraphs")


def compiled(function: Callable[..., Tensor], mode: str) -> Callable[..., Tensor]:
    """`function`, which is compiled in its first call; a weight is the same tensor before and after.

    Raises `UserError` for a mode that is not one of `MODES`, and in the first call if there is no compiler.
    """
    check(mode)
    # torch keeps eight variants of a function and gives up at the ninth: a sweep trains many models in one process.
    torch.compiler.reset()
    return _Compiled(torch.compile(function, mode=mode, dynamic=False), mode)


def check(mode: str) -> None:
    """Raises `UserError` for a mode that is not one of `MODES`."""
    if mode not in MODES:
        raise UserError(f"compile={mode} is not one of {', '.join(MODES)}, or null.")


class _Compiled:
    """Says when the first call starts and how long it took."""

    def __init__(self, function: Callable[..., Tensor], mode: str) -> None:
        self.function, self.mode, self.called = function, mode, False

    def __call__(self, *arguments: Any) -> Tensor:
        if not self.called:
            self.called = True
            return self._first(*arguments)
        if self.mode not in GRAPHS:
            return self.function(*arguments)
        torch.compiler.cudagraph_mark_step_begin()
        return self.function(*arguments).clone()  # the next call writes where this one wrote

    def _first(self, *arguments: Any) -> Tensor:
        _say("compile=%s: compiling the networks, which takes a minute or more.", self.mode)
        start = time.monotonic()
        try:
            result = self.function(*arguments).clone()
        except (BackendCompilerFailed, *LACKING) as error:
            cause = getattr(error, "inner_exception", error)
            if not isinstance(cause, LACKING):
                raise
            raise UserError(
                f"compile={self.mode}: {type(cause).__name__}: {str(cause).strip().splitlines()[0]}. "
                "torch.compile needs a C++ compiler (apt install g++, or name it in CXX), on a GPU Triton too. "
                "Or set compile=null."
            ) from error
        _say("The first pass took %.0f s.", time.monotonic() - start)
        return result


@rank_zero_only
def _say(text: str, *values: object) -> None:
    log.info(text, *values)
