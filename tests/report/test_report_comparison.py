"""The page of a comparison: its differences are those of the evaluations."""

from dataclasses import replace

import numpy as np
import pytest

import synthetic
from html_tables import Reader, number
from stemwise.evaluation import pairing
from stemwise.evaluation.pairing import Paired
from stemwise.report import comparison


def paired(tmp_path, songs: int = 8, models: int = 2) -> Paired:
    made = [
        synthetic.evaluation(tmp_path / str(n), songs, f"model {n}", level=4.0 + n, digest=str(n) * 32)
        for n in range(models)
    ]
    return pairing.pair(made)


def page_of(found: Paired, tmp_path, **options) -> Reader:
    reader = Reader(comparison.write(found, tmp_path, **options).read_text())
    assert len({*reader.ids}) == len(reader.ids)
    return reader


def test_the_differences_are_those_of_the_songs(tmp_path):
    found = paired(tmp_path)
    table = page_of(found, tmp_path).tables["difference-B"][1:]
    for row, (stem, (values, one)) in zip(table, found.differences(1).items(), strict=True):
        assert row[0] == [stem]
        mean, median, better, worse, equal, verdict = row[1:]
        assert number(mean[0]) == pytest.approx(np.mean(values), abs=0.0051)
        assert number(median[0]) == pytest.approx(np.median(values), abs=0.0051)
        low, high = (number(end) for end in mean[1].split(" … "))
        assert (low, high) == pytest.approx((one.mean.low, one.mean.high), abs=0.0051)
        assert [int(cell[0]) for cell in (better, worse, equal)] == [(values > 0).sum(), (values < 0).sum(), 0]
        assert verdict == [pairing.verdict(one, "B", "A")]


def test_songs_stand_in_the_order_of_how_far_the_models_are_apart(tmp_path):
    found = paired(tmp_path)
    table = page_of(found, tmp_path).tables["song-table"]
    assert table[0] == [["song"], ["A"], ["B"], ["B − A"], ["vocals"], ["drums"], ["bass"], ["other"]]
    apart = found.average_difference(1)
    for row, place in zip(table[1:], np.argsort(-np.abs(apart)), strict=True):
        assert row[0] == [found.evaluations[0].songs[place].name]
        assert number(row[3][0]) == pytest.approx(apart[place], abs=0.0051)
        assert number(row[2][0]) - number(row[1][0]) == pytest.approx(apart[place], abs=0.011)


def test_three_models_are_each_compared_with_the_first(tmp_path):
    found = paired(tmp_path, models=3)
    reader = page_of(found, tmp_path)
    assert {"difference-B", "difference-C"} <= reader.tables.keys()
    head = [row[0][0] for row in reader.tables["headline"][1:4]]
    assert head == ["A: model 0", "B: model 1", "C: model 2"]
    assert len(reader.tables["song-table"][0]) == 1 + 3 + 2 * 5


def test_notes_and_the_reason_for_silence_stand_on_the_page(tmp_path):
    found = replace(paired(tmp_path, songs=1), notes=("<Odd> songs were left out.",))
    text = comparison.write(found, tmp_path, unheard="There are no songs to listen to: gone").read_text()
    assert "&lt;Odd&gt; songs were left out." in text
    assert "There are no songs to listen to: gone" in text
    assert "too few songs to tell" in text


def test_a_thousand_songs_make_a_bounded_page(tmp_path, monkeypatch):
    monkeypatch.setattr("stemwise.evaluation.statistics.DRAWS", 50)
    found = paired(tmp_path, songs=1000)
    path = comparison.write(found, tmp_path)
    assert path.stat().st_size < 600_000
    assert len(Reader(path.read_text()).tables["song-table"]) == 1 + comparison.SONGS
    assert "of 1000; all of them are in comparison.csv" in path.read_text()
