"""What a demo song plays, before anything sounds: key, tempo, form, chords, melody.

Time is counted in bars of 16 steps, pitch in steps of the key's scale: step 0 is the tonic between C3 and
B3, step 7 the octave above.
"""

from dataclasses import dataclass

import numpy as np

STEPS = 16  # per bar, four to the beat
PARTS = ("vocals", "drums", "bass", "other")

TONICS = ("C", "D flat", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)

# One chord per bar, as the degree of the scale that it stands on.
MAJOR_CHORDS = ("1564", "1645", "6415", "1425", "1465", "1345", "4516", "2516")
MINOR_CHORDS = ("1637", "1465", "1765", "1635", "1734", "6715", "1431", "4176")

FORMS = (
    ("intro", "verse", "chorus", "break", "verse", "chorus"),
    ("verse", "chorus", "break", "chorus", "solo", "chorus"),
    ("intro", "chorus", "verse", "break", "chorus", "solo"),
    ("verse", "break", "chorus", "verse", "solo", "chorus"),
    ("solo", "verse", "chorus", "break", "verse", "chorus"),
)
# Who plays in a section. One line is drawn per song and section.
CASTS = {
    "intro": ("other", "drums bass", "bass other", "drums other", "drums"),
    "break": (
        "vocals other",
        "drums bass",
        "vocals drums",
        "bass other",
        "vocals bass other",
        "drums vocals bass",
    ),
    "solo": ("drums bass other",),
    "verse": ("vocals drums bass other",),
    "chorus": ("vocals drums bass other",),
}

# How a line of the song is sung: x begins a syllable, . holds it, - is a rest. Pairs of bars.
LINES = (
    ("x.x.x...x.x.x...", "x.x.x.......----"),
    ("--x.x.x.x...x...", "x...x.......----"),
    ("x...x.x.x...x.x.", "x.....x.....----"),
    ("----x.x.x.x.x...", "--x.x...x......."),
    ("x..x..x.x..x..x.", "x..x..x.....----"),
    ("x.......x...x...", "x...........----"),
    ("x.x.--x.x.x.--x.", "x.x.x.......----"),
    ("x.....x.x.......", "--x.x.x.x......."),
    ("x...x...x...x...", "x.x.x.x.x...----"),
)


@dataclass(frozen=True)
class Key:
    tonic: int
    scale: tuple[int, ...]

    def __str__(self) -> str:
        return f"{TONICS[self.tonic]} {'major' if self.scale == MAJOR else 'minor'}"

    def pitch(self, step: int, degree: int) -> int:
        """MIDI pitch of a step of the scale, over the chord on `degree` (from 0)."""
        octave, place = divmod(step, 7)
        # Over the dominant, minor borrows major's leading note: the chord then wants to go home.
        leading = self.scale == MINOR and degree == 4 and place == 6
        return 48 + self.tonic + 12 * octave + self.scale[place] + leading


@dataclass(frozen=True)
class Bar:
    """One bar: its section, who plays, the chord's degree (from 0), and where it stands in its section."""

    section: str
    parts: frozenset[str]
    degree: int
    place: int
    is_last: bool = False


@dataclass(frozen=True)
class Note:
    """From step `start` of its bar on, for `length` steps."""

    bar: int
    start: int
    length: int
    step: int


@dataclass(frozen=True)
class Score:
    """A song on paper. `bars[-1]` is the ending: one last chord that rings until the song is over."""

    key: Key
    tempo: float  # beats per minute
    swing: float  # by how many steps the off-beat eighth comes late; 2/3 is a shuffle
    seconds: float
    bars: tuple[Bar, ...]

    def time(self, bar: int, step: float = 0.0) -> float:
        """When a step of a bar is played, in seconds."""
        beat, rest = divmod(step, 4.0)
        late = 2.0 + self.swing
        swung = rest * late / 2 if rest < 2 else late + (rest - 2) * (4 - late) / 2
        return (bar * STEPS + beat * 4 + swung) * self.step

    @property
    def step(self) -> float:
        """Length of a step in seconds."""
        return 15.0 / self.tempo

    def chord(self, bar: int, low: int, high: int) -> list[int]:
        """All pitches of the bar's triad from `low` to below `high`, rising."""
        degree = self.bars[bar].degree
        pitches = (
            self.key.pitch(degree + third + 7 * octave, degree) for octave in range(-4, 6) for third in (0, 2, 4)
        )
        return sorted(pitch for pitch in pitches if low <= pitch < high)

    def root(self, bar: int, low: int) -> int:
        """The root of the bar's chord, in the octave from `low` on."""
        degree = self.bars[bar].degree
        return low + (self.key.pitch(degree, degree) - low) % 12

    def plays(self, part: str) -> list[int]:
        """The bars in which a part plays, the ending left out."""
        return [number for number, bar in enumerate(self.bars[:-1]) if part in bar.parts]


def write(seed: int, seconds: float) -> Score:
    """Writes the song that belongs to `seed`, as many bars of it as `seconds` hold."""
    rng = np.random.default_rng([seed, 0])
    key = Key(int(rng.integers(12)), MAJOR if rng.random() < 0.5 else MINOR)
    tempo = float(rng.uniform(78, 146))
    swing = float(rng.choice([0.0, 0.0, 0.0, 0.3, 2 / 3]))
    count = max(int(seconds * tempo / 240), 1)
    return Score(key, tempo, swing, seconds, _bars(key, count, rng))


def _bars(key: Key, count: int, rng: np.random.Generator) -> tuple[Bar, ...]:
    """Fills `count` bars with sections, the last one with the ending."""
    chords = MAJOR_CHORDS if key.scale == MAJOR else MINOR_CHORDS
    picks = rng.permutation(len(chords))
    progressions = {"verse": chords[picks[0]], "chorus": chords[picks[1]], "break": chords[picks[2]]}
    length = 2 if count < 20 else 4 if count < 60 else 8
    form = FORMS[rng.integers(len(FORMS))] if count > 4 else ("verse",)
    cast = {section: str(rng.choice(lines)).split() for section, lines in CASTS.items()}
    bars = []
    for number in range(count - 1):
        section = form[number // length % len(form)]
        progression = progressions.get(section, progressions["verse"])
        # Two bars of a four-chord progression are half of it: the next section of its kind sings the rest.
        place = number % length
        offset = 2 * (number // (length * 2) % 2) if length == 2 else 0
        degree = int(progression[(place + offset) % 4]) - 1
        is_last = place == length - 1 or number == count - 2
        bars.append(Bar(section, frozenset(cast[section]), degree, place, is_last))
    return (*bars, Bar("end", frozenset(PARTS), 0, 0))


def melody(score: Score, rng: np.random.Generator, middle: int) -> list[list[Note]]:
    """The sung lines, in order; each is a list of notes around the scale step `middle`.

    A section of the same kind comes back with the same rhythm and the same turns, bent to its chords.
    """
    tunes = {name: (LINES[rng.integers(len(LINES))], rng.integers(-2, 3, 32)) for name in ("verse", "chorus", "break")}
    lines: list[list[Note]] = []
    for number in score.plays("vocals"):
        bar = score.bars[number]
        (first, second), turns = tunes[bar.section]
        if bar.place % 2 == 0 or not lines:
            lines.append([])
        rhythm, offset = (first, 0) if bar.place % 2 == 0 else (second, 16)
        lift = 2 if bar.section == "chorus" else 0
        before = lines[-1][-1].step if lines[-1] else middle + lift
        lines[-1] += _sung_bar(number, rhythm, turns[offset:], before, middle + lift, bar.degree)
    last = len(score.bars) - 1
    if not last or "vocals" in score.bars[last - 1].parts:
        lines.append([Note(last, 0, STEPS - 2, 7 * round(middle / 7))])
    return [line for line in lines if line]


def _sung_bar(bar: int, rhythm: str, turns: np.ndarray, before: int, middle: int, degree: int) -> list[Note]:
    notes: list[Note] = []
    for start, mark in enumerate(rhythm):
        if mark != "x":
            continue
        length = 1
        while start + length < STEPS and rhythm[start + length] == ".":
            length += 1
        step = before + int(turns[len(notes)])
        # Drawn back to the singer's own register, so that a line of rises does not leave it.
        step -= int(np.sign(step - middle)) * (abs(step - middle) // 4)
        if start % 8 == 0 or length >= 6:
            step += _to_chord(step, degree)
        notes.append(Note(bar, start, length, step))
        before = step
    return notes


def _to_chord(step: int, degree: int) -> int:
    """How far the nearest note of the chord is from a step: -1, 0 or 1."""
    return {0: 0, 2: 0, 4: 0, 1: -1, 3: 1, 5: -1, 6: 1}[(step - degree) % 7]
