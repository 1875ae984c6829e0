"""Open-Unmix's part of the comparison, run by the Python of its own environment: `openunmix_side.py JOB.json`.

JOB.json is `{"task": name of a function here, **its arguments}`. Networks, transforms and separation are Open-Unmix's
own. Its package has no training; this one has the settings that were published with it (Stöter, Uhlich, Liutkus,
Mitsufuji, "Open-Unmix - A Reference Implementation for Music Source Separation", 2019, and the defaults of its training
script): a network for each target, MSE of magnitudes, Adam at 1e-3 with weight decay 1e-5, batches of 16 crops of 6 s,
64 of each song in an epoch, every source from a song of its own with a gain of its own and its sides swapped or not,
the input scaled by the training songs' mean and deviation, 16 kHz of bandwidth, a rate that falls to 0.3 of it after 80
epochs without progress, and the weights of the best epoch. Knows nothing of stemwise.

Axes: B batch, C channel, N sample, F frequency bin, T frame.
"""

import copy
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from openunmix import model, transforms, utils
from torch import Tensor, nn

RATE, N_FFT, HOP, BANDWIDTH = 44100, 4096, 1024, 16000
HIDDEN = 512
CROP = 6 * RATE
BATCH, CROPS_OF_SONG = 16, 64
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-5
PATIENCE, COOLDOWN, FALL = 80, 10, 0.3
GAINS = (0.25, 1.25)
SCALE_FLOOR = 1e-4  # of the largest deviation: bins without energy must not be divided by nothing


@dataclass(frozen=True)
class Songs:
    """Whole songs in memory, the waveform (C, N) of every source. `magnitudes` is (B, C, N) -> (B, C, F, T)."""

    train: list[dict[str, Tensor]]
    watched: list[dict[str, Tensor]]
    magnitudes: nn.Module


def train(
    songs: str, train: list, watched: list, stems: list, folder: str, seed: int, deadline: float, device: str
) -> None:
    """Trains a network for each stem until the deadline (seconds of the epoch), all with the same share of the time.

    Writes FOLDER/<stem>.pth, and FOLDER/steps.json with the steps and epochs of each.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    transform, _ = transforms.make_filterbanks(n_fft=N_FFT, n_hop=HOP, sample_rate=RATE)
    magnitudes = nn.Sequential(transform, transforms.ComplexNorm(mono=False)).to(device)
    data = Songs(_read(songs, train, stems, device), _read(songs, watched, stems, device), magnitudes)
    mean, scale = _statistics(data)
    done = {}
    for left, stem in zip(range(len(stems), 0, -1), stems, strict=True):
        until = time.time() + (deadline - time.time()) / left
        network = _network(mean, scale).to(device)
        done[stem] = _fit(network, stem, data, random, until)
        torch.save(network.state_dict(), Path(folder, f"{stem}.pth"))
    Path(folder, "steps.json").write_text(json.dumps(done))


def separate(folder: str, songs: str, scored: list, stems: list, outputs: dict) -> None:
    """Writes OUTPUT/<song>/<stem>.npy (N, C) of each song, for each count of Wiener steps in `outputs`."""
    networks = {stem: _network() for stem in stems}
    for stem, network in networks.items():
        network.load_state_dict(torch.load(Path(folder, f"{stem}.pth"), map_location="cpu", weights_only=True))
    for steps, output in outputs.items():
        separator = model.Separator(networks, int(steps), sample_rate=RATE, n_fft=N_FFT, n_hop=HOP, nb_channels=2)
        separator.freeze()
        for song in scored:
            mixture = _waveform(Path(songs, song, "mixture.wav"), "cpu")
            with torch.no_grad():
                estimates = separator(mixture[None])[0]
            Path(output, song).mkdir(parents=True)
            for stem, estimate in zip(stems, estimates, strict=True):
                np.save(Path(output, song, f"{stem}.npy"), estimate.T.numpy())


def _fit(network: nn.Module, stem: str, data: Songs, random: np.random.Generator, until: float) -> dict:
    """Trains to the end of the time, and leaves the weights of the best epoch; the last may be a part of one."""
    adam = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=FALL, patience=PATIENCE, cooldown=COOLDOWN)
    steps, epochs, least, best = 0, 0, float("inf"), copy.deepcopy(network.state_dict())
    while time.time() < until:
        steps += _epoch(network.train(), adam, stem, data, random, until)
        loss = _validation(network.eval(), stem, data)
        plateau.step(loss)
        epochs += 1
        if loss < least:
            least, best = loss, copy.deepcopy(network.state_dict())
    network.load_state_dict(best)
    return {"steps": steps, "epochs": epochs, "loss": least}


def _epoch(
    network: nn.Module,
    adam: torch.optim.Optimizer,
    stem: str,
    data: Songs,
    random: np.random.Generator,
    until: float,
) -> int:
    """Steps that were taken before the epoch or the time was over."""
    order = random.permutation(np.repeat(np.arange(len(data.train)), CROPS_OF_SONG))
    steps = 0
    for at in range(0, len(order) - BATCH + 1, BATCH):
        if time.time() >= until:
            break
        mixed, alone = _batch(data.train, stem, order[at : at + BATCH], random)
        loss = nn.functional.mse_loss(network(data.magnitudes(mixed)), data.magnitudes(alone))
        adam.zero_grad()
        loss.backward()
        adam.step()
        steps += 1
    return steps


def _batch(
    songs: list[dict[str, Tensor]], stem: str, numbers: np.ndarray, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mixtures and their `stem` (B, C, N): it is from the song of that number, every other source from any song."""
    mixed, alone = [], []
    for number in numbers:
        origins = {name: number if name == stem else random.integers(len(songs)) for name in songs[0]}
        sources = {name: _crop(songs[origin][name], random) for name, origin in origins.items()}
        mixed.append(sum(sources.values()))
        alone.append(sources[stem])
    return torch.stack(mixed), torch.stack(alone)


def _crop(waveform: Tensor, random: np.random.Generator) -> Tensor:
    start = random.integers(waveform.shape[-1] - CROP + 1)
    crop = waveform[:, start : start + CROP] * random.uniform(*GAINS)
    return crop.flip(0) if random.random() < 0.5 else crop


@torch.no_grad()
def _validation(network: nn.Module, stem: str, data: Songs) -> float:
    """The mean loss of whole songs."""
    losses = [
        nn.functional.mse_loss(
            network(data.magnitudes(sum(song.values())[None])), data.magnitudes(song[stem][None])
        ).item()
        for song in data.watched
    ]
    return float(np.mean(losses))


@torch.no_grad()
def _statistics(data: Songs) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (F,) of the mixtures' magnitudes, of both channels' mean."""
    found = [data.magnitudes(sum(song.values())[None])[0].mean(dim=0) for song in data.train]
    frames = torch.cat(found, dim=-1).double()
    scale = frames.std(dim=-1, correction=0)
    return frames.mean(dim=-1).cpu().numpy(), scale.clamp(min=SCALE_FLOOR * scale.max().item()).cpu().numpy()


def _network(mean: np.ndarray | None = None, scale: np.ndarray | None = None) -> nn.Module:
    bins = int(utils.bandwidth_to_max_bin(rate=RATE, n_fft=N_FFT, bandwidth=BANDWIDTH))
    return model.OpenUnmix(
        nb_bins=N_FFT // 2 + 1, nb_channels=2, hidden_size=HIDDEN, input_mean=mean, input_scale=scale, max_bin=bins
    )


def _read(folder: str, songs: list, stems: list, device: str) -> list[dict[str, Tensor]]:
    return [{stem: _waveform(Path(folder, song, f"{stem}.wav"), device) for stem in stems} for song in songs]


def _waveform(path: Path, device: str) -> Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T.copy()).to(device)


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    {"train": train, "separate": separate}[job.pop("task")](**job)
