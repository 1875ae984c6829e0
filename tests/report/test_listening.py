"""The files beside a page: sound that is the waveform, pictures that show it, and nothing left behind."""

import base64
import io
import json
import re

import av
import numpy as np
import psutil
import pytest
import torch

import songs
from sounds import decoded
from stemwise.errors import UserError
from stemwise.report import listening, page, sound
from stemwise.report.sound import GUARD, RATE, SECONDS


def played(player) -> np.ndarray:
    """(V, C, N) at `RATE`, put together from the scripts as the page does it."""
    guard = round(player.data["guard"] * RATE)
    parts = []
    for number in range(player.data["chunks"]):
        script = (player.folder / f"{number}.js").read_text("ascii")
        key, told, coded = json.loads(re.fullmatch(r"stemwise\.sound\((.*)\);\n", script)[1].join("[]"))
        assert (key, told) == (player.data["key"], number)
        parts.append(np.stack([decoded(one)[:, guard : guard + SECONDS * RATE] for one in coded]))
    return np.concatenate(parts, -1)


@pytest.mark.parametrize(("rate", "seconds"), [(44100, 20.0), (8000, 10.05), (11027, 3.3), (48000, 0.01)])
def test_chunks_put_together_are_the_waveforms(tmp_path, rate, seconds):
    waveforms = songs.noise(2, rate, seconds)
    player = songs.record(tmp_path / "a.html", waveforms, rate=rate, variants=songs.VARIANTS[:2])
    expected, found = songs.at_rate_of_sound(waveforms, rate), played(player)[:, 0]
    assert player.data["guard"] >= GUARD
    assert 0 <= found.shape[1] - expected.shape[1] <= player.data["guard"] * RATE  # the player stops where it ends
    error = found[:, : expected.shape[1]] - expected
    ends = np.arange(SECONDS * RATE, expected.shape[1], SECONDS * RATE)
    assert np.std(error) < 0.25 * np.std(expected)
    for end in ends:  # no worse where chunks meet
        assert np.std(error[:, end - 480 : end + 480]) < 0.3 * np.std(expected)


def test_files_do_not_depend_on_how_a_song_was_cut(tmp_path):
    waveforms = songs.noise(2, 8000, 11.0)
    cut = []
    for size in (88_000, 777):
        with listening.Recording(tmp_path / "a.html", "", songs.VARIANTS[:2], 8000, waveforms.shape[-1]) as recording:
            for block in waveforms.split(size, -1):
                recording.write(block)
            player = recording.finish()
        cut.append((played(player), player.data["peaks"], (player.folder / "1.png").read_bytes()))
    np.testing.assert_array_equal(cut[0][0], cut[1][0])
    assert cut[0][1] == cut[1][1]
    np.testing.assert_allclose(image(cut[0][2]).astype(int), image(cut[1][2]).astype(int), atol=3)  # float sums


def image(png: bytes) -> np.ndarray:
    with av.open(io.BytesIO(png)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_a_tone_is_where_its_frequency_and_its_time_are(tmp_path):
    time = torch.arange(4 * 44100) / 44100
    tone = 0.5 * torch.sin(2 * torch.pi * 2000 * time) * (time > 2)
    player = songs.record(tmp_path / "a.html", tone.expand(1, 2, -1), variants=songs.VARIANTS[:1])
    picture = image((player.folder / "0.png").read_bytes()).sum(-1)
    row, columns = picture.mean(1).argmax(), np.flatnonzero(picture.max(0) > 300)
    tick = next(place for place, name in player.data["ticks"] if name == "2")
    assert (row + 0.5) / len(picture) == pytest.approx(1 - tick, abs=0.01)
    assert columns[0] / picture.shape[1] == pytest.approx(0.5, abs=0.01)
    assert columns[-1] == picture.shape[1] - 1
    low, high = np.frombuffer(base64.b64decode(player.data["peaks"]), np.int8).reshape(2, -1)
    assert (high[:790].max(), high[810:].min(), low[810:].max()) == (0, 127, -127)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_heard_is_refused_and_named(tmp_path, value):
    waveforms = songs.noise(seconds=3)
    waveforms[2, 0, 2 * 44100 + 5] = value
    with pytest.raises(UserError, match=r"A song: NaN or infinite samples in the estimate drums after \d\.\d\d s"):
        songs.record(tmp_path / "page.html", waveforms)
    assert not list(tmp_path.iterdir())


def test_what_fails_in_a_thread_fails(tmp_path, monkeypatch):
    def broken(samples):
        raise RuntimeError("no encoder")

    monkeypatch.setattr(sound, "opus", broken)
    with pytest.raises(RuntimeError, match="no encoder"):
        songs.record(tmp_path / "page.html", songs.noise(seconds=1))


def test_silence_and_the_shortest_song_can_be_shown(tmp_path):
    for frames in (1, 5000):
        player = songs.record(tmp_path / "a.html", torch.zeros(1, 2, frames), variants=songs.VARIANTS[:1])
        assert image((player.folder / "0.png").read_bytes()).max() < 20


def test_what_breaks_off_leaves_nothing_and_the_old_page_as_it_was(tmp_path):
    path = tmp_path / "a.html"
    old = songs.record(path, songs.noise(seconds=0.1))
    songs.write(path, old)

    def files():
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    before = files()

    def half(error=None):
        with listening.Recording(path, "", songs.VARIANTS, 44100, 10) as recording:
            recording.write(torch.zeros(5, 1, 5))
            if error:
                raise error
            recording.finish()

    with pytest.raises(KeyboardInterrupt):
        half(KeyboardInterrupt)
    with pytest.raises(ValueError, match="expected 10 samples, got 5"):
        half()
    assert files() == before
    new = songs.record(path, songs.noise(seconds=0.1))
    assert before.keys() < files().keys()
    listening.tidy(path, [new])
    assert not old.folder.exists()
    assert new.folder.exists()


def test_a_full_disk_is_said_to_be_one(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(UserError, match=r"the page's sound cannot be written \(No space left on device"):
        songs.record(tmp_path / "a.html", songs.noise(seconds=0.1))
    assert not (tmp_path / "a_files").exists()
    monkeypatch.undo()
    (tmp_path / "b_files").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        songs.record(tmp_path / "b.html", songs.noise(seconds=0.1))


def test_versions_of_several_systems_have_their_places(tmp_path):
    variants = [listening.Variant("mixture"), listening.Variant("estimate", "vocals", "Truth")]
    variants += [listening.Variant("estimate", stem, "B") for stem in ("drums", "vocals")]
    variants += [listening.Variant("truth", "vocals")]
    player = songs.record(tmp_path / "a.html", songs.noise(seconds=0.1), variants=variants)
    assert player.stems == ["vocals", "drums"]
    assert player.data["versions"] == [
        {"name": "Mixture", "mixture": 0, "stems": [None, None]},
        {"name": "Truth", "mixture": None, "stems": [1, None]},
        {"name": "B", "mixture": None, "stems": [3, 2]},
        {"name": "Truth", "mixture": None, "stems": [4, None]},
    ]
    page.write(tmp_path / "a.html", "A", [listening.section([player])])


def test_memory_does_not_grow_with_the_song(tmp_path, monkeypatch):
    monkeypatch.setattr(sound, "opus", lambda samples: bytes(200_000))  # the same, but slower
    block, count, memory = torch.zeros(5, 1, 80_000), 60, []
    with listening.Recording(tmp_path / "a.html", "", songs.VARIANTS, 8000, 80_000 * count) as recording:
        for _ in range(count):
            recording.write(block)
            memory.append(psutil.Process().memory_info().rss)
    assert max(memory) - memory[10] < 20e6  # all of it would be 96 MB
