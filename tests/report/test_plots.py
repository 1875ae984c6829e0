"""Pictures: well-formed, described, bounded in size, and where their numbers say."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemwise.evaluation import statistics
from stemwise.report import axes, plots
from stemwise.report.plots import Series

NAN = math.nan


def series(*values: float, look: int = 0) -> Series:
    return Series("model", np.array(values), look)


def parsed(svg: str) -> ET.Element:
    root = ET.fromstring(svg)
    title, description = root.find("title"), root.find("desc")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text
    assert description.text
    return root


def every_plot(values: list[float]) -> list[str]:
    points = [(f"song {n}", value, value + 1) for n, value in enumerate(values)]
    line = [(float(at), value) for at, value in enumerate(values) if math.isfinite(value)]
    one = series(*values)
    mean = statistics.mean(one.values, np.random.default_rng(0))
    return [
        plots.boxes([one, series(1.0, look=7)], [one.values], "t"),
        plots.scatter({"": points}, "t", "x, dB", "y, dB", diagonal=True),
        plots.scatter({"A": points, "B": points}, "t", "x, dB", "y, dB", diagonal=False),
        plots.curves({"vocals": line, "drums": []}, "t"),
        plots.songs([("a <song> & more", {"vocals": value}) for value in values], values, "t", "SDR, dB"),
        plots.shares([Series("vocals", np.abs(one.values) / 1e4, 0)], "t"),
        plots.differences([("vocals", one.values, mean)], "t", "dB"),
    ]


@pytest.mark.parametrize("values", [[], [NAN], [3.0], [0.0, 0.0], [1.0, NAN, -2.0], [1e-9, 80.0, -80.0]])
def test_every_picture_stands_whatever_its_numbers(values):
    for svg in every_plot(values):
        text = ET.tostring(parsed(svg), encoding="unicode")
        assert not re.search(r"\bnan\b|\binf\b", text)


def test_pictures_of_many_songs_stay_small_and_keep_their_extremes():
    random = np.random.default_rng(0)
    few, many = ([len(svg) for svg in every_plot(random.normal(size=n).tolist())] for n in (plots.POINTS, 2000))
    for number, (small, large) in enumerate(zip(few, many, strict=True)):
        # All but the list of songs, which is handed the ones that it is to show; a curve has more points.
        assert large < 3 * small or number == 4
    kept = axes.thinned([*random.normal(size=1000), 99.0, -99.0, NAN], 50)
    assert (len(kept), kept[0], kept[-1]) == (50, -99.0, 99.0)


def test_a_box_lies_where_its_quartiles_are():
    root = parsed(plots.boxes([series(0.0, 1.0, 2.0, 3.0, 4.0)], [np.array([0.0, 4.0])], "t"))
    ticks = {text.text: float(text.get("x")) for text in root.iter("text") if text.get("class") == "tick"}
    box = next(root.iter("rect"))
    left, width = float(box.get("x")), float(box.get("width"))
    assert left == pytest.approx(ticks["1"], abs=0.1)
    assert left + width == pytest.approx(ticks["3"], abs=0.1)
    assert "median 2.00, half of the songs from 1.00 to 3.00" in root.find("desc").text


def test_points_of_a_scatter_lie_at_their_values_and_are_named():
    root = parsed(plots.scatter({"": [("A & B", 2.0, 6.0), ("gone", NAN, 1.0)]}, "t", "x, dB", "y, dB", diagonal=True))
    points = [path for path in root.iter("path") if path.get("class").startswith("point")]
    assert [point.find("title").text for point in points] == ["A & B: 2.00, 6.00 dB"]
    ends = [
        float(value)
        for value in re.findall(r"[\d.]+", next(p.get("d") for p in root.iter() if p.get("class") == "same"))
    ]
    x, y = mark_middle(points[0].get("d"))
    # Above the diagonal, which falls from left below to right above.
    share = (x - ends[0]) / (ends[2] - ends[0])
    assert y < ends[1] + share * (ends[3] - ends[1])


def test_models_in_one_scatter_differ_in_shape_and_are_named():
    points = [("A song", 2.0, 6.0), ("gone", NAN, 1.0)]
    root = parsed(plots.scatter({"A": points, "B": [("A song", 2.0, -1.0)]}, "t", "x, dB", "y, dB", diagonal=False))
    one, two = [path for path in root.iter("path") if path.get("class").startswith("outline")]
    assert [p.find("title").text for p in (one, two)] == ["A, A song: 2.00, 6.00 dB", "B, A song: 2.00, -1.00 dB"]
    assert one.get("class") != two.get("class")
    assert one.get("d").count(" ") != two.get("d").count(" ")  # another number of corners
    description = root.find("desc").text
    assert (
        "A, songs: 1, above the line of no difference: 1. B, songs: 1, above the line of no difference: 0"
        in description
    )


def mark_middle(path: str) -> tuple[float, float]:
    numbers = [float(value) for value in re.findall(r"-?[\d.]+", path)]
    return float(np.mean(numbers[::2])), float(np.mean(numbers[1::2]))


def test_a_curve_has_a_gap_where_a_stem_is_silent_and_a_mark_and_dash_of_its_own():
    line = [(0.0, 1.0), (1.0, 2.0), (7.0, 3.0), (8.0, 1.0)]
    root = parsed(plots.curves({"vocals": line, "drums": line}, "t"))
    curves = [path for path in root.iter("path") if path.get("class").startswith("curve")]
    assert [re.sub("[^ML]", "", path.get("d")) for path in curves] == ["MLML", "MLML"]
    assert len({path.get("class") for path in curves}) == 2
    labels = [text for text in root.iter("text") if text.get("class") == "label"]
    assert abs(float(labels[0].get("y")) - float(labels[1].get("y"))) >= 15  # names do not lie on each other


def test_all_marks_are_of_one_size_and_differ():
    corners = {name: np.array(found) for name, found in axes.MARKS.items()}
    for name, found in corners.items():
        assert 0.3 <= np.abs(found[:, 0]).max() <= 1.4, name
        assert 0.8 <= np.abs(found[:, 1]).max() <= 1.4, name
    assert len({axes.mark(name, 0, 0) for name in axes.MARKS}) == len(axes.MARKS) == 8


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9), st.integers(3, 8))
def test_scales_reach_over_all_values_with_a_few_round_ticks(values, count):
    scale = axes.reaching(values, 0.0, 100.0, count)
    for value in values:
        assert -1e-6 <= scale(value) <= 100 + 1e-6
    found = axes.ticks(scale, count)
    assert 2 <= len(found) <= count + 2
    assert all(scale.low - 1e-6 <= tick <= scale.high + 1e-6 for tick in found)
