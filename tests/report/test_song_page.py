"""`stemwise separate --report`: the page beside the stems, and what is heard on it."""

import json
import math
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

from sounds import decoded
from stemwise import audio, model_file
from stemwise.errors import UserError


@pytest.fixture
def model_path(small_separator, tmp_path):
    model_file.save(small_separator, tmp_path / "model.safetensors", {})
    return tmp_path / "model.safetensors"


def write(path, seconds=2.0, rate=44100):
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * frequency * (1 + 0.02 * time) * time) for frequency in (220, 475, 990))
    soundfile.write(path, 0.15 * tones, rate)
    return path


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def data_of(page):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page.read_text(), re.S)[1])


def played(page):
    """(V, N) of the first chunk, at 48 kHz."""
    data = data_of(page)
    script = (page.parent / "report_files" / data["key"] / "0.js").read_text()
    guard = round(48000 * data["guard"])
    return np.stack(
        [decoded(sound)[0, guard:] for sound in json.loads(script[script.rindex("[") : script.rindex("]") + 1])]
    )


def test_the_page_plays_the_mixture_and_the_stems(stemwise, model_path, tmp_path):
    write(tmp_path / "A song.wav")
    excerpt = ["--offset", "0.5", "--duration", "1.2", "--two-stems", "vocals"]
    done = stemwise("separate", "A song.wav", "-m", model_path, "-o", "out", "--report", *excerpt)
    assert done.code == 0, done.output
    assert "\n  to listen, open out/A song/report.html in a browser" in done.output
    page = tmp_path / "out/A song/report.html"
    assert "<h1>A song</h1>" in page.read_text()
    assert data_of(page)["seconds"] == 1.2
    song = audio.read(tmp_path / "A song.wav", sample_rate=48000, channels=1)[0, 24000:][:57600].numpy()
    stems = [
        audio.read(tmp_path / f"out/A song/{n}.wav", sample_rate=48000, channels=1) for n in ("vocals", "no_vocals")
    ]
    expected = np.stack([song, *(stem[0].numpy() for stem in stems)])
    error = played(page)[:, :57600] - expected
    assert np.abs(error).mean() < 0.05 * np.abs(expected).mean()


def test_each_song_has_its_page_and_keeps_it(stemwise, model_path, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.wav", rate=8000)
    command = ["separate", "a.wav", "b.wav", "-m", model_path, "-o", "out", "-f", "{filename}_{instrument}.{codec}"]
    assert stemwise(*command).code == 0
    stems = files(tmp_path / "out")
    assert stemwise(*command, "--report").code == 0
    both = files(tmp_path / "out")
    assert {name for name in both if name.endswith(".html")} == {"a_report.html", "b_report.html"}
    assert {name: both[name] for name in stems} == stems
    done = stemwise(*command, "--report")
    assert "a.wav: its stems are there" in done.output
    assert files(tmp_path / "out") == both
    assert stemwise(*command, "--report", "--overwrite").code == 0
    new = files(tmp_path / "out")
    assert len(new) == len(both)  # the files of the pages before are gone
    assert new["a_report.html"] != both["a_report.html"]


def test_a_page_of_another_overlap_is_another(small_separator, model_path):
    from stemwise.commands import song_pages
    from stemwise.separation import Wish

    before = song_pages.key(str(model_path), small_separator, Wish())
    small_separator.overlap = 0.5
    assert song_pages.key(str(model_path), small_separator, Wish()) != before


def test_a_page_is_replaced_only_if_asked(stemwise, model_path, tmp_path):
    write(tmp_path / "a.wav", rate=8000)
    command = ["separate", "a.wav", "-m", model_path, "-o", "out", "--report"]
    page = tmp_path / "out/a/report.html"
    assert stemwise(*command, "--stems", "vocals").code == 0
    first = page.read_bytes()
    done = stemwise(*command)  # makes the stem that is missing, and keeps the page that shows one only
    assert done.code == 0, done.output
    assert (tmp_path / "out/a/accompaniment.wav").exists()
    assert page.read_bytes() == first
    assert "keeps out/a/report.html, which is of another model, other stems or another part; --overwrite" in done.output
    assert stemwise(*command, "--overwrite").code == 0
    assert page.read_bytes() != first
    (tmp_path / "out/a/vocals.wav").unlink()
    done = stemwise(*command)
    assert "report.html" not in done.output  # the page is of this model and these stems


def test_a_page_that_stems_are_replaced_without_is_said_to_be_of_those_from_before(stemwise, model_path, tmp_path):
    write(tmp_path / "a.wav", rate=8000)
    command = ["separate", "a.wav", "-m", model_path, "-o", "out", "--stems", "vocals"]
    said = "a.wav: out/a/report.html still plays the stems from before; --report replaces it"
    assert stemwise(*command, "--report").code == 0
    assert said not in stemwise(*command).output  # keeps the stem, too
    done = stemwise(*command, "--overwrite")
    assert (done.code, said in done.output) == (0, True), done.output
    assert said not in stemwise(*command, "--overwrite", "--report").output
    (tmp_path / "out/a/report.html").write_text("a page of the user's own")
    assert said not in stemwise(*command, "--overwrite").output


def test_a_page_beside_stems_from_before_says_so(stemwise, model_path, tmp_path):
    write(tmp_path / "a.wav", rate=8000)
    command = ["separate", "a.wav", "-m", model_path, "-o", "out"]
    assert stemwise(*command).code == 0
    assert stemwise(*command, "--report").code == 0
    page = (tmp_path / "out/a/report.html").read_text()
    assert "Files from before" in page
    assert "vocals, accompaniment; what is heard here is what this model makes of them now" in page


def test_whoever_kills_it_between_stems_and_page_mends_it_by_a_rerun(stemwise, model_path, tmp_path, monkeypatch):
    write(tmp_path / "a.wav", rate=8000)
    command = ["separate", "a.wav", "-m", model_path, "-o", "out", "--report"]
    assert stemwise(*command).code == 0
    page = tmp_path / "out/a/report.html"

    def killed(self):
        assert not page.exists()  # no page that shows other stems than those beside it
        raise UserError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("stemwise.report.song_page.SongPage.publish", killed)
        assert stemwise(*command, "--overwrite").code == 1
    assert sorted(path.name for path in page.parent.glob("*.wav")) == ["accompaniment.wav", "vocals.wav"]
    assert stemwise(*command).code == 0
    assert page.exists()
    assert len(list((page.parent / "report_files").iterdir())) == 1


def test_a_model_that_diverged_makes_no_page_of_stems_that_are_kept(stemwise, small_separator, model_path, tmp_path):
    write(tmp_path / "a.wav", rate=8000)
    command = ["separate", "a.wav", "-m", model_path, "-o", "out"]
    assert stemwise(*command).code == 0
    with torch.no_grad():
        next(small_separator.unets[0].parameters()).fill_(math.nan)
    model_file.save(small_separator, model_path, {})
    done = stemwise(*command, "--report")
    assert done.code == 1
    assert "a: NaN or infinite samples in the estimate" in done.output
    assert not list((tmp_path / "out/a").glob("report*"))


@pytest.mark.parametrize("step", ["report.song_page.SongPage.finish", "codecs.encoding.Writer.publish"])
def test_stems_and_page_come_together_or_not_at_all(stemwise, model_path, tmp_path, monkeypatch, step):
    write(tmp_path / "a.wav", rate=8000)

    def broken(self):
        raise UserError("no room")

    monkeypatch.setattr(f"stemwise.{step}", broken)
    done = stemwise("separate", "a.wav", "-m", model_path, "-o", "out", "--report")
    assert (done.code, "error: no room" in done.output) == (1, True)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["a"]  # not a folder of the page's


def test_whoever_interrupts_it_finds_nothing(model_path, tmp_path):
    write(tmp_path / "long.wav", seconds=300, rate=8000)
    command = [sys.executable, "-m", "stemwise.cli", "separate", "long.wav", "-m", model_path, "-o", "out", "--report"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob("out/long/report_files/*/0.js")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert files(tmp_path / "out") == {}


def test_standard_output_has_no_page(stemwise, model_path, tmp_path):
    write(tmp_path / "a.wav", rate=8000)
    done = stemwise("separate", "a.wav", "-m", model_path, "-o", "-", "--stems", "vocals", "--report")
    assert done.code == 2
    assert "--report: standard output takes one stem and no page" in done.output
