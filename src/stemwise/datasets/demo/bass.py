"""The bass player: plucked strings, or an oscillator that sounds like one of the eighties'."""

from functools import cache

import numpy as np

from stemwise.datasets.demo import synth
from stemwise.datasets.demo.score import STEPS, Score
from stemwise.datasets.demo.synth import Signal

# What to play over a chord: 1 root, 3 third, 5 fifth, 8 octave, 7 the tone below it; . holds, - damps.
RIFFS = (
    "1.1.1.1.1.1.1.1.",
    "1.......5.......",
    "1...--1.1...5...",
    "1.8.1.8.1.8.1.8.",
    "1...3...5...3...",
    "1..1..5---1.8.5.",
    "1.....1.5...1...",
    "1-1---8-1-1-5-7-",
    "--1.--1.--1.--5.",
    "1.1-5.1-8.1-5.3.",
)
LOWEST = 28  # E1, the lowest string of a bass
INTERVALS = {"1": 0, "5": 7, "7": 10, "8": 12}


def play(score: Score, rng: np.random.Generator, rate: int) -> Signal:
    """The bass of a song: (2, N), in the middle."""
    track = np.zeros((2, round(score.seconds * rate)), np.float32)
    strings = rng.random() < 0.7
    pluck, dark = rng.uniform(0.1, 0.35), rng.uniform(1.2, 2.4)

    @cache
    def tone(pitch: int) -> Signal:
        return _string(pitch, pluck, dark, rate) if strings else _oscillator(pitch, dark, rate)

    verse, chorus = rng.choice(len(RIFFS), 2, replace=False)
    playing = score.plays("bass")
    for number in playing:
        riff = RIFFS[chorus if score.bars[number].section == "chorus" else verse]
        for start, mark in enumerate(riff):
            if mark in ".-":
                continue
            held = 1
            while start + held < STEPS and riff[start + held] == ".":
                held += 1
            at = score.time(number, start) + float(rng.normal(0.0, 0.003))
            sound = _held(tone(_pitch(score, number, mark)), score.time(number, start + held) - at, rate)
            synth.place(track, sound, max(at, 0.0), rate, gain=float(rng.uniform(0.75, 1.0)))
    last = len(score.bars) - 1
    if not last or last - 1 in playing:
        length = score.seconds - score.time(last)
        synth.place(track, _held(tone(score.root(last, LOWEST)), length, rate), score.time(last), rate)
    return track


def _pitch(score: Score, bar: int, mark: str) -> int:
    root = score.root(bar, LOWEST)
    if mark == "3":
        return score.chord(bar, root + 1, root + 12)[0]
    return root + INTERVALS[mark]


def _held(tone: Signal, seconds: float, rate: int) -> Signal:
    """The tone until a finger stops it."""
    length = min(max(seconds, 0.05), tone.shape[0] / rate)
    return tone[: round(length * rate)] * synth.envelope(length, rate, attack=0.002, release=0.03)


def _string(pitch: int, pluck: float, dark: float, rate: int) -> Signal:
    """A string plucked at `pluck` of its length: no partial that has a node there; the high ones die first.

    The amplitudes are those of an ideal plucked string (Fletcher and Rossing, The Physics of Musical
    Instruments, section 2.8), with a softer finger for a larger `dark`.
    """
    partials = np.arange(1, 26)
    hz = synth.hertz(pitch) * partials * np.sqrt(1 + 6e-5 * partials**2)
    gains = np.abs(np.sin(np.pi * partials * pluck)) / partials**dark
    return synth.ring(hz, gains / np.max(gains), 0.9 + 0.28 * partials**1.4, 3.0, rate)


def _oscillator(pitch: int, dark: float, rate: int) -> Signal:
    """A sawtooth behind a low-pass that closes while the note sounds, and an octave of sub-bass in it."""
    partials = np.arange(1, 41)
    gains = 1.0 / partials**dark
    return synth.ring(
        synth.hertz(pitch) * partials, gains, 0.4 + 0.5 * (partials - 1), 3.0, rate, phases=0.3 * partials
    )
