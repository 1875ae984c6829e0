"""Several evaluations brought to what they have in common, so that they can be compared song by song."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from stemwise.errors import UserError, raise_all
from stemwise.evaluation import statistics
from stemwise.evaluation.results import MIXTURE, MODEL, Evaluation, Scored
from stemwise.evaluation.statistics import Array, Difference

OVERALL = "mean of stems"
LENGTH = 0.1  # seconds by which two readings of a song may differ
SAME = 0.1  # dB by which two scores of one mixture may differ; two solvers differ by 0.001


@dataclass(frozen=True)
class Paired:
    """Evaluations of the same songs and stems in the same order, and what a reader has to know of them."""

    evaluations: tuple[Evaluation, ...]
    stems: tuple[str, ...]
    notes: tuple[str, ...]

    def difference(self, number: int, stem: str, metric: str = "SDR") -> Array:
        """dB (K,) by which that evaluation is above the first."""
        return self._values(number, stem, metric) - self._values(0, stem, metric)

    def average_difference(self, number: int) -> Array:
        """dB (K,): the mean over the stems of a song that both have; nan where there is none."""
        return statistics.average(np.stack([self.difference(number, stem) for stem in self.stems]))

    def differences(self, number: int) -> dict[str, tuple[Array, Difference]]:
        """Of one model's SDR against the first's: of each stem, and of the mean of a song's stems."""
        values = {stem: self.difference(number, stem) for stem in self.stems}
        if len(self.stems) > 1:
            values[OVERALL] = self.average_difference(number)
        generator = np.random.default_rng(statistics.SEED)
        return {name: (apart, statistics.difference(apart, generator)) for name, apart in values.items()}

    def _values(self, number: int, stem: str, metric: str) -> Array:
        return self.evaluations[number].values(MODEL, stem, metric)


def pair(evaluations: Sequence[Evaluation]) -> Paired:
    """Brings evaluations together by the names of their songs. Raises `UserError` if they are of unlike things."""
    first, *others = evaluations
    if len({one.about.of_windows for one in evaluations}) > 1:
        listed = "; ".join(f"{one.folder}: solver={one.about.solver}" for one in evaluations)
        raise UserError(f"scores of two kinds ({listed}): mir_eval's are BSSEval v3. Evaluate all with one solver.")
    stems = tuple(stem for stem in first.about.stems if all(stem in other.about.stems for other in others))
    if not stems:
        listed = "; ".join(f"{one.folder}: {', '.join(one.about.stems)}" for one in evaluations)
        raise UserError(f"no stem is in all evaluations ({listed}). Compare models of the same stems.")
    names = [{song.name for song in one.songs} for one in evaluations]
    shared = set.intersection(*names)
    common = [song.name for song in first.songs if song.name in shared]
    if not common:
        listed = "; ".join(f"{one.folder}: {one.about.data}, {one.about.split}" for one in evaluations)
        raise UserError(f"no song is in all evaluations ({listed}). Evaluate the models on the same data and split.")
    alike = tuple(one.only(common, stems) for one in evaluations)
    problems = [problem for other in alike[1:] for problem in _unlike(alike[0], other)]
    raise_all(problems, heading="songs of the same name that are not the same")
    doubts = [note for other in alike[1:] for note in _doubts(alike[0], other)]
    return Paired(alike, stems, (*_left_out(evaluations, shared, stems), *_circumstances(evaluations), *doubts))


def averages(evaluations: Sequence[Evaluation]) -> list[Array]:
    """dB (K,) of each: the mean over the stems of a song for which all of them have a score."""
    every = np.stack([[one.values(MODEL, stem) for stem in evaluations[0].about.stems] for one in evaluations])
    every[:, ~np.isfinite(every).all(axis=0)] = np.nan
    return [statistics.average(one) for one in every]


def _unlike(first: Evaluation, other: Evaluation) -> list[str]:
    """What shows that two evaluations read other files under the same names."""
    found = [
        f"{one.name}: {one.seconds:.1f} s in {first.folder}, {two.seconds:.1f} s in {other.folder}. Evaluate both "
        "models on the same files."
        for one, two in zip(first.songs, other.songs, strict=True)
        if abs(one.seconds - two.seconds) > LENGTH
    ]
    if not _in_one_form(first, other):
        return found
    # The mixture's own score tells contents apart, and takes no reading of files.
    for stem in first.about.stems:
        before, after = (one.values(MIXTURE, stem) for one in (first, other))
        found += [
            f"{first.songs[place].name}: the unprocessed mixture has {before[place]:.2f} dB on {stem} in "
            f"{first.folder}, {after[place]:.2f} dB in {other.folder}. Evaluate both models on the same files and "
            "stem_sums."
            for place in np.flatnonzero(np.abs(before - after) > SAME)
        ]
    return found + [
        f"{one.name}: its files in {first.folder} are not those in {other.folder}, and no score of the mixture tells "
        "whether they sound the same. Evaluate both models on the same files, or both with baselines=[mixture]."
        for one, two in _unscored(first, other)
        if _same_files(one, two, first.about.stems) is False
    ]


def _doubts(first: Evaluation, other: Evaluation) -> list[str]:
    """A sentence on the songs of which nothing says that both evaluations read the same files, if there are any."""
    stems = first.about.stems
    found = [one.name for one, two in _unscored(first, other) if not _same_files(one, two, stems)]
    names = f"{first.about.model} and {other.about.model}"
    return [f"Nothing says that {names} were given the same files of {_listed(found)}."] if found else []


def _unscored(first: Evaluation, other: Evaluation) -> list[tuple[Scored, Scored]]:
    """The songs, as both have them, of which no score of the mixture can be compared."""
    pairs = zip(first.songs, other.songs, strict=True)
    if not _in_one_form(first, other):
        return list(pairs)
    mixtures = zip(first.average(MIXTURE), other.average(MIXTURE), strict=True)
    return [pair for pair, both in zip(pairs, mixtures, strict=True) if not np.isfinite(both).all()]


def _in_one_form(first: Evaluation, other: Evaluation) -> bool:
    one, two = first.about, other.about
    return (one.sample_rate, one.channels) == (two.sample_rate, two.channels)


def _same_files(one: Scored, two: Scored, stems: Sequence[str]) -> bool | None:
    """Whether the files of the mixture and the stems have the same content; None if one evaluation does not say."""
    pairs = [(one.marks.get(key), two.marks.get(key)) for key in ("", *stems)]
    return None if any(None in pair for pair in pairs) else all(before == after for before, after in pairs)


def _left_out(evaluations: Sequence[Evaluation], shared: Set[str], stems: Sequence[str]) -> list[str]:
    notes = []
    for one in evaluations:
        if left := [song.name for song in one.songs if song.name not in shared]:
            notes.append(f"{one.about.model}: {_listed(left)} not in the others, and left out.")
        if left := [stem for stem in one.about.stems if stem not in stems]:
            notes.append(f"{one.about.model}: the stems {', '.join(left)} are not in the others, and left out.")
    return notes


def _circumstances(evaluations: Sequence[Evaluation]) -> list[str]:
    notes = []
    first = evaluations[0].about
    for key, words in (
        ("solver", "computed by"),
        ("sample_rate", "scored at (Hz; each loses what lies above half of it, which is not counted)"),
        ("channels", "scored with channels"),
        ("data", "data"),
        ("split", "split"),
    ):
        if any(getattr(one.about, key) != getattr(first, key) for one in evaluations):
            told = ", ".join(f"{one.about.model}: {getattr(one.about, key)}" for one in evaluations)
            notes.append(f"Not the same in all: {words} ({told}).")
    if len({(one.about.digest, one.about.overlap) for one in evaluations}) < len(evaluations):
        notes.append("Two of the evaluations are of the very same model file.")
    return notes


def verdict(found: Difference, name: str, first: str) -> str:
    """Which is better, in words, and whether the songs suffice to say so."""
    if not found.mean.songs:
        return "no song has both scores"
    if found.mean.songs < statistics.FEW:
        return "too few songs to tell"
    if found.is_clear:
        return f"{name if found.mean.value > 0 else first} is better"
    return "not told apart"


def _listed(songs: Sequence[str]) -> str:
    shown = "; ".join(songs[:3])
    return f"{len(songs)} song{'s' if len(songs) > 1 else ''} ({shown}{'; …' if len(songs) > 3 else ''})"


def named(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """The same with models that have names of their own: runs, and folders of evaluations, may be called the same."""
    names = [one.about.model for one in evaluations]
    folders = [(one.about.model, one.folder.name) for one in evaluations]
    found = []
    for number, (one, name, folder) in enumerate(zip(evaluations, names, folders, strict=True), 1):
        own = one.folder.name if folders.count(folder) == 1 else number
        name = f"{name} ({own})" if names.count(name) > 1 else name
        found.append(replace(one, about=replace(one.about, model=name)))
    return tuple(found)
