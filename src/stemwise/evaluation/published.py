"""What others published on MUSDB18's test set: for orientation beside a model, never a measurement of ours.

SDR in dB, BSSEval v4 as in museval: median over windows of one second, then over the 50 songs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEMS = ("vocals", "drums", "bass", "other")
SONGS = "the 50 whole songs of MUSDB18's test set"


@dataclass(frozen=True)
class System:
    """A separator, what it was trained on, its median SDR per stem, and where that stands."""

    name: str
    trained_on: str
    sdr: Mapping[str, float]
    printed_in: str


def _sdr(vocals: float, drums: float, bass: float, other: float) -> dict[str, float]:
    return dict(zip(STEMS, (vocals, drums, bass, other), strict=True))


_SPLEETER = "Hennequin et al., Spleeter, JOSS 5(50), 2020"

SYSTEMS = (
    System("Spleeter 4stems, masks", "25 000 songs of Deezer's", _sdr(6.55, 5.93, 5.10, 4.24), _SPLEETER),
    System("Spleeter 4stems, Wiener filter", "25 000 songs of Deezer's", _sdr(6.86, 6.71, 5.51, 4.55), _SPLEETER),
    System(
        "Spleeter",
        "MUSDB18",
        _sdr(4.69, 4.59, 3.71, 3.10),
        "as its makers first reported; after a fix 4.43 on the average of the four",
    ),
    System("Open-Unmix", "MUSDB18", _sdr(6.32, 5.73, 5.23, 4.02), "Stöter et al., Open-Unmix, JOSS 4(41), 2019"),
    System(
        "Demucs v2",
        "MUSDB18",
        _sdr(6.84, 6.86, 7.01, 4.42),
        "Défossez et al., 2021, as listed by Kim et al., KUIELab-MDX-Net, 2021",
    ),
    System(
        "Hybrid Demucs (v3)",
        "MUSDB18-HQ",
        _sdr(8.13, 8.24, 8.76, 5.59),
        "Défossez, Hybrid Spectrogram and Waveform Source Separation, 2021, as listed by Papers with Code",
    ),
)


def beside(stems: Sequence[str]) -> tuple[System, ...]:
    """The systems whose stems are these: all four of MUSDB18's, or its vocals and what else there is.

    A stem of the same name is another stem where not all four are told apart: `other` of five stems has no piano.
    """
    if set(stems) == set(STEMS):
        return SYSTEMS
    if "vocals" in stems and not set(stems) & {"drums", "bass", "other"}:
        return tuple(System(s.name, s.trained_on, {"vocals": s.sdr["vocals"]}, s.printed_in) for s in SYSTEMS)
    return ()
