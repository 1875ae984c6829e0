"""The singer: a glottal source with vibrato and portamento, behind formants that move from vowel to vowel.

The source is a table of harmonics, read at the pitch of the melody; the throat is a filter that changes
every 256 samples. Syllables have consonants: hisses, bursts and hums between the vowels.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stemwise.datasets.demo import score as scores
from stemwise.datasets.demo import synth
from stemwise.datasets.demo.score import Note, Score
from stemwise.datasets.demo.synth import Curve, Signal

# Formants of a tenor, hertz and decibels, from the Csound manual's appendix "Formant Values"; n is a hum.
VOWELS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "a": ((650, 1080, 2650, 2900, 3250), (0, -6, -7, -8, -22)),
    "e": ((400, 1700, 2600, 3200, 3580), (0, -14, -12, -14, -20)),
    "i": ((290, 1870, 2800, 3250, 3540), (0, -15, -18, -20, -30)),
    "o": ((400, 800, 2600, 2800, 3000), (0, -10, -12, -12, -26)),
    "u": ((350, 600, 2700, 2900, 3300), (0, -20, -17, -14, -26)),
    "n": ((270, 1000, 2200, 2900, 3300), (-4, -26, -26, -30, -36)),
}
WIDTHS = (
    90.0,
    110.0,
    150.0,
    170.0,
    200.0,
)  # of the formants in hertz, wider than Csound's: less of a whistle
# How long a consonant takes, how far the voice falls silent for it, and how much it hisses (high, low).
CONSONANTS = {
    "": (0.02, 0.75, 0.0, 0.0),
    "n": (0.07, 0.6, 0.0, 0.0),
    "s": (0.11, 0.0, 1.0, 0.1),
    "t": (0.05, 0.0, 0.6, 0.8),
    "k": (0.06, 0.0, 0.1, 1.0),
    "h": (0.08, 0.1, 0.0, 0.4),
}
TABLE = 4096
Breath = tuple[Curve, Curve]


@dataclass(frozen=True)
class Singer:
    """Who sings: register, length of the throat, and habits."""

    middle: int  # scale step around which the melodies lie
    throat: float  # factor on the formants; above one is a shorter throat
    tilt: float  # the source falls as partial ** -tilt
    vibrato: float  # hertz
    depth: float  # of the vibrato, semitones
    glide: float  # seconds from note to note
    breath: float

    @classmethod
    def draw(cls, tonic: int, rng: np.random.Generator) -> "Singer":
        """Half of them low voices (melodies around G3), half high ones (around F4)."""
        is_high = rng.random() < 0.5
        centre = rng.uniform(63, 68) if is_high else rng.uniform(52, 58)
        middle = round((centre - 48 - tonic) * 7 / 12)
        throat = rng.uniform(1.08, 1.2) if is_high else rng.uniform(0.92, 1.04)
        tilt, vibrato, depth = rng.uniform(0.35, 0.75), rng.uniform(4.8, 6.2), rng.uniform(0.25, 0.5)
        return cls(middle, throat, tilt, vibrato, depth, rng.uniform(0.05, 0.12), rng.uniform(0.01, 0.05))


@dataclass(frozen=True)
class Syllable:
    """One note of a line: start and end in seconds, MIDI pitch, a consonant, the vowels it moves through."""

    start: float
    end: float
    pitch: int
    consonant: str
    vowels: str


def play(score: Score, rng: np.random.Generator, rate: int) -> Signal:
    """The singer of a song, in the middle, with room; in some songs a second voice above: (2, N)."""
    track = np.zeros((2, round(score.seconds * rate)), np.float32)
    singer = Singer.draw(score.key.tonic, rng)
    is_duet = rng.random() < 0.35
    side = float(rng.uniform(-0.15, 0.15))
    for line in scores.melody(score, rng, singer.middle):
        words = _words(score, line, rng)
        start = max(words[0].start - 0.35, 0.0)
        synth.place(track, _sing(words, singer, start, rng, rate), start, rate, pan=side)
        if is_duet and score.bars[line[0].bar].section == "chorus":
            above = [replace(word, pitch=_third(score, note)) for word, note in zip(words, line, strict=True)]
            synth.place(track, _sing(above, singer, start, rng, rate), start, rate, gain=0.5, pan=0.6)
    return synth.reverb(track, rate, rng, seconds=float(rng.uniform(0.4, 0.8)), wet=float(rng.uniform(0.12, 0.35)))


def _third(score: Score, note: Note) -> int:
    """The pitch two steps of the scale above a note."""
    return score.key.pitch(note.step + 2, score.bars[note.bar].degree)


def _words(score: Score, line: list[Note], rng: np.random.Generator) -> list[Syllable]:
    """Gives every note of a line its time and something to sing."""
    words = []
    for note in line:
        start = score.time(note.bar, note.start) + float(rng.normal(0.01, 0.008))
        end = score.time(note.bar, note.start + note.length)
        if note.bar == len(score.bars) - 1:
            end = score.seconds - 0.15
        consonant = str(rng.choice(list(CONSONANTS), p=[0.2, 0.3, 0.15, 0.15, 0.1, 0.1]))
        vowels = "".join(rng.choice(list("aeiou"), 2 if end - start > 0.5 else 1))
        pitch = score.key.pitch(note.step, score.bars[note.bar].degree)
        words.append(Syllable(max(start, 0.0), max(end, start + 0.08), pitch, consonant, vowels))
    return words


def _sing(words: list[Syllable], singer: Singer, start: float, rng: np.random.Generator, rate: int) -> Signal:
    """One line of the song, from `start` seconds of the song on: (n,)."""
    seconds = words[-1].end - start + 0.15
    time = synth.frame_times(seconds, rate) + start
    length = round(seconds * rate)
    samples = np.arange(length) / rate + start
    current = np.clip(np.searchsorted([word.start for word in words], time, side="right") - 1, 0, None)
    pitch = _pitch(words, current, singer, time, rng)
    volume, (high, low) = _volume(words, time)
    source = _source(np.interp(samples, time, synth.hertz(pitch)), singer, rate)
    source *= np.interp(samples, time, volume).astype(np.float32)
    air = synth.noise(seconds, rate, rng)
    aspirated = air * np.interp(samples, time, singer.breath * volume + 0.06 * low).astype(np.float32)
    voice = synth.moving_filter(source + aspirated, _throat(words, singer, time, rate))
    hiss = synth.shape(air, synth.band(5200, 9000), rate) * np.interp(samples, time, 0.10 * high).astype(np.float32)
    burst = synth.shape(air, synth.band(1800, 3600), rate) * np.interp(samples, time, 0.10 * low).astype(np.float32)
    return voice + hiss + burst


def _smooth(curve: Curve, frames: int) -> Curve:
    """Averages (T,) or (T, K) over `frames` neighbours, weighted by a Hann window."""
    window = np.hanning(frames + 2)[1:-1]
    window /= window.sum()
    before, after = frames // 2, frames - 1 - frames // 2
    padded = np.pad(curve, ((before, after), *((0, 0),) * (curve.ndim - 1)), mode="edge")
    return sum(weight * padded[shift : shift + len(curve)] for shift, weight in enumerate(window))


def _pitch(
    words: list[Syllable], current: NDArray[np.intp], singer: Singer, time: Curve, rng: np.random.Generator
) -> Curve:
    """The melody as it is sung, in MIDI pitches: glides, vibrato that sets in late, and a human's drift."""
    frame = time[1] - time[0]
    wanted = np.array([word.pitch for word in words], dtype=np.float64)[current]
    since = time - np.array([word.start for word in words])[current]
    scooped = wanted - 0.7 * np.exp(-np.maximum(since, 0) / 0.05) * (current == 0)
    depth = singer.depth * synth.ramp((since - 0.12) / 0.3)
    wander = _smooth(rng.normal(0, 1, len(time)), max(int(0.25 / frame), 1))
    speed = singer.vibrato * (1 + 0.3 * wander)
    vibrato = np.sin(2 * np.pi * np.cumsum(speed) * frame)
    drift = _smooth(rng.normal(0, 1, len(time)), max(int(0.12 / frame), 1))
    return _smooth(scooped, max(int(singer.glide / frame), 1)) + depth * vibrato + 0.12 * drift


def _volume(words: list[Syllable], time: Curve) -> tuple[Curve, Breath]:
    """How loud the voice is, and how much hisses and bursts, at each frame."""
    volume, high, low = np.zeros(len(time)), np.zeros(len(time)), np.zeros(len(time))
    # The singer breathes in before the line.
    low += 0.12 * synth.ramp((time - words[0].start + 0.34) / 0.2) * (time < words[0].start - 0.1)
    for number, word in enumerate(words):
        following = words[number + 1] if number + 1 < len(words) else None
        is_tied = following is not None and following.start - word.end < 0.06
        end, dip = word.end, 0.0
        if following is not None and is_tied:
            length, dip, _, _ = CONSONANTS[following.consonant]
            end = following.start - length / 2
        swell = 0.8 + 0.2 * synth.ramp((time - word.start) / max(end - word.start, 0.1) * 2)
        edge = np.minimum((time - word.start + 0.02) / 0.05, (end - time + 0.03) / 0.07)
        volume = np.maximum(volume, swell * synth.ramp(edge))
        if following is not None and is_tied:
            near = (time > end - 0.02) & (time < following.start + 0.02)
            volume = np.maximum(volume, 0.8 * dip * near)
        length, _, hiss, burst = CONSONANTS[word.consonant]
        shape = synth.ramp((time - word.start + length + 0.02) / 0.02) * synth.ramp((word.start + 0.02 - time) / 0.03)
        high, low = high + hiss * shape, low + burst * shape
    return _smooth(volume, 5), (high, low)


def _source(hz: Curve, singer: Singer, rate: int) -> Signal:
    """The buzz of the vocal folds: (n,), as many harmonics as fit below the highest note's limit."""
    count = int(np.clip(synth.HIGHEST * rate / hz.max(), 1, 60))
    partials = np.arange(1, count + 1)
    table = synth.ring(partials / TABLE, partials**-singer.tilt, 0.0, TABLE, 1, phases=0.15 * partials)
    table = np.append(table, table[0])
    position = (np.cumsum(hz / rate) % 1.0) * TABLE
    whole = position.astype(np.int64)
    part = (position - whole).astype(np.float32)
    return table[whole] * (1 - part) + table[whole + 1] * part


def _throat(words: list[Syllable], singer: Singer, time: Curve, rate: int) -> NDArray[np.float32]:
    """Gains (T, 513) of the mouth over time: a sum of resonances per frame."""
    starts, shapes = [], []
    for word in words:
        length = CONSONANTS[word.consonant][0]
        if word.consonant == "n":
            starts.append(word.start - length)
            shapes.append("n")
        for number, vowel in enumerate(word.vowels):
            starts.append(word.start + number * 0.6 * (word.end - word.start))
            shapes.append(vowel)
    current = np.clip(np.searchsorted(starts, time, side="right") - 1, 0, None)
    frames = max(int(0.07 / (time[1] - time[0])), 1)
    centres = _smooth(np.array([VOWELS[shape][0] for shape in shapes])[current], frames) * singer.throat
    levels = _smooth(np.array([VOWELS[shape][1] for shape in shapes], dtype=np.float64)[current], frames)
    bins = np.arange(synth.WINDOW // 2 + 1, dtype=np.float32) * (rate / synth.WINDOW)
    gains = np.full((len(time), len(bins)), 0.004, np.float32)
    for formant, width in enumerate(WIDTHS):
        away = (bins - centres[:, formant, None].astype(np.float32)) * np.float32(2 / width)
        gains += (10 ** (levels[:, formant, None] / 20)).astype(np.float32) / (1 + away**2) ** np.float32(0.6)
    return gains
