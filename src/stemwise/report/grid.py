"""Tables of a page: rows in groups, numbers with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stemwise.evaluation.statistics import Summary
from stemwise.report import page

STYLE = "grid.css"
SORT = "grid.js"  # for a table with `sortable`


@dataclass(frozen=True)
class Row:
    """A name and its cells; `kind` is a class, `published` for what was not measured here."""

    name: str | Markup
    cells: Sequence[str | Markup]
    kind: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that belong together, below a heading if they have one."""

    rows: Sequence[Row]
    heading: str = ""


def table(
    key: str,
    caption: str,
    columns: Sequence[str],
    groups: Sequence[Group],
    *,
    note: str | Markup = "",
    sortable: bool = False,
) -> Markup:
    """A table `key` that scrolls by itself where the screen is narrow. `columns` name the row's heads, too."""
    return page.rendered(
        "grid.html", key=key, caption=caption, columns=columns, groups=groups, note=note, sortable=sortable
    )


def decibels(value: float) -> str:
    """Two digits and a real minus; a dash for what is not known."""
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float) -> str:
    """The same of a difference."""
    return f"{value:+.2f}".replace("-", "−") if math.isfinite(value) else "–"


def stacked(found: Summary, sign: bool = False) -> Markup:
    """A number above the ends of its interval."""
    shown = signed if sign else decibels
    value = Markup("<span>{}</span>").format(shown(found.value))
    if not math.isfinite(found.low):
        return value
    return value + Markup("<small>{} … {}</small>").format(shown(found.low), shown(found.high))


def length(seconds: float) -> str:
    """Minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02}"
