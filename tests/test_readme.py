"""What the README and its pages tell a new user to type, typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import stemwise
from release import Server, packed
from stemwise import audio
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import model as spleeter_model
from stemwise.unet import UNetSettings

REPOSITORY = Path(__file__).resolve().parents[1]


def block(page: str, heading: str, language: str) -> str:
    """The first block of code in `language` below a heading of a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.search(rf"^#+ {heading}$.*?^```{language}\n(.*?)^```$", text, re.M | re.S)[1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A 2-stem model of full size, as Spleeter releases one."""
    torch.manual_seed(0)
    model = Separator(["vocals", "accompaniment"], Spectrogram(), UNetSettings(), MaskRule())
    folder = tmp_path_factory.mktemp("release") / "2stems"
    spleeter_model.write(model, folder)
    (folder / "config.json").unlink()  # the released archives have none
    return packed(folder)


@pytest.fixture
def release(archive, tmp_path, monkeypatch):
    """Spleeter's release on loopback."""
    server = Server()
    server.publish(archive)
    monkeypatch.setenv("GITHUB_HOST", server.host)
    monkeypatch.setenv("STEMWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield server
    server.http.shutdown()
    server.http.server_close()


def song(path: Path, seconds: float) -> torch.Tensor:
    noise = 0.1 * np.random.default_rng(0).standard_normal((2, round(seconds * 44100)))
    audio.write(path, torch.from_numpy(noise).float(), 44100, codec=path.suffix[1:])
    return audio.read(path, sample_rate=44100, channels=2)


@pytest.mark.slow
def test_from_install_to_karaoke_track(release, tmp_path):
    mixture = song(tmp_path / "song.mp3", 3)
    commands = block("README.md", "Take songs apart", "sh").splitlines()
    assert commands[1] == "pip install -c constraints.txt ."  # which made the environment of this test
    done = subprocess.run(["bash", "-ec", "\n".join(commands[2:])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["no_vocals.mp3", "vocals.mp3"]
    names = ("vocals", "no_vocals")
    parts = [audio.read(tmp_path / f"karaoke/song/{name}.mp3", sample_rate=44100, channels=2) for name in names]
    assert parts[0].shape == mixture.shape
    # An MP3 of noise at 256 kbit/s is within about 10 dB of it, below its low-pass.
    assert (sum(parts) - mixture).square().mean() < 0.3 * mixture.square().mean()
    assert sorted(release.names) == ["2stems.tar.gz", "checksum.json"]


@pytest.mark.slow
def test_fine_tuning_from_a_model_by_name(release, tmp_path):
    rows = ["mix_path,vocals_path,accompaniment_path,duration"]
    for number in range(2):
        for stem in ("mix", "vocals", "accompaniment"):
            (tmp_path / "songs").mkdir(exist_ok=True)
            soundfile.write(tmp_path / f"songs/{number}_{stem}.wav", np.zeros((44100 * 3, 2)) + 0.01, 44100)
        rows.append(",".join(f"{number}_{stem}.wav" for stem in ("mix", "vocals", "accompaniment")) + ",3")
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    command = block("docs/spleeter.md", "From Spleeter, and back", "sh").splitlines()[0]
    quick = "logger=[] trainer.max_steps=1 data.batch_size=1 trainer.limit_val_batches=1 optimizer.lr=0"
    quick += " data.num_workers=0 spectrogram.frames=64"
    command = command.replace("python", sys.executable, 1) + f" hydra.run.dir=run {quick}"
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "init_from=spleeter:2stems: took over vocals, accompaniment" in done.stdout + done.stderr
    ours, theirs = stemwise.load("run/model.safetensors", "cpu"), stemwise.load("spleeter:2stems", "cpu")
    torch.testing.assert_close(ours.unets[0].last.weight, theirs.unets[0].last.weight)


@pytest.mark.slow
def test_separating_from_python(release, tmp_path):
    waveform = song(tmp_path / "song.mp3", 2)
    code = block("docs/separating.md", "From Python", "python").replace("4stems", "2stems")
    known: dict = {"waveform": waveform.numpy()}
    exec(code, known)
    assert list(known["stems"]) == ["vocals", "no_vocals"]  # of the last line
    assert known["stems"]["vocals"].shape == waveform.shape
