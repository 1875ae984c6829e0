"""What each `mask.extension` does above the model's band, on songs with stems: prints and writes a Markdown page.

    python benchmarks/band_extension.py /path/to/musdb18 --model runs/RUN/model.safetensors

Below F the masks are the true stems' ratio masks (what a perfect network would give) and, with `--model`, a
trained network's. Everything is measured on spectra. Axes: S stem, C channel, T frame, F bin.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import report
import torch
from torch import Tensor
from torch.nn import functional

from stemwise import catalogue, masks, model_file, progress, signals, spectrogram
from stemwise.datasets import musdb18
from stemwise.errors import UserError
from stemwise.index import Index
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram

RESULTS = report.RESULTS / report.slug() / "band_extension.md"
STEMS = musdb18.STEMS
QUIET = STEMS.index("bass")  # the stem with hardly anything above F: what it gets there leaked from the others
SETTINGS = Spectrogram()  # Spleeter's
USUAL, HIGH = 1024, 1536  # F of Spleeter's models and of their 16 kHz variants
BANDS = (USUAL, HIGH, 512)  # and one with much above it
TRUTH, BEST = "*the true stems*", "*best gain per frame*"

Extension = Callable[[Tensor, int], Tensor]
"""Masks (S, C, T, F) and a count of bins -> masks (S, C, T, bins) of the bins from F on, or that expand to it."""


@dataclass(frozen=True)
class Song:
    """Spectra (C, T, bins) of a mixture, and of its stems (S, C, T, bins)."""

    split: str
    mixture: Tensor
    stems: Tensor


@dataclass(frozen=True)
class Measures:
    """Of one song. dB; per stem, and last of all stems' energies taken together."""

    above: Tensor  # (S + 1): SDR above F
    energy: Tensor  # (S + 1): estimate / stem, above F
    full: Tensor  # (S + 1): SDR of all bins
    leak: float  # energy of the quiet stem's estimate / of the mixture, above F
    flicker: float  # change of the gain from frame to frame


@dataclass(frozen=True)
class Case:
    """Masks from `source` up to bin `bins`, and what every rule makes of them, song by song."""

    source: str
    bins: int
    splits: list[str]
    found: dict[str, list[Measures]]

    @property
    def title(self) -> str:
        return f"{self.source}, F={self.bins}"

    def held_out(self) -> "Case":
        """Only the songs that the usual split does not train on."""
        kept = [number for number, split in enumerate(self.splits) if split != "train"]
        found = {rule: [measures[number] for number in kept] for rule, measures in self.found.items()}
        return Case(f"{self.source}, held out", self.bins, [self.splits[number] for number in kept], found)


# --- the rules


def shipped(extension: str) -> Extension:
    return lambda found, count: masks.extend(found, found.shape[-1] + count, extension)[..., found.shape[-1] :]


def top_mean(part: int) -> Extension:
    """Mean of the uppermost F / `part` bins."""
    return lambda found, _: found[..., -(found.shape[-1] // part) :].mean(dim=-1, keepdim=True)


def last_bin(found: Tensor, _: int) -> Tensor:
    return found[..., -1:]


def rising(found: Tensor, _: int) -> Tensor:
    """Mean with weights that grow as the frequency."""
    weights = torch.arange(1, found.shape[-1] + 1, dtype=found.dtype)
    return (found * weights).sum(dim=-1, keepdim=True) / weights.sum()


def line(found: Tensor, count: int) -> Tensor:
    """The straight line through the top quarter, continued, and divided anew."""
    top = found[..., -(found.shape[-1] // 4) :]
    place = torch.arange(top.shape[-1] + count, dtype=found.dtype) - (top.shape[-1] - 1) / 2
    within = place[: top.shape[-1]]
    slope = (top * within).sum(dim=-1, keepdim=True) / within.square().sum()
    return _divide((top.mean(dim=-1, keepdim=True) + slope * place[top.shape[-1] :]).clamp(0, 1))


def fade(found: Tensor, count: int) -> Tensor:
    """The top quarter's mean, which turns into the whole band's within F / 4 bins."""
    weight = torch.exp(-torch.arange(count) / (found.shape[-1] / 4))
    top, whole = top_mean(4)(found, count), top_mean(1)(found, count)
    return whole + (top - whole) * weight


def mirror(found: Tensor, count: int) -> Tensor:
    """Bin F + n as bin F - n, and the mean above 2F."""
    turned = found.flip(-1)[..., :count]
    rest = found.mean(dim=-1, keepdim=True).expand(*found.shape[:-1], count - turned.shape[-1])
    return torch.cat([turned, rest], dim=-1)


def geometric(part: int) -> Extension:
    """Geometric mean of the uppermost F / `part` bins, divided anew."""

    def rule(found: Tensor, _: int) -> Tensor:
        # Below -60 dB a mask is as good as zero; without a floor one such bin would decide alone.
        top = found[..., -(found.shape[-1] // part) :].clamp(min=1e-6)
        return _divide(top.log().mean(dim=-1, keepdim=True).exp())

    return rule


def median(found: Tensor, _: int) -> Tensor:
    return _divide(found[..., -(found.shape[-1] // 4) :].median(dim=-1, keepdim=True).values)


def sharpened(found: Tensor, count: int) -> Tensor:
    return _divide(top_mean(4)(found, count).square())


def three_frames(found: Tensor, count: int) -> Tensor:
    """The top quarter's mean, and its mean over a frame and its two neighbours."""
    top = top_mean(4)(found, count)
    before, after = (torch.cat([top[..., :1, :], top], -2)[..., :-1, :], torch.cat([top, top[..., -1:, :]], -2))
    return (before + top + after[..., 1:, :]) / 3


def both_channels(found: Tensor, count: int) -> Tensor:
    return top_mean(4)(found, count).mean(dim=1, keepdim=True).expand(*found.shape[:-1], 1)


def _divide(values: Tensor) -> Tensor:
    return values / values.sum(dim=0, keepdim=True).clamp(min=masks.EPSILON)


RULES: Mapping[str, Extension] = {
    **{f"`{name}`": shipped(name) for name in masks.EXTENSIONS},
    "mean of the top 1/16": top_mean(16),
    "mean of the top 1/8": top_mean(8),
    "mean of the top 1/3": top_mean(3),
    "mean of the top 1/2": top_mean(2),
    "the last bin": last_bin,
    "mean, weights rise with frequency": rising,
    "line through the top 1/4": line,
    "top 1/4, fading to the whole": fade,
    "mirrored at F": mirror,
    "top 1/4: geometric mean": geometric(4),
    "top 1/2: geometric mean": geometric(2),
    "top 1/4: median": median,
    "top 1/4: mean, squared": sharpened,
    "top 1/4: mean, both channels": both_channels,
    "top 1/4: mean, three frames": three_frames,
}


# --- the measurement


def songs(splits: Mapping[str, Index]) -> Iterator[Song]:
    for split, found in splits.items():
        for song in catalogue.songs(found, STEMS, {}):
            spectra = spectrogram.stft(signals.stack([song.mixture, *song.stems], SETTINGS), SETTINGS)
            yield Song(split, spectra[0], spectra[1:])


def masks_of_stems(song: Song, bins: int) -> Tensor:
    truths, mixture = song.stems[..., :bins].abs(), song.mixture[..., :bins].abs()
    return masks.ratio(truths.unsqueeze(0), mixture.unsqueeze(0), MaskRule())[0]


def masks_of_model(model: Separator, song: Song, bins: int) -> Tensor:
    """Window by window, as the model separates; a network takes any F, which is how the 16 kHz variants came."""
    found = []
    for window in song.mixture[..., :bins].abs().split(model.spectrogram.frames, dim=-2):
        frames = window.shape[-2]
        padded = functional.pad(window, (0, 0, 0, model.spectrogram.frames - frames)).unsqueeze(0)
        found.append(masks.ratio(model(padded), padded, model.mask)[0, ..., :frames, :])
    return torch.cat(found, dim=-2)


def measure(song: Song, found: Tensor) -> dict[str, Measures]:
    """What each rule makes of the masks `found` (S, C, T, F) of a song."""
    bins = found.shape[-1]
    below = song.stems[..., :bins]
    above = Above.of(
        song.mixture[..., bins:],
        song.stems[..., bins:],
        _energy(below),
        _energy(below - found * song.mixture[..., :bins]),
    )
    gains = {name: rule(found, above.power.shape[-1]) for name, rule in RULES.items()}
    return {name: above.measures(gain) for name, gain in gains.items()} | {
        BEST: above.measures(above.best),
        TRUTH: above.truth(),
    }


@dataclass(frozen=True)
class Above:
    """A song above F, as the products that give the error of any real gain g on the mixture x.

    |s - g x|² = |s|² - 2 g Re(s x*) + g² |x|²
    """

    power: Tensor  # |x|² (C, T, bins)
    cross: Tensor  # Re(s x*) (S, C, T, bins)
    sums: tuple[Tensor, Tensor]  # both over the bins (…, 1), all that gains without a shape in frequency need
    true: Tensor  # (S + 1), like all energies
    below: Tensor
    below_error: Tensor

    @classmethod
    def of(cls, mixture: Tensor, stems: Tensor, below: Tensor, below_error: Tensor) -> "Above":
        power, cross = _power(mixture), mixture.real * stems.real + mixture.imag * stems.imag
        sums = power.sum(-1, keepdim=True), cross.sum(-1, keepdim=True)
        return cls(power, cross, sums, _energy(stems), below, below_error)

    @property
    def best(self) -> Tensor:
        """The gain (S, C, T, 1) with the least error."""
        power, cross = self.sums
        return cross / power.clamp(min=masks.EPSILON)

    def measures(self, gain: Tensor) -> Measures:
        """Of the gains (S, C, T, bins) or (S, C, T, 1) on the mixture."""
        power, cross = self.sums if gain.shape[-1] == 1 else (self.power, self.cross)
        claimed = _total(gain.square() * power)
        error = self.true - 2 * _total(gain * cross) + claimed
        shares = (gain * power).sum(-1, keepdim=True) / self.sums[0].clamp(min=masks.EPSILON)
        return self._measures(claimed, error, shares)

    def truth(self) -> Measures:
        return self._measures(self.true, torch.zeros_like(self.true), self.best)

    def _measures(self, claimed: Tensor, error: Tensor, shares: Tensor) -> Measures:
        power = self.sums[0]
        weight = power[:, 1:] + power[:, :-1]
        return Measures(
            above=_decibel(self.true, error),
            energy=_decibel(claimed, self.true),
            full=_decibel(self.below + self.true, self.below_error + error),
            leak=float(_decibel(claimed[QUIET], power.sum(dtype=torch.float64))),
            flicker=float((shares.diff(dim=-2).abs().mean(dim=0) * weight).sum() / weight.sum()),
        )


def _energy(spectra: Tensor) -> Tensor:
    return _total(_power(spectra))


def _power(spectra: Tensor) -> Tensor:
    return spectra.real.square() + spectra.imag.square()


def _total(values: Tensor) -> Tensor:
    """Sums (S + 1) of values (S, C, T, bins), the sum of all stems last."""
    each = values.sum(dim=(1, 2, 3), dtype=torch.float64)
    return torch.cat([each, each.sum().unsqueeze(0)])


def _decibel(one: Tensor, other: Tensor) -> Tensor:
    """nan where a stem is silent on both sides or has nothing to be compared with."""
    return 10 * torch.log10(one / other)


def cut_off(song: Song) -> int:
    """The bin at which the mixture falls most steeply above the usual F: where its coder stopped."""
    level = _power(song.mixture[..., USUAL:]).sum(dim=(0, 1)).log10()
    near = level.unfold(0, 16, 1).mean(dim=-1)
    return USUAL + 16 + int((near[:-16] - near[16:]).argmax())


def coding_noise(song: Song) -> float:
    """dB above the usual F by which the mixture is not the sum of its stems, below the mixture."""
    mixture, stems = song.mixture[..., USUAL:], song.stems[..., USUAL:]
    return float(_decibel(_power(mixture).sum(), _power(mixture - stems.sum(dim=0)).sum()))


def run(splits: Mapping[str, Index], model: Separator | None) -> tuple[list[Case], str]:
    """Every case, and a line on the songs."""
    sources: dict[str, Callable[[Song, int], Tensor]] = {"true masks": masks_of_stems}
    if model is not None:
        sources["model"] = lambda song, bins: masks_of_model(model, song, bins)
    cases = [Case(source, bins, [], {}) for bins in BANDS for source in sources]
    cuts, noises = [], []
    total = sum(len(found.tracks) for found in splits.values())
    for song in progress.track(songs(splits), what="Songs", total=total):
        for case in cases:
            case.splits.append(song.split)
            for rule, measures in measure(song, sources[case.source](song, case.bins)).items():
                case.found.setdefault(rule, []).append(measures)
        cuts.append(cut_off(song))
        noises.append(coding_noise(song))
    return cases, (
        f"{total} songs. Their coder cut them at {_kilohertz(statistics.median(cuts))} (median); the true stems add "
        f"up to the mixture to within {statistics.median(noises):.1f} dB above F={USUAL} (median). "
        + ", ".join(f"F={bins} is {_kilohertz(bins)}" for bins in BANDS)
        + "."
    )


def _kilohertz(bins: float) -> str:
    return f"{bins * SETTINGS.sample_rate / SETTINGS.n_fft / 1000:.1f} kHz"


# --- the page


def page(cases: Sequence[Case], about: str, command: str) -> str:
    usual = [case for case in cases if case.bins == USUAL]
    held_out = [case.held_out() for case in usual if case.source == "model" and {*case.splits} != {"train"}]
    detailed = [*usual, *held_out, *(case for case in cases if case.bins == HIGH)]
    parts = [f"# What `mask.extension` does above F\n\nMade by `{command}`.", about, LEGEND]
    parts += [f"## {case.title}: {len(case.splits)} songs\n\n{_by_stem(case)}" for case in detailed]
    parts += [
        "## What else was tried",
        "SDR above F of all stems together, dB, mean over songs.",
        _rules(cases + held_out),
    ]
    parts += [
        f"### Energies, leak and flicker: {case.title}\n\nEnergy and leak in dB, median.\n\n{_listening(case)}"
        for case in usual
    ]
    return "\n\n".join(parts) + "\n"


LEGEND = """\
SDR is 10 log10(Σ s² / Σ (s - e)²) in dB, over the bins from F on or over all of them (full band), of one song.
Energy is that of the estimate over that of the true stem from F on, in dB. `all` takes the energies of all stems
together: the bass has hardly anything above F but coding noise, so its own SDR there says little. Leak is the
energy from F on of the bass's estimate over that of the mixture. Flicker is how much a stem's share of the mixture
above F changes from frame to frame, weighted by the mixture's power, in percentage points. *Best gain per frame* is
fitted to the true stems: no rule that takes one gain per stem, channel and frame can have a better SDR. Held out
are the songs on which `data=musdb18` does not train."""


def _by_stem(case: Case) -> str:
    shown = [*(f"`{extension}`" for extension in masks.EXTENSIONS), BEST]
    rows = [
        [stem, name, *_row(case.found[name], number)] for number, stem in enumerate((*STEMS, "all")) for name in shown
    ]
    head = ["SDR above F, median", "mean", "energy, median", "full-band SDR, median", "mean"]
    return _table(["stem", "extension"], head, rows)


def _row(measures: Sequence[Measures], stem: int) -> list[str]:
    above, energy, full = ([float(getattr(m, which)[stem]) for m in measures] for which in ("above", "energy", "full"))
    return [_db(_median(above)), _db(_mean(above)), _db(_median(energy), 1), _db(_median(full)), _db(_mean(full))]


def _rules(cases: Sequence[Case]) -> str:
    rows = [
        [name, *(_db(_mean([float(m.above[-1]) for m in c.found[name]])) for c in cases)] for name in (*RULES, BEST)
    ]
    return _table(["rule"], [case.title for case in cases], rows)


def _listening(case: Case) -> str:
    rows = []
    for name, found in case.found.items():
        energies = [_db(_median([float(m.energy[stem]) for m in found]), 1) for stem in range(len(STEMS))]
        leak, flicker = _db(_median([m.leak for m in found]), 1), _mean([m.flicker for m in found])
        rows.append([name, *energies, leak, f"{100 * flicker:.1f}"])
    return _table(["rule"], [*(f"energy, {stem}" for stem in STEMS), "leak", "flicker"], rows)


def _table(names: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[*names, *numbers], ["---"] * len(names) + ["---:"] * len(numbers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _median(values: Sequence[float]) -> float:
    return _over(statistics.median, values)


def _mean(values: Sequence[float]) -> float:
    return _over(statistics.fmean, values)


def _over(summary: Callable[[list[float]], float], values: Sequence[float]) -> float:
    """Of the songs that have the stem; nan if none has."""
    known = [value for value in values if not math.isnan(value)]
    return summary(known) if known else math.nan


def _db(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else {math.inf: "∞", -math.inf: "-∞"}.get(value, "–")


# --- the command


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    try:
        model = None if options.model is None else _load(options.model)
        with torch.inference_mode():
            cases, about = run(musdb18.find(options.data), model)
        text = page(cases, about, f"python benchmarks/{Path(__file__).name} DATA{' --model M' if model else ''}")
        _write(options.output, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _load(path: Path) -> Separator:
    model = model_file.load(path)
    if model.stems != STEMS:
        raise UserError(f"--model {path}: its stems are {', '.join(model.stems)}. Give one for {', '.join(STEMS)}.")
    if (found := replace(model.spectrogram, frames=SETTINGS.frames, bins=SETTINGS.bins)) != SETTINGS:
        raise UserError(f"--model {path}: it has {found}. Give one with {SETTINGS} (frames and bins do not matter).")
    return model


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"-o {path}: cannot be written ({error.strerror}). Choose another file.") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="MUSDB18 or a part of it: the folder of train and test")
    parser.add_argument(
        "--model", type=Path, metavar="M", help="a run's model.safetensors for vocals, drums, bass, other"
    )
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
