"""The drummer: a kit that is built once per song, a groove, fills at the end of sections."""

import numpy as np

from stemwise.datasets.demo import synth
from stemwise.datasets.demo.score import STEPS, Score
from stemwise.datasets.demo.synth import Signal

# x is an accent, o a soft hit. The snare and the kick define the groove; the hats keep time.
GROOVES = (
    {"kick": "x.......x.x.....", "snare": "....x.......x...", "hat": "x.o.x.o.x.o.x.o."},
    {
        "kick": "x...x...x...x...",
        "snare": "....x.......x...",
        "open": "..x...x...x...x.",
        "hat": "o...o...o...o...",
    },
    {"kick": "x..x..x...x.....", "snare": "....x..o.o..x..o", "hat": "xoxoxoxoxoxoxoxo"},
    {"kick": "x.....x.........", "snare": "........x.......", "hat": "x.o.x.o.x.o.x.o."},
    {
        "kick": "x.x.......xx....",
        "snare": "....x..o....x.o.",
        "hat": "x.x.x.x.x.x.x.x.",
        "open": "..............x.",
    },
    {"kick": "x.....o.x.......", "snare": "....x.......x...", "ride": "x...x.o.x...x.o."},
    {"kick": "x.........x.....", "stick": "....x.......x..o", "shaker": "xoooxoooxoooxooo"},
    {"kick": "x...x...x...x...", "clap": "....x.......x...", "shaker": "o.x.o.x.o.x.o.x."},
    {
        "kick": "x..x....x..x..o.",
        "snare": "....x.......x...",
        "ride": "x.x.x.x.x.x.x.x.",
        "tom": "..............o.",
    },
)
FILLS = (
    {"kick": "x.......", "snare": "x.o.xoxo"},
    {"kick": "x.x.x.x.", "snare": "x.x.....", "tom": "....x.x.", "floor": "......xx"},
    {"snare": "xx......", "tom": "..xx....", "floor": "....xxxx", "kick": "x.......x"},
    {"snare": "....oxxx", "kick": "x..x...."},
)
PLACES = {
    "hat": -0.3,
    "open": -0.3,
    "ride": 0.45,
    "crash": 0.5,
    "shaker": 0.55,
    "tom": -0.25,
    "floor": 0.5,
    "snare": 0.05,
}
LEVELS = {
    "kick": 1.0,
    "snare": 0.8,
    "clap": 0.7,
    "stick": 0.5,
    "tom": 0.8,
    "floor": 0.9,
    "crash": 0.4,
    "shaker": 0.16,
}
METAL = np.array([1.0, 1.34, 1.48, 1.8, 2.12, 2.54, 2.91, 3.37])  # the ratios of a struck plate: no harmonics


class Kit:
    """The drums of one song, and the hands that play them onto a track of (2, N)."""

    def __init__(self, rng: np.random.Generator, track: Signal, rate: int) -> None:
        self.rng, self.track, self.rate = rng, track, rate
        self.takes = _drums(rng, rate)

    def hit(self, drum: str, at: float, force: float) -> None:
        takes = self.takes[drum]
        take = takes[self.rng.integers(len(takes))]
        gain, pan = force * LEVELS.get(drum, 0.25), PLACES.get(drum, 0.0)
        synth.place(self.track, take, max(at, 0.0), self.rate, gain=gain, pan=pan)

    def beat(self, score: Score, bar: int, pattern: dict[str, str], first: int, end: int) -> None:
        """Plays a pattern, written from its own first step on, from step `first` of a bar to `end`."""
        for drum, marks in pattern.items():
            for step, mark in enumerate(marks[: end - first], start=first):
                if mark in "xo":
                    force = (1.0 if mark == "x" else 0.45) * self.rng.uniform(0.88, 1.0)
                    self.hit(drum, score.time(bar, step) + self.rng.normal(0.0, 0.003), force)


def play(score: Score, rng: np.random.Generator, rate: int) -> Signal:
    """The drums of a song: (2, N)."""
    track = np.zeros((2, round(score.seconds * rate)), np.float32)
    kit = Kit(rng, track, rate)
    groove, fill = GROOVES[rng.integers(len(GROOVES))], FILLS[rng.integers(len(FILLS))]
    playing = score.plays("drums")
    for number in playing:
        bar = score.bars[number]
        kit.beat(score, number, groove, 0, STEPS // 2 if bar.is_last else STEPS)
        if bar.is_last:
            kit.beat(score, number, fill, STEPS // 2, STEPS)
        if bar.place == 0 and bar.section != "intro":
            kit.hit("crash", score.time(number), 0.9)
    last = len(score.bars) - 1
    if not last or last - 1 in playing:
        kit.hit("kick", score.time(last), 1.0)
        kit.hit("crash", score.time(last), 1.0)
    # Like a bus compressor: the peaks of the kit give way, so that the song as a whole can be louder.
    glued = np.tanh(1.3 * track)
    return synth.reverb(glued, rate, rng, seconds=float(rng.uniform(0.15, 0.45)), wet=float(rng.uniform(0.1, 0.3)))


def _drums(rng: np.random.Generator, rate: int) -> dict[str, list[Signal]]:
    """Every drum of the kit; those that hiss in three takes, so that hits differ as a drummer's do."""
    low, tight, bright = rng.uniform(44, 62), rng.uniform(0.7, 1.4), rng.uniform(0.8, 1.3)
    plate = rng.uniform(2600, 3600)
    snare = rng.uniform(160, 230)
    takes = range(3)
    return {
        "kick": [_skin(low, 3.2, 9 * tight, 0.35, 0.25 * bright, rng, rate)],
        "tom": [_skin(low * 2.6, 1.5, 11, 0.35, 0.1, rng, rate)],
        "floor": [_skin(low * 1.8, 1.5, 9, 0.4, 0.1, rng, rate)],
        "snare": [_snare(snare, tight, bright, rng, rate) for _ in takes],
        "clap": [_clap(rng, rate) for _ in takes],
        "stick": [_skin(rng.uniform(700, 900), 1.4, 70, 0.08, 0.4, rng, rate)],
        "hat": [_metal(plate * 1.25, 60 / tight, 0.12, 0.8, rng, rate) for _ in takes],
        "open": [_metal(plate * 1.25, 9, 0.4, 0.8, rng, rate) for _ in takes],
        "ride": [_metal(plate, 7, 0.6, 0.25, rng, rate)],
        "crash": [_metal(plate * 0.8, 3.2, 1.5, 0.9, rng, rate) for _ in range(2)],
        "shaker": [_shaker(rng, rate) for _ in takes],
    }


def _skin(
    low: float, drop: float, decay: float, seconds: float, click: float, rng: np.random.Generator, rate: int
) -> Signal:
    """Kick, toms, rim: a tone that falls to `low` from `drop` times as high, and the click of the stick."""
    time = np.arange(round(seconds * rate)) / rate
    fall = 32.0
    phase = 2 * np.pi * low * (time + (drop - 1) * (1 - np.exp(-fall * time)) / fall)
    tone = np.sin(phase) * np.exp(-decay * time) * synth.envelope(seconds, rate, attack=0.001, release=0.05)
    strike = synth.shape(synth.noise(seconds, rate, rng), synth.band(1200, 5000), rate) * np.exp(-260 * time)
    return (tone + click * strike).astype(np.float32)


def _snare(low: float, tight: float, bright: float, rng: np.random.Generator, rate: int) -> Signal:
    """Two modes of the skin and the rattle of the wires below it."""
    seconds = 0.32
    time = np.arange(round(seconds * rate)) / rate
    skin = synth.ring([low, low * 1.59], [0.7, 0.4], [22 * tight, 30 * tight], seconds, rate)
    wires = synth.shape(synth.noise(seconds, rate, rng), synth.band(1500 * bright, 9000), rate)
    rattle = wires * np.exp(-16 * tight * time) * synth.envelope(seconds, rate, attack=0.001, release=0.05)
    return (skin + 0.8 * rattle).astype(np.float32)


def _clap(rng: np.random.Generator, rate: int) -> Signal:
    """Four hands that are not quite together."""
    seconds = 0.3
    time = np.arange(round(seconds * rate)) / rate
    hands = sum(np.exp(-120 * np.abs(time - late)) * (time >= late) for late in (0.0, 0.011, 0.021))
    force = hands + 0.7 * np.exp(-18 * np.maximum(time - 0.03, 0)) * (time >= 0.03)
    force *= synth.envelope(seconds, rate, attack=0.001, release=0.05)
    return (synth.shape(synth.noise(seconds, rate, rng), synth.band(900, 2600), rate) * force * 1.3).astype(np.float32)


def _metal(low: float, decay: float, seconds: float, hiss: float, rng: np.random.Generator, rate: int) -> Signal:
    """Hats and cymbals: the inharmonic modes of a plate, and the hiss of those too many to count."""
    modes = np.concatenate([low * METAL, low * METAL * 1.007, low * METAL * 0.991 * 1.3])
    plate = synth.ring(
        modes,
        0.12,
        decay * rng.uniform(0.8, 1.6, len(modes)),
        seconds,
        rate,
        rng.uniform(0, 6.28, len(modes)),
    )
    time = np.arange(round(seconds * rate)) / rate
    wash = synth.shape(synth.noise(seconds, rate, rng), synth.band(low * 1.6, 14000), rate) * np.exp(-decay * time)
    edge = synth.envelope(seconds, rate, attack=0.0008, release=min(0.1, seconds / 2))
    return ((plate + hiss * 1.4 * wash) * edge).astype(np.float32)


def _shaker(rng: np.random.Generator, rate: int) -> Signal:
    seconds = 0.11
    grains = synth.shape(synth.noise(seconds, rate, rng), synth.band(5000, 12000), rate)
    return 2 * grains * synth.envelope(seconds, rate, attack=0.035, release=0.07)
