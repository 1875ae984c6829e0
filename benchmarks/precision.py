"""What a lower precision of the networks costs: `python benchmarks/precision.py --model M --data MUSDB18`.

A trained model separates the songs of a split in float32, bfloat16 and float16. Signal to difference is that of the
stems beside those in float32; SDR is that of whole songs (`metrics.usdr`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import report
import torch
from torch import Tensor

from stemwise import catalogue, metrics, model_file, signals
from stemwise.catalogue import Song
from stemwise.datasets import musdb18

LOWER = (torch.bfloat16, torch.float16)


def main() -> int:
    """Separates every song in each precision and writes the report."""
    options = _parser().parse_args()
    split = musdb18.find(options.data)[options.split]
    exact = model_file.load(options.model)
    songs = catalogue.songs(split, exact.stems, {})
    reference = separated(options.model, songs, torch.float32)
    scores = torch.stack([metrics.usdr(song[1], song[0]) for song in reference]).nanmean(0)
    rows = [("float32", *(f"{score:.2f}" for score in scores), "")]
    data = {}
    for dtype in LOWER:
        changes, differences = against(reference, separated(options.model, songs, dtype))
        name = str(dtype).removeprefix("torch.")
        rows.append(
            (name, *(f"{change:+.4f}" for change in changes), f"{differences.min():.1f} to {differences.max():.1f}")
        )
        data[name] = {"change": changes.tolist(), "signal_to_difference": differences.tolist()}
    stems = [f"{stem}, dB" for stem in exact.stems]
    columns = ("networks in", *stems, "stems beside those of float32, dB")
    text = (
        f"# Precision of the networks\n\nSDR over {len(songs)} songs, and its change.\n\n{report.table(columns, rows)}"
    )
    report.write("precision", text, {"songs": len(songs), **data}, {})
    return 0


def separated(model: Path, songs: Sequence[Song], dtype: torch.dtype) -> list[Tensor]:
    """For each song its estimates and, behind them, its true stems, (2, S, C, N)."""
    separator = model_file.load(model)
    separator.lower(dtype)
    found = []
    for song in songs:
        waveforms = signals.stack([song.mixture, *song.stems], separator.spectrogram)
        found.append(torch.stack([separator.separate(waveforms[0]), waveforms[1:]]))
    return found


def against(reference: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean change of SDR (S,), and the signal to difference (songs, S), in dB."""
    changes = [metrics.usdr(f[1], f[0]) - metrics.usdr(r[1], r[0]) for r, f in zip(reference, found, strict=True)]
    differences = [metrics.usdr(r[0], f[0]) for r, f in zip(reference, found, strict=True)]
    return torch.stack(changes).nanmean(0), torch.stack(differences)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a run's model.safetensors")
    parser.add_argument("--data", type=Path, required=True, help="MUSDB18, or a part of it")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
