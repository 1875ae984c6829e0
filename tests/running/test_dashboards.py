"""What a run tells W&B and TensorBoard, read from what they wrote: two runs of one process, offline."""

import http.server
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from stemwise import model_file
from stemwise.running import boards, clips, media
from stemwise.running.clips import Clip
from stemwise.running.meters import Meters
from stemwise.training import SeparatorTraining
from tiny import TINY
from wandb_runs import OfflineRun

STEMS = ["vocals", "drums", "bass", "other"]
STEPS = 4
KEYS = ["trainer.max_steps=4", "trainer.val_check_interval=1", "media.every=2", "media.songs=2", "media.seconds=0.5"]


@pytest.fixture(scope="module")
def done(tmp_path_factory, songs: Path) -> SimpleNamespace:
    """Two jobs of a multirun without a login, with a proxy that notes what is asked of it."""
    folder, asked = tmp_path_factory.mktemp("dashboards"), []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            asked.append(self.rfile.readline())
            self.close_connection = True

    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    lines = (songs / "train.csv").read_text().splitlines()
    (songs / "three.csv").write_text("\n".join([*lines[:4], ""]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            environment[name] = f"http://127.0.0.1:{proxy.server_port}"
        keys = ["data=csv", f"data.root={songs}", f"data.train={songs}/train.csv", f"data.valid={songs}/three.csv"]
        keys += [key for key in TINY if "logger" not in key] + ["logger=[wandb,tensorboard]", *KEYS]
        process = subprocess.run(
            [sys.executable, "-m", "train", "-m", "seed=0,1", "hydra.sweep.dir=sweep", *keys],
            cwd=folder,
            env={**environment, "HOME": str(folder / "home")},
            capture_output=True,
            text=True,
            timeout=200,
            stdin=subprocess.DEVNULL,
        )
        proxy.shutdown()
    assert process.returncode == 0, process.stdout + process.stderr
    return SimpleNamespace(folder=folder, asked=asked, printed=process.stdout + process.stderr)


def models(run: OfflineRun) -> list[tuple[list[str], bytes]]:
    """What W&B is given of models, in this order: aliases and file. It calls each `latest`, until the next comes."""
    found = []
    for artifact in run.artifacts:
        if artifact.type == "model":
            assert artifact.name == f"model-{run.id}"
            (file,) = artifact.manifest.contents
            assert file.path == "model.safetensors"
            found.append((sorted(artifact.aliases), Path(file.local_path).read_bytes()))
    return found


@pytest.fixture(scope="module")
def run(done) -> OfflineRun:
    return OfflineRun(done.folder / "sweep/0/wandb")


@pytest.mark.slow
def test_without_a_login_nothing_is_asked_of_user_or_network(done):
    assert done.asked == []
    assert "Traceback" not in done.printed
    assert not [line for line in done.printed.splitlines() if line.startswith("wandb:")]


@pytest.mark.slow
def test_each_run_of_a_multirun_has_its_own_id(done, run):
    other = OfflineRun(done.folder / "sweep/1/wandb")
    assert run.id != other.id
    assert (run.config["seed"], other.config["seed"]) == (0, 1)
    assert (run.exit_code, other.exit_code) == (0, 0)
    assert len(other.values("train/loss")) == STEPS


@pytest.mark.slow
def test_numbers_are_grouped_and_counted(run):
    per_step = {"train/loss", "train/grad_norm", "train/lr", "speed/examples_per_second", "speed/waiting"}
    per_step |= {f"train/{stem}" for stem in STEMS}
    per_validation = {"val/loss", *(f"val/{stem}" for stem in STEMS)}
    per_validation |= {f"sdr/{group}{n}" for group in ("", "improvement/", "oracle/") for n in ("mean", *STEMS)}
    axes = {"epoch", "progress/songs", "progress/hours", "trainer/global_step"}
    media = {"songs", "audio", "spectrograms"}
    assert {name for name in run.names if name.split("/")[0] not in media} == per_step | per_validation | axes
    for row in run.rows:
        if row.keys() & (per_step | per_validation):
            assert row.keys() >= axes, sorted(row)  # any of them can be drawn over any axis
    assert {len(run.values(name)) for name in per_step | per_validation} == {STEPS}
    assert run.axes >= axes
    for name in axes:  # what is to be heard and seen comes before the numbers of its validation, and at the same place
        at = [row[name] for row in run.rows if row.keys() & (per_step | per_validation | {"songs/boxes/path"})]
        assert at == pytest.approx(sorted(at), rel=1e-6), name  # Lightning rounds to float32
        assert len(at) == 2 * STEPS + 3
    songs = run.values("progress/songs")
    assert songs == [4.0 * step for step in (1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4)]
    assert [4.0 * (1 + step) for step in run.values("trainer/global_step")] == songs
    for improvement, mean in zip(run.values("sdr/improvement/mean"), run.values("sdr/mean"), strict=True):
        assert improvement - mean == pytest.approx(run.values("sdr/improvement/mean")[0] - run.values("sdr/mean")[0])
    assert len(set(run.values("sdr/oracle/mean"))) == 1


@pytest.mark.slow
def test_the_same_crops_can_be_heard_and_seen(run):
    """At the first, the third and the last validation; of two of three songs with truths."""
    numbers = sorted({name.split("/")[1] for name in run.names if name.startswith("audio/")})
    assert numbers == ["song_1", "song_2"]
    for number in numbers:
        captions = run.values(f"audio/{number}/captions")
        assert len(captions) == 3
        assert captions[0] == captions[1] == captions[2]
        assert [c.split(": ")[1] for c in captions[0]] == [
            "mixture",
            *(f"{stem} estimate" for stem in STEMS),
            *(f"{stem} truth" for stem in STEMS),
        ]
        first, *_, last = (
            [soundfile.read(run.files / file["path"])[0] for file in files]
            for files in run.values(f"audio/{number}/audio")
        )
        # The truths stay, the estimates learn. 0.5 s at 8 kHz, and what MP3 adds.
        for place, (before, after) in enumerate(zip(first, last, strict=True)):
            assert np.array_equal(before, after) == (place not in range(1, 5))
            assert 4000 <= len(after) < 4000 + 4 * 1152
            assert np.abs(after).max() > 0.01
        for names in run.values(f"spectrograms/{number}/filenames"):
            assert len(names) == 4
            assert all(Image.open(run.files / name).size == (1296, 286) for name in names)
    assert len(run.values("songs/boxes/path")) == 3


@pytest.mark.slow
def test_a_row_for_each_song_that_can_be_sorted_and_played(run):
    tables = [artifact.manifest.contents for artifact in run.artifacts if artifact.type == "run_table"]
    assert len(tables) == len(run.values("songs/table/path")) == 3
    files = {file.path: Path(file.local_path) for contents in tables for file in contents}
    for contents in tables:
        (path,) = [file.local_path for file in contents if file.path.endswith("table.json")]
        table = json.loads(Path(path).read_text())
        assert table["columns"] == ["song", *(f"{n} SDR" for n in (*STEMS, "mean")), "mixture", *STEMS]
        assert [row[0] for row in table["data"]] == ["Song 0", "Song 1", "Song 2"]
        for row in table["data"]:
            assert all(files[cell["path"]].stat().st_size > 1000 for cell in row[6:])
    assert np.mean([row[5] for row in table["data"]]) == pytest.approx(run.values("sdr/mean")[-1], abs=1e-3)


@pytest.mark.slow
def test_where_a_run_comes_from_and_its_model_are_kept(done, run):
    assert run.config["data"]["batch_size"] == 4
    facts, provenance = run.config["run"], json.loads((done.folder / "sweep/0/provenance.json").read_text())
    assert facts["songs"] == {"train": 4, "valid": 3}
    assert set(facts["index"]) == {"train", "valid"}
    assert "train -m seed=0,1" in facts["command"]
    assert provenance["starts"][0]["command"][-1] in facts["command"]
    assert models(run) == [(["best", "latest"], (done.folder / "sweep/0/model.safetensors").read_bytes())]
    # What `wandb sync` needs lies in the run's folder.
    for artifact in run.artifacts:
        assert all(Path(f.local_path).is_relative_to(run.path.parents[1]) for f in artifact.manifest.contents)


@pytest.mark.slow
@pytest.mark.parametrize("links", [True, False], ids=["links", "no_links"])
def test_the_best_model_and_the_last_are_two_artifacts_where_they_are_two(train, monkeypatch, links):
    """A learning rate that ruins the weights leaves the first validation the best."""
    if not links:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(1, "Operation not permitted")))
    keys = ["logger=wandb", "+logger.wandb.offline=true", "trainer.val_check_interval=2", "ema=0.5", "media.every=null"]
    assert train(*keys, "optimizer.lr=1.0").code == 0
    best, last = (model_file.read(Path("run", name)) for name in ("model.safetensors", "checkpoints/last.ckpt"))
    assert (best[1]["step"], last[1]["step"]) == (2, 4)
    first, second = models(OfflineRun(Path("run/wandb")))
    assert first == (["best", "latest"], Path("run/model.safetensors").read_bytes())
    assert second[0] == ["latest"]
    Path("latest.safetensors").write_bytes(second[1])
    found, facts = model_file.read(Path("latest.safetensors"))
    assert facts["step"] == 4
    torch.testing.assert_close(found.state_dict(), last[0].state_dict(), rtol=0, atol=0)
    # What the first start left to be uploaded stays as it is when the run goes on.
    paths = [file.local_path for one in OfflineRun(Path("run/wandb")).artifacts for file in one.manifest.contents]
    before = {path: Path(path).read_bytes() for path in paths}
    assert train(*keys, "optimizer.lr=1.0", "hydra.run.dir=run", "resume=auto", "trainer.max_steps=6").code == 0
    assert {path: Path(path).read_bytes() for path in paths} == before


@pytest.mark.slow
def test_of_a_run_that_ends_by_its_epochs_the_last_validation_is_seen(train):
    """Also where it comes after the last step, which no interval hits."""
    keys = [
        "logger=wandb",
        "+logger.wandb.offline=true",
        "trainer.max_steps=-1",
        "trainer.max_epochs=5",
        "media.songs=1",
    ]
    assert train(*keys, "trainer.val_check_interval=2", "media.every=5").code == 0
    run = OfflineRun(Path("run/wandb"))
    shown = [row["trainer/global_step"] for row in run.rows if "songs/boxes/path" in row]
    validated = [row["trainer/global_step"] for row in run.rows if "sdr/mean" in row]
    assert validated == [1, 3, 4]
    assert shown == [1, 4]


@pytest.mark.slow
def test_tensorboard_has_the_same(done, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(done.folder / "sweep/0/tensorboard"), size_guidance={"images": 0, "audio": 0})
    tags = read.Reload().Tags()
    numbers = {
        name for name in run.names if name.split("/")[0] in ("train", "val", "sdr", "speed", "progress", "epoch")
    }
    assert numbers <= set(tags["scalars"])
    assert [event.value for event in read.Scalars("sdr/mean")] == pytest.approx(run.values("sdr/mean"), rel=1e-5)
    heard = {f"audio/song_{n}/{what}" for n in (1, 2) for what in ("mixture", "vocals estimate", "vocals truth")}
    assert {tag.replace("_estimate", " estimate").replace("_truth", " truth") for tag in tags["audio"]} >= heard
    assert len(tags["audio"]) == 2 * 9
    seen = {f"spectrograms/song_{n}/{stem}" for n in (1, 2) for stem in STEMS}
    assert set(tags["images"]) == seen | {"songs/boxes"}
    assert all(len(read.Images(tag)) == 3 for tag in tags["images"])
    samples, rate = soundfile.read(io.BytesIO(read.Audio(tags["audio"][0])[0].encoded_audio_string))
    assert rate == 8000
    assert np.abs(samples).max() > 0.01
    assert {"run/text_summary", "songs/table/text_summary"} <= set(tags["tensors"])
    assert set(tags["distributions"]) >= {"songs/mean"}


# Parts.


def clip(number: int, **sdr: float) -> Clip:
    return Clip(number, f"a|b {number}", {**sdr, "mean": float(np.nanmean(list(sdr.values())))}, "mp3", {}, {})


def test_the_worst_song_comes_first_and_silence_is_no_number():
    silent = Clip(1, "<b>a\nsilent song", {"vocals": np.nan, "bass": np.nan, "mean": np.nan}, "mp3", {}, {})
    songs = [clip(0, vocals=3.0, bass=1.0), silent, clip(2, vocals=-2.0, bass=np.nan)]
    lines = boards.table(songs).splitlines()
    assert lines[0] == "| song | vocals | bass | mean |"
    assert lines[2] == "| 3 a¦b 2 | -2.00 | nan | -2.00 |"
    assert lines[3].endswith("| 3.00 | 1.00 | 2.00 |")
    assert lines[4:] == ["| 2 &lt;b&gt;a silent song | nan | nan | nan |"]


def test_a_picture_that_fails_costs_the_pictures_and_not_the_logger(monkeypatch, caplog):
    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr(boards, "show", fail)
    module, meters = Mock(spec=SeparatorTraining), Mock(spec=Meters)
    module.separator = SimpleNamespace(spectrogram=SimpleNamespace(sample_rate=8000))
    trainer = SimpleNamespace(
        world_size=1, is_global_zero=True, loggers=["one", "two"], callbacks=[meters], lightning_module=module,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=3)),
    )  # fmt: skip
    shown = media.Media(every=1, songs=1, seconds=1)
    shown._due, shown._clips = True, [clip(0, vocals=1.0)]
    shown.on_validation_epoch_end(trainer, module)
    assert caplog.text.count("media: OSError: no room. Training goes on without sounds and pictures.") == 1
    shown.on_validation_start(
        SimpleNamespace(
            sanity_checking=False, state=SimpleNamespace(fn="fit"), loggers=["one"], lightning_module=module,
            strategy=SimpleNamespace(reduce_boolean_decision=lambda found: found),
        ), module,
    )  # fmt: skip
    assert module.clip == 0


def test_charts_are_found_by_whole_names():
    import re

    chart = boards.layout(["bass", "bass (live)"])["SDR in dB"]["bass"][1]
    assert [bool(re.search(chart[0], name)) for name in ("sdr/bass", "sdr/bass (live)", "sdr/oracle/bass")] == [1, 0, 0]


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_sound_survives_its_file(rate):
    time = torch.arange(rate) / rate
    tone = torch.sin(2 * np.pi * 440 * time).expand(2, -1) * torch.tensor([[0.5], [0.9]])
    codec = clips.codec(rate)
    found = clips.decoded(clips.encoded(tone, rate, codec))
    assert found.shape[0] == 2
    for channel, amplitude in zip(found, (0.5, 0.9), strict=True):
        assert np.abs(np.fft.rfft(channel[:rate])).argmax() == 440
        assert np.abs(channel[rate // 4 : rate // 2]).max() == pytest.approx(amplitude, rel=0.05)
