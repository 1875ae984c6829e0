"""The songs of a comparison: who trains on which, and each stem as a WAV, for programs that read nothing else.

Axes: S stem, C channel, N sample.
"""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from quality import folds
from torch import Tensor

from stemwise import audio, signals
from stemwise.datasets import musdb18
from stemwise.index import Track
from stemwise.spectrogram import Spectrogram

STEMS = ("vocals", "drums", "bass", "other")
MIXTURE = "mixture"
RATE = 44100
WATCHED = 4  # songs that a training may judge itself by


@dataclass(frozen=True)
class Split:
    """Songs to train on, those that a training may watch itself with, and those that are scored: no artist in two."""

    train: tuple[str, ...]
    watched: tuple[str, ...]
    scored: tuple[str, ...]


def split(songs: Sequence[str], fold: int) -> Split:
    """One part is scored. Watched are some of the others whose artists have no second song."""
    scored = folds.parts(songs)[fold]
    heard = sorted(set(songs) - set(scored))
    several = Counter(map(folds.artist, heard))
    alone = [song for song in heard if several[folds.artist(song)] == 1]
    watched = alone[:: max(len(alone) // WATCHED, 1)][:WATCHED]
    return Split(tuple(song for song in heard if song not in watched), tuple(watched), tuple(scored))


def write(data: Path, folder: Path) -> list[str]:
    """Writes each song of the MUSDB18 at `data` as FOLDER/<song>/{mixture,vocals,…}.wav, once; gives their names."""
    tracks = [track for index in musdb18.find(data).values() for track in index.tracks]
    for track in tracks:
        if not (folder / track.name).is_dir():
            _write(track, folder / track.name)
    return sorted(track.name for track in tracks)


def _write(track: Track, folder: Path) -> None:
    waveforms = signals.stack([track.mixture_signal, *(track.signal([stem]) for stem in STEMS)], Spectrogram())
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, waveform in zip((MIXTURE, *STEMS), waveforms, strict=True):
        # Not 16 bits: decoded AAC goes past full scale.
        soundfile.write(part / f"{name}.wav", waveform.T.numpy(), RATE, subtype="FLOAT")
    os.replace(part, folder)


def index(songs: Sequence[str], folder: Path, path: Path) -> Path:
    """Writes the index CSV of these songs, as Spleeter and stemwise read it, with paths below `folder`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["mix_path", *(f"{stem}_path" for stem in STEMS), "duration"])
        for song in songs:
            seconds = soundfile.info(folder / song / f"{MIXTURE}.wav").duration
            rows.writerow([*(f"{song}/{name}.wav" for name in (MIXTURE, *STEMS)), seconds])
    return path


def read(folder: Path, song: str) -> tuple[Tensor, Tensor]:
    """Mixture (C, N) and stems (S, C, N)."""
    found = [audio.read(folder / song / f"{name}.wav", sample_rate=RATE, channels=2) for name in (MIXTURE, *STEMS)]
    return found[0], torch.stack(found[1:])
