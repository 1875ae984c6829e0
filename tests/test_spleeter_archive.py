"""Hostile and damaged archives are refused before anything is made of them."""

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from release import FOLDER, Server, left, refused, serving, small_archive, tar
from stemwise import pretrained
from stemwise.errors import UserError
from stemwise.spleeter import archive as spleeter_archive


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_archive(tmp_path_factory.mktemp("spleeter") / "2stems")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info, b"x" * (10 if kind == tarfile.REGTYPE and not size else size)


def long_header(size: int) -> bytes:
    """A tar whose first header says that a name of `size` bytes follows."""
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT) + b"x" * min(size, 10**7)


def negative_size() -> bytes:
    """A tar whose second member leads back to itself (CVE-2025-8194)."""
    first, second = tarfile.TarInfo("a").tobuf(), bytearray(tarfile.TarInfo("b").tobuf())
    second[124:136] = b"\xff" * 10 + (2**16 - 512).to_bytes(2, "big")
    second[148:156] = b" " * 8
    second[148:156] = b"%06o\0 " % sum(second)
    return first + bytes(second) + bytes(4096)


def large_claim() -> bytes:
    info = tarfile.TarInfo("unwanted")
    info.size = 2**33 - 1
    return info.tobuf()


HOSTILE = {
    "leads out: absolute": (lambda: tar([member("/tmp/model.index")]), "leads out of its folder"),
    "leads out: up": (lambda: tar([member("../model.index")]), "leads out of its folder"),
    "leads out: up inside": (lambda: tar([member("a/../../model.index")]), "leads out of its folder"),
    "leads out: unwanted": (lambda: tar([member("../../.profile")]), "leads out of its folder"),
    "leads out: Windows": (lambda: tar([member("..\\model.index")]), "leads out of its folder"),
    "symbolic link": (lambda: tar([member("model.index", tarfile.SYMTYPE, "/etc/passwd")]), "no plain file"),
    "hard link": (lambda: tar([member("checkpoint", tarfile.LNKTYPE, "/etc/passwd")]), "no plain file"),
    "device": (lambda: tar([member("checkpoint", tarfile.CHRTYPE)]), "no plain file"),
    "pipe": (lambda: tar([member("checkpoint", tarfile.FIFOTYPE)]), "no plain file"),
    "link, then through it": (
        lambda: tar([member("out", tarfile.SYMTYPE, "/tmp"), member("out/model.index"), member("checkpoint")]),
        "more than one checkpoint",
    ),
    "twice": (lambda: tar([member("checkpoint"), member("checkpoint")]), "more than one checkpoint"),
    "twice, but for case": (lambda: tar([member("m.index"), member("M.index")]), "more than one checkpoint"),
    "two folders": (lambda: tar([member("a/checkpoint"), member("b/model.index")]), "more than one checkpoint"),
    "too deep": (lambda: tar([member("a/b/checkpoint")]), "holds no checkpoint"),
    "nothing wanted": (
        lambda: tar([member("evil.py"), member("._model.index"), member("x.sh")]),
        "holds no checkpoint",
    ),
    "many files": (lambda: tar([member(f"{i}.txt") for i in range(1100)]), "more than 1000 files"),
    "bomb": (lambda: tar([member("model.index", size=512 * 10**4)]), "unpacks to more than the 1000000 bytes"),
    "bomb in what is not wanted": (lambda: gzip.compress(large_claim()), "unpacks to more than the 1000000 bytes"),
    "long header": (lambda: gzip.compress(long_header(10**7)), "a header of 10"),
    "endless header": (lambda: gzip.compress(long_header(2**33 - 1)), "a header of 8"),
    "negative size": (lambda: gzip.compress(negative_size()), "a size below zero|a damaged one"),
    "headers without end": (lambda: gzip.compress(long_header(1)[:512].ljust(1024, b"x") * 900), "damaged"),
    "no gzip": (lambda: b"hello", "not a tar.gz"),
    "damaged gzip": (lambda: gzip.compress(b"x" * 1000)[:10] + b"\xff" * 50, "not a tar.gz"),
    "no tar": (lambda: gzip.compress(b"hello" * 1000), "not a tar.gz"),
    "empty": (lambda: b"", "not a tar.gz|holds no checkpoint"),
    "no checkpoint in it": (lambda: tar([member("checkpoint")]), "checkpoint"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(server, monkeypatch, tmp_path, case):
    monkeypatch.setattr(spleeter_archive, "LARGEST_UNPACKED", 10**6)
    make, message = HOSTILE[case]
    server.publish(make())
    with pytest.raises(UserError, match=message) as error:
        pretrained.path("spleeter:2stems")
    assert str(error.value).startswith(f"{server.host}{FOLDER}2stems.tar.gz: ")
    assert str(tmp_path) not in str(error.value), "names a folder that is gone"
    assert left(tmp_path) == []


def test_cut_and_damaged_archives_are_refused(server, archive):
    plain = gzip.decompress(archive)
    damaged = [archive[: len(archive) // 2], archive[:100] + b"\xff" * 50 + archive[150:]]
    damaged += [gzip.compress(plain[:count]) for count in (100, 600, 1500)]
    for content in damaged:
        server.publish(content)
        assert "2stems.tar.gz: " in refused()
    assert left(pretrained.cache()) == []
