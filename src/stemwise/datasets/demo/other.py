"""Everything that is neither sung nor drum nor bass: pads, organ, electric piano, guitar, arpeggios."""

from collections.abc import Callable
from functools import cache

import numpy as np

from stemwise.datasets.demo import synth
from stemwise.datasets.demo.score import STEPS, Score
from stemwise.datasets.demo.synth import Signal

# When chords are struck: x down, o up and softer, . let it ring, - damp it.
COMPS = (
    "x...x...x...x...",
    "x.......x.......",
    "x..x..x-----x...",
    "--x---x---x---x-",
    "x...x.o.--o.x.o.",
    "x-.-..x-x-..x-o-",
    "x...............",
)
ARPEGGIOS = ((0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0), (0, 1, 2, 3, 2, 1), (0, 3, 1, 3, 2, 3))
Instrument = Callable[[int], Signal]


def play(score: Score, rng: np.random.Generator, rate: int) -> Signal:
    """One instrument for the chords and, in most songs, one for a bed or a figure: (2, N)."""
    track = np.zeros((2, round(score.seconds * rate)), np.float32)
    bed = rng.choice(["pad", "organ", "none"], p=[0.45, 0.3, 0.25])
    if bed != "none":
        _bed(track, score, str(bed), rng, rate)
    lead = rng.choice(["guitar", "piano", "arpeggio"])
    if lead == "arpeggio":
        _arpeggio(track, score, rng, rate)
    else:
        _chords(track, score, str(lead), rng, rate)
    return synth.reverb(track, rate, rng, seconds=float(rng.uniform(0.3, 0.7)), wet=float(rng.uniform(0.15, 0.45)))


def _spans(score: Score) -> list[tuple[int, float, float]]:
    """The bars to accompany, with their start and end in seconds; the ending lasts until the song is over."""
    spans = [(number, score.time(number), score.time(number + 1)) for number in score.plays("other")]
    return [*spans, (len(score.bars) - 1, score.time(len(score.bars) - 1), score.seconds)]


def _bed(track: Signal, score: Score, kind: str, rng: np.random.Generator, rate: int) -> None:
    """Held chords, one per bar."""
    low = int(rng.integers(50, 57))
    tone = _pad(rng) if kind == "pad" else _organ(rng)
    attack, release = (0.25, 0.35) if kind == "pad" else (0.012, 0.05)
    for number, start, end in _spans(score):
        seconds = max(end - start + (release if number < len(score.bars) - 1 else 0.0), 0.05)
        pitches = np.array(score.chord(number, low, low + 13))
        edge = synth.envelope(seconds, rate, attack=min(attack, seconds / 3), release=min(release, seconds / 3))
        sides = [tone(pitches, seconds, rate) for _ in range(2)]
        synth.place(track, np.stack(sides) * edge, start, rate, gain=0.35)
    if kind == "organ":
        _rotate(track, float(rng.choice([0.9, 6.2])), rate)


def _rotate(track: Signal, speed: float, rate: int) -> None:
    """A rotating loudspeaker: what comes nearer on the left goes away on the right."""
    angle = 2 * np.pi * speed * np.arange(track.shape[1]) / rate
    track *= 1 + 0.28 * np.stack([np.sin(angle), -np.sin(angle)]).astype(np.float32)


def _pad(rng: np.random.Generator) -> Callable[[np.ndarray, float, int], Signal]:
    """Three sawtooths per note, slightly apart, so that they beat; each side has its own."""
    dark, spread = rng.uniform(1.1, 1.8), rng.uniform(0.04, 0.12)

    def tone(pitches: np.ndarray, seconds: float, rate: int) -> Signal:
        partials = np.arange(1, 19)
        detuned = (pitches[:, None] + rng.normal(0, spread, (len(pitches), 3))).reshape(-1, 1)
        hz = (synth.hertz(detuned) * partials).reshape(-1)
        gains = np.tile(0.3 / partials**dark, len(detuned))
        return synth.ring(hz, gains, 0.0, seconds, rate, rng.uniform(0, 2 * np.pi, len(hz)))

    return tone


def _organ(rng: np.random.Generator) -> Callable[[np.ndarray, float, int], Signal]:
    """Drawbars: the nine pipes of a tonewheel organ, from an octave below to three above."""
    pipes = np.array([0.5, 1.5, 1, 2, 3, 4, 5, 6, 8])
    drawn = rng.uniform(0, 1, 9) ** 1.5 * np.array([0.7, 0.6, 1, 0.8, 0.7, 0.5, 0.3, 0.3, 0.35])
    drawn[2] = 1.0

    def tone(pitches: np.ndarray, seconds: float, rate: int) -> Signal:
        hz = (synth.hertz(pitches)[:, None] * pipes).reshape(-1)
        return synth.ring(hz, np.tile(0.5 * drawn, len(pitches)), 0.0, seconds, rate, 0.7 * np.arange(len(hz)))

    return tone


def _chords(track: Signal, score: Score, kind: str, rng: np.random.Generator, rate: int) -> None:
    """Strummed or struck chords in a rhythm of the song's own."""
    instrument = _guitar(rng, rate) if kind == "guitar" else _piano(rng, rate)
    low, apart = (int(rng.integers(45, 50)), 0.012) if kind == "guitar" else (int(rng.integers(52, 58)), 0.002)
    high, pan = low + (24 if kind == "guitar" else 15), float(rng.uniform(0.2, 0.6) * rng.choice([-1, 1]))
    verse, chorus = rng.choice(len(COMPS), 2, replace=False)
    for number, start, end in _spans(score):
        is_end = number == len(score.bars) - 1
        rhythm = COMPS[chorus if score.bars[number].section == "chorus" else verse]
        strokes = [(start, end, "x")] if is_end else _strokes(score, number, rhythm)
        for at, until, mark in strokes:
            pitches = score.chord(number, low, high)[:: 1 if mark == "x" else -1]
            for order, pitch in enumerate(pitches):
                begin = max(at + order * apart + float(rng.normal(0, 0.002)), 0.0)
                sound = _damped(instrument(pitch), until - begin, rate)
                force = (0.28 if mark == "x" else 0.18) * rng.uniform(0.8, 1.0)
                synth.place(track, sound, begin, rate, gain=force, pan=pan * (order + 1) / len(pitches))


def _strokes(score: Score, bar: int, rhythm: str) -> list[tuple[float, float, str]]:
    """Start, end and kind of every stroke in a bar."""
    strokes = []
    for start, mark in enumerate(rhythm):
        if mark in "xo":
            held = 1
            while start + held < STEPS and rhythm[start + held] == ".":
                held += 1
            strokes.append((score.time(bar, start), score.time(bar, start + held), mark))
    return strokes


def _arpeggio(track: Signal, score: Score, rng: np.random.Generator, rate: int) -> None:
    """The notes of the chord one after the other, wandering between the loudspeakers."""
    instrument = (_guitar, _bell, _piano)[rng.integers(3)](rng, rate)
    figure = ARPEGGIOS[rng.integers(len(ARPEGGIOS))]
    stride, low = int(rng.choice([1, 2, 2])), int(rng.integers(55, 66))
    for number, start, end in _spans(score):
        pitches = score.chord(number, low, low + 17)
        if number == len(score.bars) - 1:
            times = [(start + 0.08 * order, end) for order in range(4)]
        else:
            times = [
                (score.time(number, step), score.time(number, step + 3 * stride)) for step in range(0, STEPS, stride)
            ]
        for order, (at, until) in enumerate(times):
            pitch = pitches[figure[order % len(figure)] % len(pitches)]
            sound = _damped(instrument(pitch), until - at, rate)
            accent = 1.0 if order % len(figure) == 0 else 0.75
            synth.place(track, sound, at, rate, gain=0.4 * accent, pan=0.5 * float(np.sin(1.7 * order)))


def _damped(tone: Signal, seconds: float, rate: int) -> Signal:
    length = min(max(seconds, 0.06), tone.shape[0] / rate)
    return tone[: round(length * rate)] * synth.envelope(length, rate, attack=0.001, release=0.05)


def _guitar(rng: np.random.Generator, rate: int) -> Instrument:
    """Steel or nylon strings, as the bass's, but stiffer and brighter."""
    pluck, dark, damping = rng.uniform(0.08, 0.3), rng.uniform(0.8, 1.6), rng.uniform(0.1, 0.3)
    partials = np.arange(1, 36)
    gains = np.abs(np.sin(np.pi * partials * pluck)) / partials**dark

    @cache
    def tone(pitch: int) -> Signal:
        hz = synth.hertz(pitch) * partials * np.sqrt(1 + 4e-5 * partials**2)
        return synth.ring(hz, gains / gains.max(), 1.3 + damping * partials**1.3, 2.4, rate)

    return tone


def _piano(rng: np.random.Generator, rate: int) -> Instrument:
    """Electric piano: a tine's almost pure tone, and the bell of its high mode in the attack."""
    bell, growl = rng.uniform(0.1, 0.35), rng.uniform(0.1, 0.5)

    @cache
    def tone(pitch: int) -> Signal:
        hz = synth.hertz(pitch) * np.array([1, 2, 3, 4, 7.1, 14.3])
        gains = np.array([1, growl, growl**2, growl**3, bell, bell / 2])
        return synth.ring(hz, gains, np.array([1.1, 2.0, 3.0, 4.0, 9.0, 14.0]), 2.4, rate)

    return tone


def _bell(rng: np.random.Generator, rate: int) -> Instrument:
    """A glockenspiel's bar: the modes of a free bar, 1 : 2.76 : 5.40 : 8.93, an octave up."""
    soft = rng.uniform(0.3, 1.0)

    @cache
    def tone(pitch: int) -> Signal:
        hz = 2 * synth.hertz(pitch) * np.array([0.5, 1, 2.756, 5.404, 8.933])
        return synth.ring(hz, np.array([0.3, 1, 0.5 * soft, 0.3 * soft, 0.1]), np.array([3, 3, 6, 11, 18]), 1.6, rate)

    return tone
