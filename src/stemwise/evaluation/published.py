"""What others published on MUSDB18's test set: for orientation beside a model, never a measurement of ours.

dB of BSSEval v4 as in museval: median over windows of one second, then over the 50 songs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stemwise.evaluation.results import About

STEMS = ("vocals", "drums", "bass", "other")
MEASURES = ("SDR", "SIR", "SAR", "ISR")
WHOLE = "the 50 whole songs of MUSDB18's test set"
WHOLE_HQ = "the 50 whole songs of MUSDB18-HQ's test set"


@dataclass(frozen=True)
class System:
    """A separator: what it was trained and scored on, the measures of each stem that are printed, and where.

    `source` is short, for a row of a table. `second_hand`: the figures stand there as those of another paper.
    """

    name: str
    source: str
    trained_on: str
    scored_on: str
    scores: Mapping[str, Mapping[str, float]]
    printed_in: str
    second_hand: bool = False

    @property
    def origin(self) -> str:
        """The short source, and whether it quotes another."""
        return f"{self.source}, second-hand" if self.second_hand else self.source

    @property
    def is_whole(self) -> bool:
        """Whether all four measures are printed."""
        return all(len(measures) == len(MEASURES) for measures in self.scores.values())


def _scores(*stems: Sequence[float]) -> dict[str, dict[str, float]]:
    """Of each of `STEMS`, as many of `MEASURES` as there are."""
    return {stem: dict(zip(MEASURES, values, strict=False)) for stem, values in zip(STEMS, stems, strict=True)}


_SPLEETER = "Hennequin et al., Spleeter, JOSS 5(50), 2020 (paper.md in its repository)"

SYSTEMS = (
    System(
        "Spleeter 4stems, masks",
        "JOSS 2020",
        "25 000 songs of Deezer's",
        WHOLE,
        _scores(
            (6.55, 15.19, 6.44, 12.01), (5.93, 12.24, 5.78, 10.50), (5.10, 10.01, 5.15, 9.18), (4.24, 7.86, 4.63, 9.83)
        ),
        _SPLEETER,
    ),
    System(
        "Spleeter 4stems, Wiener filter",
        "JOSS 2020",
        "25 000 songs of Deezer's",
        WHOLE,
        _scores(
            (6.86, 15.86, 6.99, 11.95), (6.71, 13.67, 6.54, 10.69), (5.51, 10.30, 5.96, 9.61), (4.55, 8.16, 4.88, 9.87)
        ),
        _SPLEETER,
    ),
    System(
        "Spleeter, its musdb config",
        "its repository, 2020",
        "MUSDB18",
        WHOLE,
        _scores(
            (4.69, 12.24, 4.94, 9.64), (4.59, 9.21, 4.79, 8.60), (3.71, 6.44, 5.02, 9.31), (3.10, 5.23, 3.93, 7.91)
        ),
        "github.com/deezer/spleeter, issue 81, 22 May 2020; three days later its makers mended an error in their "
        "pipeline, and give 4.43 dB of SDR on the average of the stems since",
    ),
    System(
        "Open-Unmix",
        "JOSS 2019",
        "MUSDB18",
        WHOLE,
        _scores(
            (6.32, 13.33, 6.52, 11.93), (5.73, 11.12, 6.02, 10.51), (5.23, 10.93, 6.34, 9.23), (4.02, 6.59, 4.74, 9.31)
        ),
        "Stöter et al., Open-Unmix, JOSS 4(41), 2019; SIR, SAR and ISR as Spleeter's paper lists them",
    ),
    System(
        "Demucs v2",
        "2021",
        "MUSDB18",
        WHOLE,
        _scores((6.84,), (6.86,), (7.01,), (4.42,)),
        "Défossez et al., 2021, as listed by Kim et al., KUIELab-MDX-Net, 2021",
        second_hand=True,
    ),
    System(
        "Hybrid Demucs (v3)",
        "2021",
        "MUSDB18-HQ",
        WHOLE_HQ,
        _scores((8.13,), (8.24,), (8.76,), (5.59,)),
        "Défossez, Hybrid Spectrogram and Waveform Source Separation, arXiv 2111.03600v3, 2021, as quoted in "
        "github.com/facebookresearch/demucs, issue 493",
        second_hand=True,
    ),
)


def beside(about: About) -> tuple[System, ...]:
    """The systems whose stems are the same: all four of MUSDB18's, or its vocals and what else there is.

    A stem of the same name is another stem where not all four are told apart: `other` of five stems has no piano. None
    stands beside scores of BSSEval v3.
    """
    stems = about.stems
    if not about.of_windows:
        return ()
    if set(stems) == set(STEMS):
        return SYSTEMS
    if "vocals" in stems and not set(stems) & {"drums", "bass", "other"}:
        return tuple(replace(system, scores={"vocals": system.scores["vocals"]}) for system in SYSTEMS)
    return ()


def source(system: System) -> str:
    """Where a system's figures are printed and what they are of, as a sentence."""
    hand = "Second-hand: " if system.second_hand else ""
    return f"{system.name}: {hand}{system.printed_in}. Trained on {system.trained_on}, scored on {system.scored_on}."
