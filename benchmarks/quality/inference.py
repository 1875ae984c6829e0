"""What each way to separate with the same weights is worth: `python benchmarks/quality/inference.py --data MIR-1K`.

A model that is trained separates the held-out clips of MIR-1K in every way, clip by clip in turn, so that whatever else
the machine does meets all of them alike. What needs two channels is asked of a stereo model on songs that stemwise
composes, `--stereo-model runs/RUN/model.safetensors`, that of `make demo` for example, or on those of MUSDB18
(`--stereo-data`); without one, that table is left out.
"""

import argparse
import copy
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other scripts, which find each other by name

import report
import timing
from torch import Tensor
from torch.nn import functional

from stemwise import catalogue, masks, metrics, model_file, progress, signals
from stemwise.datasets import demo, mir1k, musdb18
from stemwise.separator import Divide, Estimated, Separator

MODEL = report.RESULTS / "quality" / "mir1k" / "model.safetensors"
SONGS = Path(__file__).resolve().parents[1] / ".quality" / "inference"  # which git ignores
PLAIN = "plain"
PAGE = """# Inference

The same weights, used in other ways. *SDR*: uSDR of songs that were not trained on, mean over stems and songs; *gain*:
beside plain, song by song, ± its standard error, and none where it is less than twice that; *time*: beside plain, the
median over songs that were separated in turn. Plain is Spleeter's way: the model's own windows side by side,
squared-ratio masks. What is marked * the product does not have."""


@dataclass(frozen=True)
class Way:
    """One way to separate: settings of the model, and how they are used; `ours` is whether the product has it."""

    name: str
    use: Callable[[Separator, Tensor], Tensor] = Separator.separate
    frames: int | None = None
    overlap: float = 0.0
    exponent: float = 2.0
    ours: bool = True

    def applied(self, model: Separator) -> Callable[[Tensor], Tensor]:
        """From a waveform (C, N) to stems (S, C, N), with the weights of the model."""
        own = copy.copy(model)
        own.spectrogram = replace(model.spectrogram, frames=self.frames or model.spectrogram.frames)
        own.mask = replace(model.mask, exponent=self.exponent)
        own.overlap = self.overlap
        return lambda waveform: self.use(own, waveform)


def wiener(model: Separator, waveform: Tensor) -> Tensor:
    """With the statistics of the whole song, as `--mwf`: one step, all that the product has."""
    return model.separate(waveform, model.by_wiener_of(10**9))


def shifted(count: int) -> Callable[[Separator, Tensor], Tensor]:
    """The mean over begins of the waveform that are apart by parts of a hop."""

    def use(model: Separator, waveform: Tensor) -> Tensor:
        begins = [number * model.spectrogram.hop // count for number in range(count)]
        made = (model.separate(functional.pad(waveform, (begin, 0)))[..., begin:] for begin in begins)
        return _mean(made, count)

    return use


def swapped(model: Separator, waveform: Tensor) -> Tensor:
    """The mean of what it makes of both orders of the channels."""
    return _mean((model.separate(waveform), model.separate(waveform.flip(0)).flip(1)), 2)


def smoothed(frames: int, bins: int) -> Callable[[Separator, Tensor], Tensor]:
    """With masks that are means over so many frames and bins, of those of a piece."""

    def use(model: Separator, waveform: Tensor) -> Tensor:
        return model.separate(waveform, _smoothing(model, frames, bins))

    return use


def _smoothing(model: Separator, frames: int, bins: int) -> Divide:
    def divide(pieces: Iterator[Estimated]) -> Iterator[Iterable[Tensor]]:
        for estimates, spectrum in pieces:
            seen = spectrum[..., : estimates.shape[-1]]
            exact = masks.ratio(estimates.unsqueeze(0), seen.abs().unsqueeze(0), model.mask)[0]
            border = (frames // 2, bins // 2)
            yield functional.avg_pool2d(exact, (frames, bins), 1, border, count_include_pad=False) * seen

    return divide


def _mean(made: Iterable[Tensor], count: int) -> Tensor:
    total: Tensor | float = 0.0
    for stems in made:
        total = stems + total
    assert isinstance(total, Tensor)
    return total / count


SHORT = 64  # frames; the examples of the model of MIR-1K were as long
MONO = (
    Way(PLAIN),
    *(Way(f"exponent {power:g}", exponent=power) for power in (1.0, 1.5, 3.0)),
    Way("Wiener filter", wiener),
    *(Way(f"windows of {frames}", frames=frames) for frames in (64, 128, 256, 512)),
    *(
        Way(f"windows of {frames}, overlap {share}", frames=frames, overlap=share)
        for frames in (SHORT, 128, 256)
        for share in (0.25, 0.5, 0.75)
    ),
    *(Way(f"{count} shifts", shifted(count), ours=False) for count in (2, 4)),
    *(
        Way(f"windows of {SHORT}, overlap 0.25, {count} shifts", shifted(count), SHORT, 0.25, ours=False)
        for count in (2, 3)
    ),
    *(
        Way(f"masks smoothed, {frames} × {bins} (frames × bins)", smoothed(frames, bins), ours=False)
        for frames, bins in ((3, 1), (1, 3), (3, 3))
    ),
    Way(f"windows of {SHORT}, overlap 0.25, exponent 1", frames=SHORT, overlap=0.25, exponent=1.0),
    Way(
        "the same, masks smoothed, 3 × 3",
        smoothed(3, 3),
        frames=SHORT,
        overlap=0.25,
        exponent=1.0,
        ours=False,
    ),
)
STEREO = (
    Way(PLAIN),
    Way("exponent 1", exponent=1.0),
    Way("Wiener filter", wiener),
    Way("channels swapped, averaged", swapped, ours=False),
    Way("2 shifts", shifted(2), ours=False),
    *(Way(f"overlap {share}", overlap=share) for share in (0.25, 0.5, 0.75)),
    *(
        Way(f"overlap {share}, channels swapped, averaged", swapped, overlap=share, ours=False)
        for share in (0.25, 0.75)
    ),
    Way("overlap 0.5, Wiener filter", wiener, overlap=0.5),
)


def measured(model: Separator, songs: Sequence[catalogue.Song], ways: Sequence[Way]) -> dict[str, Any]:
    """Of each way the SDR in dB and the seconds of every song, and the SDR of the mixtures."""
    calls = {way.name: way.applied(model) for way in ways}
    scores: dict[str, list[float]] = {name: [] for name in calls}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    mixtures = []
    for number, song in enumerate(progress.track(songs, what="Songs", total=len(songs))):
        waveforms = signals.stack([song.mixture, *song.stems], model.spectrogram)
        mixture, stems = waveforms[0], waveforms[1:]
        mixtures.append(_sdr(stems, mixture.expand_as(stems)))
        # The first time, memory is fetched and kernels are chosen.
        for call in calls.values() if number == 0 else ():
            call(mixture)
        for name, call in calls.items():
            made: list[Tensor] = []
            seconds[name].append(timing.timed(partial(_keep, call, mixture, made)))
            scores[name].append(_sdr(stems, made[0]))
    return {"mixture": mixtures, "sdr": scores, "seconds": seconds}


def _keep(call: Callable[[Tensor], Tensor], mixture: Tensor, made: list[Tensor]) -> None:
    made.append(call(mixture))


def _sdr(stems: Tensor, estimates: Tensor) -> float:
    return float(metrics.usdr(stems, estimates).nanmean())


def table(found: Mapping[str, Any], ways: Sequence[Way]) -> str:
    """A row for each way."""
    scores, seconds = found["sdr"], found["seconds"]
    rows = []
    for way in ways:
        sdr = statistics.mean(scores[way.name])
        above = sdr - statistics.mean(found["mixture"])
        ratios = [one / plain for one, plain in zip(seconds[way.name], seconds[PLAIN], strict=True)]
        cost = "" if way.name == PLAIN else f"{timing.number(statistics.median(ratios))} ×"
        gain = "" if way.name == PLAIN else difference(scores[way.name], scores[PLAIN])
        rows.append((way.name + ("" if way.ours else " *"), f"{sdr:.2f}", f"{above:.2f}", gain, cost))
    return report.table(("way", "SDR, dB", "above the mixture, dB", "gain, dB", "time"), rows)


def difference(scores: Sequence[float], plain: Sequence[float]) -> str:
    """`+0.31 ± 0.05`: the mean over songs and its standard error, `none (+0.01)` where it is less than twice that."""
    apart = [one - other for one, other in zip(scores, plain, strict=True) if not math.isnan(one - other)]
    mean = statistics.mean(apart)
    error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.inf
    return f"{mean:+.2f} ± {error:.2f}" if abs(mean) > 2 * error else f"none ({mean:+.2f})"


def main() -> int:
    """Measures all ways and writes page and JSON."""
    options = _parser().parse_args()
    parts, found = [PAGE], {}
    voices, facts = model_file.read(options.model)
    clips = catalogue.songs(mir1k.find(options.data)["valid"], voices.stems, {})
    found["mir1k"] = measured(voices, clips, MONO)
    parts += [f"## MIR-1K\n\n{_about(voices, facts, len(clips))}", table(found["mir1k"], MONO)]
    if options.stereo_model:
        model, facts = model_file.read(options.stereo_model)
        name, songs = _stereo_songs(model, options.stereo_data)
        found["stereo"] = measured(model, songs, STEREO)
        parts += [f"## Stereo: {name}\n\n{_about(model, facts, len(songs))}", table(found["stereo"], STEREO)]
    report.write("quality/inference", "\n\n".join(parts), found, {}, device=".")
    return 0


def _about(model: Separator, facts: Mapping[str, Any], songs: int) -> str:
    settings, rule = model.spectrogram, model.mask
    return (
        f"{songs} songs; {', '.join(model.stems)}; windows of {settings.frames} frames, "
        f"{settings.sample_rate / settings.hop:.0f} a second. The model was trained for {facts.get('step', 'unknown')} "
        f"steps and says itself: exponent {rule.exponent:g}, overlap {model.overlap:g}."
    )


def _stereo_songs(model: Separator, root: Path | None) -> tuple[str, list[catalogue.Song]]:
    if root is not None:
        return "MUSDB18", catalogue.songs(musdb18.find(root)["test"], model.stems, {})
    held_out = demo.find(SONGS, songs={"train": 0, "valid": 0, "test": 12})
    return "demo songs", catalogue.songs(held_out["test"], model.stems, {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="MIR-1K")
    parser.add_argument("--model", type=Path, default=MODEL, help="of MIR-1K (default: the one that is kept here)")
    parser.add_argument("--stereo-model", type=Path, help="a model.safetensors; none: no table for stereo")
    parser.add_argument("--stereo-data", type=Path, help="MUSDB18, whose test songs it takes (default: demo songs)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
