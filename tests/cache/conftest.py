"""Fixtures that more than one test file of the cache needs."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that cannot be written: permissions do not stop root, in whose name tests may run."""

    def make(folder: Path) -> None:
        def guarded(name: str, original: Callable[..., object]) -> Callable[..., object]:
            def call(path: object, *arguments: object, **options: object) -> object:
                writes = name != "open" or bool(int(arguments[0]) & (os.O_WRONLY | os.O_RDWR))  # type: ignore[call-overload]
                inside = isinstance(path, int) or Path(os.fspath(path)).is_relative_to(folder)  # type: ignore[arg-type]
                if writes and inside and not (name == "mkdir" and Path(path).exists()):  # type: ignore[arg-type]
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
                return original(path, *arguments, **options)

            return call

        for name in ("open", "unlink", "mkdir", "utime", "replace"):
            monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))

    return make
