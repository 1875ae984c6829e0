"""The comparison with the peers: who trains on what, when a training's time is over, what is scored, and done once."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir

from stemwise import index, launch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SONGS = [f"Artist {number} - Song" for number in range(20)] + [f"Many (Live) - {number}" for number in range(6)]
FAKE = """
import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[-1].partition("=")[2])
(run / "checkpoints").mkdir(parents=True)

def stop(number, frame):
    (run / "checkpoints/last.ckpt").touch()
    sys.exit(143)

if "mode=ends" in sys.argv:
    (run / "model.safetensors").touch()
elif "mode=fails" in sys.argv:
    sys.exit("no such key")
else:
    if "mode=stops" in sys.argv:
        signal.signal(signal.SIGTERM, stop)
    time.sleep(60)
"""


@pytest.fixture
def quality(monkeypatch, tmp_path):
    """The modules, whose results and runs go elsewhere."""
    monkeypatch.syspath_prepend(FOLDER)
    from quality import contenders, peers, scores, songs

    monkeypatch.setattr(peers, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(peers, "WORK", tmp_path / "work")
    return type("Quality", (), {"contenders": contenders, "peers": peers, "scores": scores, "songs": songs})


@pytest.fixture
def musdb(tmp_path):
    """Two songs as MUSDB18-HQ has them, of a second of noise each; the bass of the first is silent."""
    generator = torch.Generator().manual_seed(0)
    for folder, song in (("train", "One - A"), ("test", "Two - B")):
        stems = 0.1 * torch.randn(4, 2, 44100, generator=generator)
        stems[2] *= song != "One - A"
        (tmp_path / "musdb" / folder / song).mkdir(parents=True)
        for name, waveform in zip(("mixture", "vocals", "drums", "bass", "other"), [stems.sum(0), *stems], strict=True):
            path = tmp_path / "musdb" / folder / song / f"{name}.wav"
            soundfile.write(path, waveform.T.numpy(), 44100, subtype="FLOAT")
    return tmp_path / "musdb"


@pytest.fixture
def without_museval(quality, monkeypatch):
    """uSDR alone: museval takes seconds for each song."""
    monkeypatch.setattr(quality.scores.solvers, "score", lambda *_: {"targets": []})


# The songs


def test_folds_hold_every_song_once_and_no_artist_twice(quality):
    parts = quality.songs.folds.parts(SONGS)
    assert sorted(song for part in parts for song in part) == sorted(SONGS)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    artists = [{quality.songs.folds.artist(song) for song in part} for part in parts]
    assert sum(map(len, artists)) == len(set.union(*artists)) == 21
    assert quality.songs.folds.parts(SONGS[::-1]) == parts


@pytest.mark.parametrize("fold", range(5))
def test_no_artist_is_both_heard_and_scored(quality, fold):
    split = quality.songs.split(SONGS, fold)
    artists = [
        {quality.songs.folds.artist(song) for song in songs} for songs in (split.train, split.watched, split.scored)
    ]
    assert sum(map(len, artists)) == len(set.union(*artists))
    assert sorted(split.train + split.watched + split.scored) == sorted(SONGS)
    assert len(split.watched) == 4


def test_every_song_is_scored_in_one_fold(quality):
    scored = [song for fold in range(5) for song in quality.songs.split(SONGS, fold).scored]
    assert sorted(scored) == sorted(SONGS)


def test_songs_are_written_once_and_read_back(quality, musdb, tmp_path):
    folder = tmp_path / "songs"
    (folder / ".Two - B.part").mkdir(parents=True)  # of a run that was killed
    assert quality.songs.write(musdb, folder) == ["One - A", "Two - B"]
    before = (folder / "One - A/drums.wav").stat().st_mtime_ns
    assert quality.songs.write(musdb, folder) == ["One - A", "Two - B"]
    assert (folder / "One - A/drums.wav").stat().st_mtime_ns == before
    mixture, stems = quality.songs.read(folder, "Two - B")
    truth, _ = soundfile.read(musdb / "test/Two - B/other.wav", dtype="float32")
    np.testing.assert_array_equal(stems[3].T.numpy(), truth)
    torch.testing.assert_close(stems.sum(0), mixture)
    assert sorted(path.name for path in folder.iterdir()) == ["One - A", "Two - B"]


def test_the_index_names_the_songs_that_it_is_given(quality, musdb, tmp_path):
    quality.songs.write(musdb, tmp_path / "songs")
    path = quality.songs.index(["Two - B"], tmp_path / "songs", tmp_path / "run/train.csv")
    found = index.read(path, tmp_path / "songs")
    assert found.problems == []
    assert [track.mixture.path for track in found.tracks] == [tmp_path / "songs/Two - B/mixture.wav"]
    assert list(found.tracks[0].stems) == list(quality.songs.STEMS)
    assert found.tracks[0].duration == 1.0


# The scores


@pytest.mark.slow
def test_the_truth_scores_high_and_silence_not_at_all(quality, musdb, tmp_path):
    folder, name = tmp_path / "songs", "One - A"
    quality.songs.write(musdb, folder)
    _, stems = quality.songs.read(folder, name)
    (tmp_path / "estimates" / name).mkdir(parents=True)
    for stem, waveform in zip(quality.songs.STEMS, stems, strict=True):
        np.save(tmp_path / "estimates" / name / f"{stem}.npy", 0.9 * waveform.T.numpy())
    found = quality.scores.of_folder(tmp_path / "estimates", folder, [name])[name]
    assert set(found["SDR"]) == {"vocals", "drums", "other"}
    assert found["uSDR"]["vocals"] == pytest.approx(20, abs=1e-3)  # the error is a tenth
    assert found["SDR"]["vocals"] == pytest.approx(20, abs=1e-3)


def test_the_oracle_is_above_the_mixture(quality, musdb, tmp_path, without_museval):
    folder, name = tmp_path / "songs", "One - A"
    quality.songs.write(musdb, folder)
    bounds = quality.scores.bounds(folder, [name])
    assert bounds["mixture"][name]["uSDR"]["drums"] == pytest.approx(-3, abs=0.2)  # two others as loud
    assert bounds["oracle"][name]["uSDR"]["drums"] > bounds["mixture"][name]["uSDR"]["drums"] + 1


def test_museval_is_a_median_over_songs_and_usdr_a_mean(quality):
    values = {"a": 1.0, "b": 2.0, "c": 6.0}
    found = quality.scores.over_songs({song: _scores(value) for song, value in values.items()})
    assert found["SDR"] == {"vocals": 2.0, "drums": 4.0, "mean": 3.0}
    assert found["uSDR"]["vocals"] == found["uSDR"]["mean"] == 3.0


def _scores(value):
    return {"SDR": {"vocals": value, "drums": 2 * value}, "uSDR": {"vocals": value}}


# The time


def train(quality, monkeypatch, tmp_path, mode, seconds):
    (tmp_path / "train.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return quality.contenders._train([f"mode={mode}"], tmp_path / "run", time.time() + seconds)


def test_a_training_that_ends_leaves_its_best_model(quality, monkeypatch, tmp_path):
    model = train(quality, monkeypatch, tmp_path, "ends", 30)
    assert model == tmp_path / "run/model.safetensors"


def test_a_training_is_stopped_when_its_time_is_over(quality, monkeypatch, tmp_path):
    start = time.monotonic()
    model = train(quality, monkeypatch, tmp_path, "stops", 3)
    assert model == tmp_path / "run/checkpoints/last.ckpt"
    assert 3 <= time.monotonic() - start < 20


@pytest.mark.parametrize(("mode", "says"), [("fails", "no such key"), ("deaf", "exit code -15")])
def test_a_training_that_leaves_nothing_says_why(quality, monkeypatch, tmp_path, mode, says):
    with pytest.raises(SystemExit, match=says):
        train(quality, monkeypatch, tmp_path, mode, 3)


def test_steps_are_planned_by_the_pace_of_the_pilot(quality, monkeypatch, tmp_path):
    def pilot(arguments, run, deadline):
        assert deadline == pytest.approx(time.time() + 60, abs=5)
        metrics = run / "csv/version_0/metrics.csv"
        metrics.parent.mkdir(parents=True)
        rows = [("step", "train/lr", "progress/hours"), (0, 1, 2 / 3600), (20, 1, 42 / 3600), (20, "", 1)]
        with metrics.open("w", newline="") as file:
            csv.writer(file).writerows(rows)  # half a step a second, after 18 s

    monkeypatch.setattr(quality.contenders, "_train", pilot)
    task = quality.contenders.Task(tmp_path, None, 0, 1500, "cpu", tmp_path, tmp_path)
    assert quality.contenders._steps([], task, time.time() + 1018) == pytest.approx(0.95 * 500, abs=3)


def test_a_pilot_of_one_step_is_no_plan(quality, tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/lr,progress/hours\n0,1,0.1\n")
    with pytest.raises(SystemExit, match="--minutes"):
        quality.contenders._pace(tmp_path / "metrics.csv")


@pytest.mark.parametrize("recipe", ["RECIPE", "OURS"])
def test_recipes_compose_for_the_excerpts(quality, recipe, tmp_path):
    launch.offer_trainer_arguments()
    where = ["data.train=train.csv", "data.valid=valid.csv", f"data.root={tmp_path}", "logger=[csv]"]
    with initialize_config_dir(launch.CONF, version_base="1.3"):
        cfg = compose("train", overrides=[*getattr(quality.contenders, recipe), *where])
    assert list(cfg.stem_names) == list(quality.songs.STEMS)
    frames = cfg.data.frames or cfg.spectrogram.frames
    assert frames * cfg.spectrogram.hop + cfg.spectrogram.n_fft < 6.8 * cfg.spectrogram.sample_rate


# The results


@pytest.fixture
def trained(quality, monkeypatch):
    """Trainings that do nothing: every score is the seed, plus one for stemwise."""
    started = []

    def fake(system, seed, plan, split, data, environments):
        started.append((system, seed))
        each = {song: _scores(float(seed + (system == "ours"))) for song in split.scored}
        return {"steps": 30, "seconds": 60.0, "what": f"settings of {system}", "versions": {}, "rows": {system: each}}

    bounds = {"oracle": {"x": _scores(9.0)}, "mixture": {"x": _scores(-5.0)}}
    monkeypatch.setattr(quality.peers, "trained", fake)
    monkeypatch.setattr(quality.peers.scores, "bounds", lambda data, songs: bounds)
    return started


def plan(quality, seeds=2, minutes=1.0, machine="here", systems=("spleeter", "ours"), folds=(0, 1)):
    splits = {fold: quality.songs.split(SONGS, fold) for fold in folds}
    return quality.peers.Plan(systems, folds, seeds, minutes, "cpu", machine, splits)


def test_what_is_done_is_not_done_again(quality, trained, monkeypatch, tmp_path):
    def answer(**changes):
        trained.clear()
        quality.peers.answer(plan(quality, **changes), tmp_path, tmp_path, "peers")
        return len(trained)

    assert answer(seeds=1) == 4
    assert answer(seeds=1) == 0
    assert answer(seeds=2) == 4
    assert {seed for _, seed in trained} == {1}
    assert answer(folds=(2,)) == 4
    assert answer(minutes=2.0) == answer(machine="there") == 8
    assert answer() == 0
    monkeypatch.setitem(quality.peers.SETTINGS, "ours", "another recipe")
    assert answer(seeds=1) == 2
    assert trained == [("ours", 0), ("ours", 0)]


def test_what_was_done_outlives_a_training_that_fails(quality, trained, monkeypatch, tmp_path):
    fake = quality.peers.trained

    def failing(system, seed, *rest):
        if system == "ours":
            raise SystemExit("no")
        return fake(system, seed, *rest)

    monkeypatch.setattr(quality.peers, "trained", failing)
    with pytest.raises(SystemExit):
        quality.peers.answer(plan(quality, folds=(0,)), tmp_path, tmp_path, "peers")
    assert [key.split()[0] for key in quality.peers.done("peers")] == ["bounds", "spleeter"]
    assert "| spleeter |" in (quality.peers.RESULTS / "peers.md").read_text()


def test_the_page_has_means_over_seeds_and_the_command(quality, trained, tmp_path):
    quality.peers.answer(plan(quality), tmp_path, tmp_path, "peers")
    text = (quality.peers.RESULTS / "peers.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in rows}
    assert list(cells) == ["---", "mixture", "spleeter", "ours", "oracle"]
    assert cells["ours"][0] == "1.50 ± 0.71"
    assert cells["spleeter"][-2:] == ["30", "30.0"]
    assert cells["oracle"][0] == "9.00"
    assert "python benchmarks/quality/peers.py --minutes 1 --seeds 2 --folds 0 1 --device cpu" in text
    assert "settings of ours" in text
    assert len(json.loads((quality.peers.RESULTS / "peers.json").read_text())["runs"]) == 10


def test_a_seed_without_all_folds_is_in_no_mean(quality, trained, tmp_path):
    quality.peers.answer(plan(quality, seeds=1, folds=(0,)), tmp_path, tmp_path, "peers")
    text = quality.peers.page(plan(quality, seeds=1), quality.peers.done("peers"))
    assert "| spleeter |" not in text
    assert "spleeter, fold 0, seed 0" in text


def test_a_training_is_scored_and_leaves_no_folder(quality, monkeypatch, musdb, tmp_path, without_museval):
    data = tmp_path / "songs"
    names = quality.songs.write(musdb, data)

    def contender(task):
        assert task.seconds == 60
        for song in task.split.scored:
            _, stems = quality.songs.read(task.data, song)
            (task.folder / "estimates" / song).mkdir(parents=True)
            for stem, waveform in zip(quality.songs.STEMS, stems, strict=True):
                np.save(task.folder / "estimates" / song / f"{stem}.npy", 0.9 * waveform.T.numpy())
        return quality.contenders.Outcome(7, 61.0, "settings", {"a row": task.folder / "estimates"})

    monkeypatch.setitem(quality.peers.CONTENDERS, "ours", contender)
    split = quality.songs.Split((), (), tuple(names))
    found = quality.peers.trained("ours", 0, plan(quality), split, data, tmp_path)
    assert found["steps"] == 7
    assert found["rows"]["a row"]["Two - B"]["uSDR"]["bass"] == pytest.approx(20, abs=1e-3)
    assert list(quality.peers.WORK.iterdir()) == []
