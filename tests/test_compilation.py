"""Compiled training against the plain path, and how a compilation that fails is told."""

import os
import re
import subprocess
import sys

import pytest
import torch

from stemwise import compilation
from stemwise.errors import UserError


def test_another_mode_says_which_there_are():
    with pytest.raises(UserError, match="compile=fast is not one of default, reduce-overhead"):
        compilation.compiled(torch.neg, "fast")


MISSING = """
import torch
from stemwise import compilation
from stemwise.errors import UserError

try:
    compilation.compiled(lambda x: (x * 2 + 1).sum(), "default")(torch.rand(100))
except UserError as error:
    print(error)
"""


def test_a_missing_compiler_is_the_users_to_mend(tmp_path):
    """In a process of its own: a compilation that fails leaves torch unable to compile anything else."""
    places = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    options = {"capture_output": True, "text": True, "check": True, "env": os.environ | places}
    said = subprocess.run([sys.executable, "-c", MISSING], **options).stdout
    assert re.fullmatch(r"compile=default: InvalidCxxCompiler.*C\+\+ compiler.*set compile=null\.\n", said)


def test_a_fault_of_the_compilation_is_not_told_as_the_users(monkeypatch):
    def fails(*_):
        raise torch._dynamo.exc.BackendCompilerFailed(torch.neg, NotImplementedError("View"), None)

    function = compilation.compiled(torch.neg, "default")
    monkeypatch.setattr(function, "function", fails)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        function(torch.rand(1))
