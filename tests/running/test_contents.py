"""Hashes of files: right, computed once, and never those of another content."""

import hashlib
import os
from pathlib import Path

import pytest

from stemwise.errors import UserError
from stemwise.running import contents


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"songs/{number} ü\n.wav" for number in range(5)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100_000)
    return paths


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "new" / contents.STORE


def true(paths: list[Path]) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were read to their end."""
    found: list[str] = []
    digest = hashlib.file_digest

    def counted(file, name):
        found.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return found


def test_every_file_is_read_once(files, store, read):
    assert contents.digests([*files, *files], store) == true(files)
    assert sorted(read) == sorted(path.name for path in files)
    assert contents.digests(files, store) == true(files)
    assert contents.digests(files[:2], store) == true(files[:2])
    assert len(read) == len(files)


def test_a_change_is_noticed_even_if_size_and_time_are_as_before(files, store, read):
    before = contents.digests(files, store)
    status = files[1].stat()
    files[1].write_bytes(b"x" * status.st_size)
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    after = contents.digests(files, store)
    assert after == true(files)
    assert after[files[1]] != before[files[1]]
    assert len(read) == len(files) + 1


def test_a_store_that_a_kill_cut_short_costs_one_file(files, store, read):
    contents.digests(files, store)
    whole = store.read_bytes()
    store.write_bytes(whole[:-30])
    assert contents.digests(files, store) == true(files)
    assert contents.digests(files, store) == true(files)
    # The next line is written behind the half one, so that one more file is read once more, and no third.
    assert len(read) <= len(files) + 2


@pytest.mark.parametrize("line", ["[", "[]", "3", "null", '["a", 1, 2, 3, 4]', "[" * 100_000, "\0", "\xff"])
def test_lines_that_say_nothing_are_passed_over(files, store, line):
    store.parent.mkdir()
    store.write_text(f"{line}\n", encoding="latin-1")
    assert contents.digests(files, store) == true(files)


def test_two_at_once_leave_a_whole_store(files, store, read):
    """As two runs do: each appends what it has found."""
    alone = store.with_name("other")
    contents.digests(files[:3], store)
    contents.digests(files[2:], alone)
    store.write_bytes(store.read_bytes() + alone.read_bytes())
    read.clear()
    assert contents.digests(files, store) == true(files)
    assert not read


def test_a_store_that_cannot_be_written_is_only_a_warning(files, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert contents.digests(files, tmp_path / "file" / "store") == true(files)
    assert "STEMWISE_CACHE" in caplog.text


def test_a_file_that_is_not_there_is_named(files, store):
    files[3].unlink()
    with pytest.raises(UserError, match=r"3 ü\n\.wav: cannot be read"):
        contents.digests(files, store)


def test_a_file_that_changes_while_it_is_read_is_refused(files, store, monkeypatch):
    digest = hashlib.file_digest

    def slow(file, name):
        found = digest(file, name)
        with open(file.name, "ab") as other:
            other.write(b"more")
        return found

    monkeypatch.setattr(hashlib, "file_digest", slow)
    with pytest.raises(UserError, match="changed while it was read"):
        contents.digests(files[:1], store)
