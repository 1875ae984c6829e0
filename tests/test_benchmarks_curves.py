"""The learning curves of the quality benchmarks: where their numbers say, each with its name, in light and dark."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

SVG = "{http://www.w3.org/2000/svg}"
FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def drawn(monkeypatch):
    """What draws a variant's curves (one for each split) of each seed; a point is step, SDR, loss."""

    monkeypatch.syspath_prepend(FOLDER)
    from quality import curves

    def draw(variants: dict[str, list[list[list]]]) -> ElementTree.Element:
        runs = {name: dict(enumerate([{"curve": c} for c in own] for own in seeds)) for name, seeds in variants.items()}
        return ElementTree.fromstring(curves.picture("asked", runs))

    return draw


def shapes(svg: ElementTree.Element, kind: str) -> list[list[tuple[float, float]]]:
    paths = [e.get("d") for e in svg.iter(f"{SVG}path") if kind in e.get("class").split()]
    return [[tuple(map(float, p.split())) for p in path.strip("Mz").split("L")] for path in paths]


def test_a_curve_is_the_mean_over_seeds_and_splits_with_the_spread_of_seeds(drawn):
    seeds = [[[[10, 0.0, 1], [20, 1.0, 1]], [[10, 2.0, 1], [20, 3.0, 1]]], [[[10, 2.0, 1], [20, 2.0, 1]]] * 2]
    svg = drawn({"a": seeds, "flat": [[[[10, 0.0, 1], [20, 3.0, 1]]]]})
    (mean, line), (band, none) = shapes(svg, "curve"), shapes(svg, "spread")
    assert mean[1][0] - mean[0][0] == pytest.approx(line[1][0] - line[0][0])
    slope = (line[0][1] - line[1][1]) / 3  # lengths of a dB
    assert (line[0][1] - mean[0][1], line[0][1] - mean[1][1]) == pytest.approx((1.5 * slope, 2 * slope), abs=0.1)
    assert (band[3][1] - band[0][1], band[2][1] - band[1][1]) == pytest.approx((2 * 0.5**0.5 * slope, 0), abs=0.1)
    assert none[0] == none[3]
    assert "a: 2.00 after 20" in svg.find(f"{SVG}desc").text


def test_every_variant_has_a_label_of_its_own_and_only_if_it_ran(drawn):
    names = {f"variant {number}": [[[[1, 1.0, 1]]]] for number in range(20)}
    svg = drawn({**names, "later": []})
    labels = [e for e in svg.iter(f"{SVG}text") if e.get("class") == "label"]
    assert {e.text for e in labels} == set(names)
    rows = sorted(float(e.get("y")) for e in labels)
    assert all(after - before >= 14.9 for before, after in itertools.pairwise(rows))
    assert rows[0] > 0
    assert rows[-1] < float(svg.get("height"))
    keys = [(e.get("class"), e.get("d")) for e in svg.iter(f"{SVG}path") if "solid" in e.get("class")]
    assert len(set(keys)) == len(keys)
    drawn({})


def test_a_picture_stands_alone_in_light_and_dark(drawn):
    style = drawn({"a": [[[[1, 1.0, 1]]]]}).find(f"{SVG}style").text
    assert "@media (prefers-color-scheme: dark)" in style
    selectors = [one.strip() for rule in re.findall(r"([^{}]+)\{", style) for one in rule.split(",")]
    assert all(one.startswith((".learning", "@media")) for one in selectors)
    for needed in ("text", ".tick", ".axis", ".grid", ".curve", ".s8", ".d2", ".ground", ".spread"):
        assert f".learning {needed} " in style.replace(",", " "), needed
    assert set(re.findall(r"var\((.*?)\)", style)) <= set(re.findall(r"(--[\w-]+):", style))
