"""The page of a comparison: its differences are those of the evaluations."""

import re
from dataclasses import replace

import numpy as np
import pytest

import synthetic
from html_tables import Reader, number
from stemwise.evaluation import pairing
from stemwise.evaluation.documents import METRICS
from stemwise.evaluation.pairing import Paired
from stemwise.report import comparison, evaluation


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


def test_it_has_all_that_the_page_of_one_model_has(tmp_path):
    found = paired(tmp_path, songs=12, models=3)
    for one in found.evaluations:
        synthetic.write_documents(one)
    text = comparison.write(found, tmp_path).read_text()
    alone = evaluation.write(found.evaluations[0]).read_text()
    for heading in re.findall(r"<h[23][^>]*>([^<]+)</h[23]>", alone):
        assert heading in text or heading.startswith("Above")
    for stem in found.stems:
        assert f"Improvement of {stem} against its input SDR" in text
        assert text.count(f"SDR along Song 3: {stem}<") <= 1
    assert len(re.findall("SDR along Song", text)) == comparison.ALONG * len(found.stems)
    assert "A: median" in text  # each line is a model's
    assert "A and B and C: above 11.0 kHz" in text


def test_measures_are_those_of_each_model(tmp_path):
    found = paired(tmp_path, songs=7)
    tables = page_of(found, tmp_path).tables
    for key, statistic in (("medians", np.median), ("means", np.mean)):
        groups = [row for row in tables[key][1:] if len(row) == 1 or row[0][0] in {"A", "B", "mixture", "oracle"}]
        assert [row[0][0] for row in groups[:5]] == ["vocals", "A", "B", "mixture", "oracle"]
        for row, one in zip(groups[1:3], found.evaluations, strict=True):
            expected = [statistic(one.values("model", "vocals", metric)) for metric in METRICS]
            np.testing.assert_allclose([number(cell[0]) for cell in row[1:]], expected, atol=0.0051)


def test_models_are_averaged_over_the_stems_that_all_have(tmp_path):
    found = paired(tmp_path, songs=2)
    silent = found.evaluations[1].songs[0].medians["model"]
    del silent["drums"]
    row = next(row for row in page_of(found, tmp_path).tables["song-table"] if row[0] == ["Song 0"])
    expected = [
        np.mean([one.songs[0].medians["model"][stem]["SDR"] for stem in ("vocals", "bass", "other")])
        for one in found.evaluations
    ]
    assert [number(cell[0]) for cell in row[1:3]] == pytest.approx(expected, abs=0.0051)
    assert number(row[3][0]) == pytest.approx(expected[1] - expected[0], abs=0.0051)


def test_each_band_has_its_energy(tmp_path):
    one, two = (
        synthetic.evaluation(tmp_path / name, 2, name, digest=name * 32, band=band)
        for name, band in (("1", 11025.0), ("2", 16000.0))
    )
    reader = page_of(pairing.pair([one, two]), tmp_path)
    assert {"band-table", "band-table-2"} <= reader.tables.keys()
    old = replace(two, songs=tuple(replace(song, above={}) for song in two.songs))
    reader = page_of(pairing.pair([one, old]), tmp_path)
    assert "band-table-2" not in reader.tables


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
