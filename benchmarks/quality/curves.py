"""The learning curves of a question as one picture: SDR against steps, a line and a light spread for each variant.

Drawn with what draws the pictures of `stemwise evaluate`; an SVG that stands alone, in light and dark.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from quality.pages import Taken

from stemwise.report import axes

WIDTH, LEFT, RIGHT, TOP = 720, 40, 470, 40
STYLES = Path(axes.__file__).parent
DRAWN = r"\.plot (text|\.(label|tick|axis|grid|zero|solid|curve))\b|^\s*\.[sd]\d "  # the rules that are needed
OWN = """.learning { max-width: 100%; height: auto; }
.learning .ground { fill: var(--ground); }
.learning .spread { fill: currentColor; fill-opacity: 0.1; }
.learning .leader { stroke: var(--line); fill: none; }"""

Point = tuple[float, float, float]
"""A step, the mean SDR in dB, and its standard deviation over seeds."""


def picture(name: str, variants: Mapping[str, Taken]) -> str:
    """The SVG; variants without a run are left out."""
    lines = {variant: _line(runs) for variant, runs in variants.items() if runs}
    bottom = TOP + max(260, 16 * len(lines))
    steps = [step for line in lines.values() for step, _, _ in line]
    ends = [end for line in lines.values() for _, mean, spread in line for end in (mean - spread, mean + spread)]
    across, up = axes.Scale(0, max(steps, default=1), LEFT, RIGHT), axes.reaching(ends, bottom, TOP)
    places = axes.apart([up(line[-1][1]) for line in lines.values()], bottom)
    parts = [_style(), Markup('<rect class="ground" width="100%" height="100%"/>')]
    parts += [axes.horizontal(across, bottom, TOP, "steps"), axes.vertical(up, LEFT, RIGHT, "SDR, dB")]
    parts += [_band(line, across, up, look) for look, line in enumerate(lines.values())]
    for look, ((variant, line), y) in enumerate(zip(lines.items(), places, strict=True)):
        parts += [_curve(line, across, up, look), _label(variant, up(line[-1][1]), y, across(line[-1][0]), look)]
    words = "; ".join(f"{variant}: {line[-1][1]:.2f} after {line[-1][0]:g}" for variant, line in lines.items())
    height = bottom + 44
    svg = axes.picture(WIDTH, height, f"{name.capitalize()}: learning curves", f"SDR, dB, over steps. {words}.", parts)
    alone = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" class="plot learning"'
    return svg.replace(Markup('<svg class="plot"'), Markup(alone), 1) + "\n"


def _line(runs: Taken) -> list[Point]:
    """The mean over seeds and splits at each validation, and the spread over seeds of the mean over splits."""
    seeds = [_mean([[sdr for _, sdr, _ in run["curve"]] for run in own]) for own in runs.values()]
    steps = [step for step, _, _ in next(iter(runs.values()))[0]["curve"]]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in zip(*seeds, strict=True)]
    return list(zip(steps, _mean(seeds), spreads, strict=True))


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.mean(values) for values in zip(*curves, strict=True)]


def _style() -> Markup:
    """The reports' colours and lines, for this picture alone: within a page, a style is everybody's."""
    texts = ((STYLES / name).read_text(encoding="utf-8") for name in ("page.css", axes.STYLE))
    page, plots = (re.sub(r"\s*/\*.*?\*/", "", text, flags=re.S) for text in texts)
    colours = re.findall(r"^(?::root|@media \(prefers-color-scheme: dark\)) \{.*?^\}", page, re.M | re.S)
    rules = [rule.strip() for rule in re.findall(r"[^{}]+\{[^}]*\}", plots) if re.search(DRAWN, rule)]
    own = [rule.replace(".plot ", ".learning ") if ".plot " in rule else f".learning {rule}" for rule in rules]
    scoped = [colour.replace(":root", ".learning") for colour in colours]
    return Markup("<style>{}</style>").format(Markup("\n".join([*scoped, *own, OWN])))


def _band(line: Sequence[Point], across: axes.Scale, up: axes.Scale, look: int) -> Markup:
    above = [f"{across(step):.1f} {up(mean + spread):.1f}" for step, mean, spread in line]
    below = [f"{across(step):.1f} {up(mean - spread):.1f}" for step, mean, spread in reversed(line)]
    return Markup('<path class="spread s{}" d="M{}z"/>').format(look % 8 + 1, "L".join([*above, *below]))


def _curve(line: Sequence[Point], across: axes.Scale, up: axes.Scale, look: int) -> Markup:
    path = "L".join(f"{across(step):.1f} {up(mean):.1f}" for step, mean, _ in line)
    marks = "".join(axes.mark(_mark(look), across(step), up(mean), 3) for step, mean, _ in line)
    return Markup('<path class="curve s{} d{}" d="M{}"/><path class="solid s{}" d="{}"/>').format(
        look % 8 + 1, look // 8 % 4 + 1, path, look % 8 + 1, marks
    )


def _label(variant: str, end: float, y: float, x: float, look: int) -> Markup:
    """The name beside the plot, with its mark, and a thin line from where the curve ends."""
    leader = Markup('<path class="leader" d="M{} {}L{} {}H{}"/>').format(
        *(axes.number(value) for value in (x + 4, end, RIGHT + 14, y, RIGHT + 18))
    )
    key = Markup('<path class="solid s{}" d="{}"/>').format(look % 8 + 1, axes.mark(_mark(look), RIGHT + 24, y))
    return leader + key + axes.text(RIGHT + 33, y + 4, variant)


def _mark(look: int) -> str:
    """Another for the ninth than for the first, which has its colour."""
    return list(axes.MARKS)[(look + look // 8) % len(axes.MARKS)]
