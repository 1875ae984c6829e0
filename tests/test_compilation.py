"""Compiled training against the plain path, and how a compilation that fails is told."""

import pytest
import torch

from stemwise import compilation
from stemwise.errors import UserError


def test_another_mode_says_which_there_are():
    with pytest.raises(UserError, match="compile=fast is not one of default, reduce-overhead"):
        compilation.compiled(torch.neg, "fast")


def test_a_missing_compiler_is_the_users_to_mend(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    function = compilation.compiled(lambda x: (x * 2 + 1).sum(), "default")
    with pytest.raises(UserError, match=r"compile=default: InvalidCxxCompiler.*C\+\+ compiler.*set compile=null"):
        function(torch.rand(100))


def test_a_fault_of_the_compilation_is_not_told_as_the_users(monkeypatch):
    def fails(*_):
        raise torch._dynamo.exc.BackendCompilerFailed(torch.neg, NotImplementedError("View"), None)

    function = compilation.compiled(torch.neg, "default")
    monkeypatch.setattr(function, "function", fails)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        function(torch.rand(1))
