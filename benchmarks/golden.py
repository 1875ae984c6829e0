"""Compares separation with Spleeter's own, in both directions: `python benchmarks/golden.py`.

For each case Spleeter writes a checkpoint with random weights and separates a song that stemwise composes; stemwise
reads the checkpoint and separates the same song. Then stemwise writes the model as a checkpoint, and Spleeter
separates with that. What comes out is the signal-to-difference of each stem, 10 log10(Σ theirs² / Σ (theirs - ours)²).

Ends with exit code 1 if a stem is below the limit. Axes: C channel, N sample.
"""

import argparse
import functools
import operator
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environment
import numpy as np
import report
import torch
from torch import Tensor

from stemwise import audio, metrics
from stemwise.datasets import demo
from stemwise.separator import Separator
from stemwise.spleeter import model as spleeter_model

LIMIT = 95.0
SECONDS = 14.0  # more than one window of 11.9 s
SEED = 5
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "golden"

# Spleeter's settings for two stems, with small networks.
CONFIG = {
    "mix_name": "mix",
    "sample_rate": 44100,
    "frame_length": 4096,
    "frame_step": 1024,
    "T": 512,
    "F": 1024,
    "n_channels": 2,
    "separation_exponent": 2,
    "mask_extension": "zeros",
    "learning_rate": 1e-4,
    "batch_size": 4,
    "instrument_list": ["vocals", "accompaniment"],
}
SMALL = {"conv_n_filters": [4, 6, 8, 10, 12, 14]}
ELU = {"conv_activation": "ELU", "deconv_activation": "ELU"}
FOUR = ["vocals", "drums", "bass", "other"]


@dataclass(frozen=True)
class Case:
    """A model to be made: how its config differs from `CONFIG`, and whether the Wiener filter is compared too.

    `gain` is what Spleeter's output is louder by: it always divides by the overlap of windows at a hop of a quarter.
    """

    name: str
    what: str
    params: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    type: str = "unet.unet"
    wiener: bool = False
    gain: float = 1.0

    @property
    def config(self) -> dict[str, Any]:
        return {**CONFIG, **self.changes, "model": {"type": self.type, "params": self.params}, "model_dir": self.name}


CASES = (
    Case("2stems", "LeakyReLU and ReLU", SMALL, wiener=True),
    Case("4stems", "ELU twice", SMALL | ELU, {"instrument_list": FOUR}, wiener=True),
    Case(
        "5stems",
        "softmax, ELU twice",
        SMALL | ELU,
        {"instrument_list": ["vocals", "piano", "drums", "bass", "other"]},
        "unet.softmax_unet",
    ),
    Case(
        "4stems-16kHz",
        "F=1536, average",
        SMALL | ELU,
        {"instrument_list": FOUR, "F": 1536, "mask_extension": "average"},
        wiener=True,
    ),
    Case("odd filters", "3-5-7-11-13-17", {"conv_n_filters": [3, 5, 7, 11, 13, 17]}),
    Case(
        "short frames",
        "frames of 2048, hop 512, T=256, F=1024 of 1025, average",
        SMALL,
        {"frame_length": 2048, "frame_step": 512, "T": 256, "mask_extension": "average"},
    ),
    Case("exponent 1", "separation_exponent=1", SMALL | ELU, {"separation_exponent": 1}),
    Case(
        "unknown activations",
        "Swish and elu: the defaults",
        SMALL | {"conv_activation": "Swish", "deconv_activation": "elu"},
    ),
    Case(
        "own instruments",
        "strings, brass, choir; ReLU and LeakyReLU, F=2048, separation_exponent=1.5",
        SMALL | {"conv_activation": "ReLU", "deconv_activation": "LeakyReLU"},
        {"instrument_list": ["strings", "brass", "choir"], "F": 2048, "separation_exponent": 1.5},
    ),
    Case(
        "hop of an eighth", "frame_step=512; Spleeter is twice as loud, allowed for", SMALL, {"frame_step": 512}, gain=2
    ),
    Case("full size", "no params: 16 to 512 filters", {}, wiener=True),
)


@dataclass(frozen=True)
class Place:
    """The folders of one case, and the song that it is compared on."""

    name: str
    what: str
    model: Path
    work: Path
    song: Path
    wiener: bool = False
    gain: float = 1.0
    # Where Spleeter's stems lie as FLAC that were written elsewhere.
    references: Path | None = None


def main() -> int:
    """Runs the comparison; returns the exit code."""
    options = _parser().parse_args()
    programs = environment.prepare("spleeter", options.environments)
    with tempfile.TemporaryDirectory() as folder:
        work = options.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        chosen = [case for case in CASES if not options.cases or case.name in options.cases]
        made = _make(programs, chosen, work)
        places = made + ([] if options.cases else _shared(work))
        found = compare(programs, places)
    _report(found, {"spleeter": environment.versions("spleeter", options.environments)})
    return int(any(row["decibels"] < LIMIT for row in found))


def compare(programs: Path, places: Sequence[Place]) -> list[dict[str, Any]]:
    """Signal-to-difference of each stem of each case: Spleeter against us, and against itself with our checkpoint."""
    environment.run(programs, [job for place in places for job in _separations(place, "model", place.model)])
    found = []
    for place in places:
        model = spleeter_model.read(place.model)
        found += list(_ours(place, model))
        spleeter_model.write(model, place.work / "written")
    environment.run(
        programs, [job for place in places for job in _separations(place, "written", place.work / "written")]
    )
    for place in places:
        found += list(_theirs(place))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environment.add_option(parser)
    parser.add_argument("--cases", nargs="+", metavar="NAME", help=f"only these: {', '.join(c.name for c in CASES)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep models and stems there")
    return parser


def _make(programs: Path, cases: Sequence[Case], work: Path) -> list[Place]:
    """Has Spleeter write a random model for each case."""
    song = work / "mixture.npy"
    # Spleeter's order of axes is (N, C).
    np.save(song, sum(demo.compose(SEED, seconds=SECONDS).values()).T.astype(np.float32))
    places = [Place(c.name, c.what, work / c.name / "model", work / c.name, song, c.wiener, c.gain) for c in cases]
    jobs = [
        {"task": "make", "folder": place.model, "config": case.config, "waveform": song, "seed": CASES.index(case)}
        for case, place in zip(cases, places, strict=True)
    ]
    environment.run(programs, jobs)
    return places


def _shared(work: Path) -> list[Place]:
    """Models and stems that Spleeter wrote elsewhere, where they lie beside the checkout."""
    if not SHARED.is_dir():
        return []
    song = work / "shared.npy"
    np.save(song, audio.read(SHARED / "mixture.flac", sample_rate=44100, channels=2).T.numpy())
    return [
        Place(
            f"shared {folder.name}",
            "written elsewhere; a real song",
            folder,
            work / f"shared {folder.name}",
            song,
            references=folder,
        )
        for folder in sorted(SHARED.iterdir())
        if folder.is_dir()
    ]


def _separations(place: Place, name: str, model: Path) -> Iterator[dict[str, Any]]:
    for way in _ways(place):
        output = place.work / f"{name} {way}"
        yield {"task": "separate", "folder": model, "waveform": place.song, "output": output, "mwf": way == "wiener"}


def _ways(place: Place) -> tuple[str, ...]:
    return ("masks", "wiener") if place.wiener else ("masks",)


def _ours(place: Place, model: Separator) -> Iterator[dict[str, Any]]:
    """Our stems against those of Spleeter."""
    song = torch.from_numpy(np.load(place.song).T.copy())
    for way in _ways(place):
        divide = None
        if way == "wiener":
            divide = model.by_wiener(functools.reduce(operator.add, model.statistics([song])))
        stems = model.separate(song, divide)
        for stem, ours in zip(model.stems, stems, strict=True):
            yield _score(place, stem, way, _reference(place, way, stem), place.gain * ours)


def _theirs(place: Place) -> Iterator[dict[str, Any]]:
    """Spleeter's stems from the checkpoint that we wrote against those from its own."""
    for way in _ways(place):
        for path in sorted((place.work / f"model {way}").glob("*.npy")):
            yield _score(
                place, path.stem, f"{way}, written", _load(path), _load(place.work / f"written {way}" / path.name)
            )


def _score(place: Place, stem: str, way: str, theirs: Tensor, ours: Tensor) -> dict[str, Any]:
    # What went past full scale was clipped on its way into a FLAC of 24 bits, which reads back as 1 - 2^-23.
    whole = theirs.abs() < 1 - 2**-22 if place.references else torch.ones_like(theirs, dtype=torch.bool)
    found = metrics.usdr((theirs * whole).double().unsqueeze(0), (ours * whole).double().unsqueeze(0))
    same = torch.equal(theirs, ours)
    return {"case": place.name, "what": place.what, "stem": stem, "way": way, "decibels": found.item(), "same": same}


def _reference(place: Place, way: str, stem: str) -> Tensor:
    if place.references:
        return audio.read(place.references / f"{stem}.flac", sample_rate=44100, channels=2)
    return _load(place.work / f"model {way}" / f"{stem}.npy")


def _load(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path).T.copy())


def _report(found: Sequence[dict[str, Any]], versions: Mapping[str, Mapping[str, str]]) -> None:
    ways = ("masks", "wiener", "masks, written", "wiener, written")
    cells = {(row["case"], row["stem"], row["way"]): _cell(row) for row in found}
    whats = {row["case"]: row["what"] for row in found}
    rows = [
        (case, whats[case], stem, *(cells.get((case, stem, way), "") for way in ways))
        for case, stem in dict.fromkeys((row["case"], row["stem"]) for row in found)
    ]
    columns = ("case", "what it has", "stem", "masks", "`--mwf`", "masks, our checkpoint", "`--mwf`, our checkpoint")
    lowest = min(row["decibels"] for row in found)
    text = (
        "# Separation, compared with Spleeter\n\n"
        "Signal-to-difference in dB, float32 on the CPU, higher is nearer. The first two columns: our output from "
        "Spleeter's checkpoint against Spleeter's. The last two: Spleeter's output from the checkpoint that we wrote "
        f"against its output from its own. Lowest: {lowest:.1f} dB; wanted: {LIMIT:.0f} dB.\n\n"
    )
    report.write("golden", text + report.table(columns, rows), {"limit": LIMIT, "found": list(found)}, versions)


def _cell(row: dict[str, Any]) -> str:
    return "the same bits" if row["same"] else f"{row['decibels']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
