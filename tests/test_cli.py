import subprocess
import sys

import pytest

import stemwise as stemwise_package
from stemwise import index

INTERRUPTED = """
import sys, signal, builtins
from stemwise import cli
sys.argv = ["stemwise", *sys.argv[2:]]
load = builtins.__import__
def interrupt(name, *rest, **more):
    if name == "torch":
        signal.raise_signal(signal.SIGINT)
    return load(name, *rest, **more)
builtins.__import__ = interrupt
sys.exit(cli.main())
"""


@pytest.mark.parametrize("command", ["separate song.wav --model m", "evaluate checkpoint=m", "train"])
def test_ctrl_c_ends_with_one_line_even_while_modules_load(tmp_path, command):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("Interrupted.")
    assert done.stderr.count("\n") == 1


def test_version(stemwise):
    done = stemwise("--version")
    assert (done.code, done.output) == (0, f"stemwise {stemwise_package.__version__}\n")


def test_index_writes_what_a_data_set_would_use(stemwise, songs, tmp_path):
    done = stemwise("index", "folders", songs, "-o", "csvs")
    assert done.code == 0, done.output
    splits = {path.stem: index.read(path, songs) for path in (tmp_path / "csvs").iterdir()}
    assert set(splits) == {"train", "valid", "test"}
    tracks = [track for split in splits.values() for track in split.tracks]
    assert sorted(track.name for track in tracks) == [f"Song {number}" for number in range(6)]
    assert all(track.duration for track in tracks)


@pytest.mark.parametrize("target", ["/proc/x", "file", "file/deeper"])
def test_an_index_that_cannot_be_written_is_a_wrong_use(stemwise, songs, tmp_path, target):
    (tmp_path / "file").write_text("mine")
    done = stemwise("index", "folders", songs, "-o", target)
    assert done.code == 2
    assert "cannot be written" in done.output
    assert "Traceback" not in done.output
    assert (tmp_path / "file").read_text() == "mine"


def test_index_of_nothing_is_a_wrong_use(stemwise, tmp_path):
    done = stemwise("index", "folders", "nowhere", "-o", "csvs")
    assert done.code == 2
    assert "nowhere" in done.output
    assert "Traceback" not in done.output


def test_help_teaches(stemwise):
    assert "separate SONG.mp3 --model M" in stemwise("--help").output
    assert "stemwise separate 'My Song.mp3' --model spleeter:4stems" in stemwise("separate", "--help").output
    assert "example: stemwise index folders" in stemwise("index", "--help").output
    done = stemwise("separate")
    assert done.code == 2
    assert "required" in done.output
