"""The page of an evaluation: its tables are the evaluation's numbers, whatever the songs are called and lack."""

import html
import json
import math
from dataclasses import replace

import numpy as np
import pytest

import synthetic
from html_tables import Reader, number
from stemwise.evaluation import published
from stemwise.evaluation.documents import METRICS
from stemwise.evaluation.results import Evaluation
from stemwise.report import evaluation, plots, scores


def page_of(made: Evaluation, **options) -> Reader:
    text = evaluation.write(made, **options).read_text()
    assert "nan" not in text.replace("resonan", "").replace("finan", "")
    reader = Reader(text)
    assert len({*reader.ids}) == len(reader.ids)
    assert [address for address in reader.addresses if not address.startswith("#")] == []
    return reader


def rows(reader: Reader, key: str) -> dict[str, list[list[str]]]:
    return {row[0][0]: row[1:] for row in reader.tables[key][1:] if len(row) > 1}


def test_the_headline_table_is_the_evaluations_medians(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=9)
    found = rows(page_of(made), "headline")
    names = {"mine": "model", "unprocessed mixture": "mixture", "oracle, the ceiling of mine": "oracle"}
    for name, variant in names.items():
        medians = [np.median(made.values(variant, stem)) for stem in made.about.stems]
        *cells, mean = found.pop(name)
        for cell, median in zip(cells, medians, strict=True):
            low, high = (number(end) for end in cell[1].split(" … "))
            assert number(cell[0]) == pytest.approx(median, abs=0.0051)
            assert low <= number(cell[0]) <= high
        assert number(mean[0]) == pytest.approx(np.mean(medians), abs=0.0051)
    # What others published is all that is left, to the digit, and says so.
    assert [row[0] for row in page_of(made).tables["headline"] if len(row) == 1] == [[scores.PUBLISHED]]
    systems = [row for row in page_of(made).tables["headline"] if len(row) > 1][4:]
    for row, system in zip(systems, published.SYSTEMS, strict=True):
        assert row[0] == [system.name, f"{system.origin}; trained on {system.trained_on}"]
        assert [number(cell[0]) for cell in row[1:-1]] == [system.scores[stem]["SDR"] for stem in made.about.stems]


def test_what_others_published_is_named_with_its_source_and_data(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2)
    text = html.unescape(evaluation.write(made).read_text())
    method = text[text.index('<section id="method"') :]
    for system in published.SYSTEMS:
        assert published.source(system) in method
        assert f"{system.name} <small>{system.origin}; trained on" in text[: text.index('<section id="songs"')]
    assert sum(system.second_hand for system in published.SYSTEMS) == method.count("Second-hand: ") == 2
    # All four measures where they are printed, and in no table of means.
    tables = page_of(made).tables
    whole = [system for system in published.SYSTEMS if system.is_whole]
    shown = [row for row in tables["medians"][1:] if row[0][0] in {system.name for system in published.SYSTEMS}]
    expected = [[system.scores[stem][m] for m in METRICS] for stem in made.about.stems for system in whole]
    assert len(whole) == 4
    assert [[number(cell[0]) for cell in row[1:]] for row in shown] == expected
    assert not {row[0][0] for row in tables["means"][1:]} & {system.name for system in published.SYSTEMS}


def test_the_tables_of_all_measures_are_the_evaluations(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=7)
    for key, statistic in (("medians", np.median), ("means", np.mean)):
        found = page_of(made).tables[key][1:]
        expected = [
            [variant, *(statistic(made.values(variant, stem, metric)) for metric in METRICS)]
            for stem in made.about.stems
            for variant in made.variants
        ]
        assert [row[0][0] for row in found if len(row) == 1] == list(made.about.stems)
        measured = [row for row in found if len(row) > 1 and row[0][0] in made.variants]
        for row, (variant, *values) in zip(measured, expected, strict=True):
            assert row[0] == [variant]
            np.testing.assert_allclose([number(cell[0]) for cell in row[1:]], values, atol=0.0051)


def test_every_song_has_its_row_with_what_it_gained(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=5)
    silent = synthetic.without(made.songs[2], "drums")
    made = replace(made, songs=(*made.songs[:2], silent, *made.songs[3:]))
    found = rows(page_of(made), "song-table")
    assert found.keys() == {song.name for song in made.songs}
    for place, song in enumerate(made.songs):
        length, mean, gained, *values = (cell[0] for cell in found[song.name])
        assert length == "3:20"
        assert number(mean) == pytest.approx(made.average()[place], abs=0.0051)
        assert number(gained) == pytest.approx(made.gain()[place], abs=0.0051)
        expected = [song.medians["model"].get(stem, {}).get("SDR", math.nan) for stem in made.about.stems]
        np.testing.assert_allclose([number(value) for value in values], expected, atol=0.0051)
    assert "drums in 1" in evaluation.write(made).read_text()


def test_the_energy_above_the_band_is_told_in_per_cent(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2)
    found = rows(page_of(made), "band-table")
    assert found["other"] == [["0.4 %"], ["0.4 %"], ["2"]]
    old = replace(made, songs=tuple(replace(song, above={}) for song in made.songs))
    assert "band-table" not in page_of(old).tables
    assert "all stems are silent, or an older version scored them" in evaluation.write(old).read_text()


def test_a_song_is_shown_over_time_from_its_document(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2)
    frames = [{"time": float(at), "metrics": dict.fromkeys(METRICS, 4.0 + at)} for at in range(3)]
    (tmp_path / "model").mkdir()
    document = json.dumps({"targets": [{"name": "vocals", "frames": frames}]})
    (tmp_path / "model" / made.songs[1].file).write_text(document)
    text = evaluation.write(made).read_text()
    assert "SDR along Song 1" in text
    assert "SDR along Song 0" not in text  # its document is gone
    assert "vocals: median 5.00; drums: silent" in text
    (tmp_path / "model" / made.songs[1].file).unlink()
    assert "their documents beside the scores are gone" in evaluation.write(made).read_text()


def test_a_page_of_whole_songs_scores_says_nothing_of_windows(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2, stems=("vocals", "accompaniment"))
    synthetic.write_documents(made, seconds=1)
    assert all(words in evaluation.write(made).read_text() for words in ("BSSEval v4", "windows of one second", "JOSS"))
    text = evaluation.write(replace(made, about=replace(made.about, solver="mir_eval"))).read_text()
    assert "SDR, SIR and SAR are those of BSSEval v3, of whole songs" in text
    for words in ("BSSEval v4", "windows of one second", "a song’s windows", "SDR along", "Published figures", "JOSS"):
        assert words not in text


def test_songs_over_time_are_as_many_as_fit(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2 * evaluation.ALONG, stems=("vocals",))
    synthetic.write_documents(made)
    text = evaluation.write(made).read_text()
    shown = {song.name for song in made.songs if f"SDR along {song.name}<" in text}
    ranked = sorted(made.songs, key=lambda song: song.medians["model"]["vocals"]["SDR"])
    assert len(shown) == evaluation.ALONG
    assert {ranked[0].name, ranked[-1].name} <= shown
    assert f"{evaluation.ALONG} songs, evenly over their ranks" in text


@pytest.mark.parametrize("songs", [1, 2, 12])
def test_pages_of_few_songs_stand_with_any_lack(tmp_path, songs):
    made = synthetic.evaluation(tmp_path, songs=songs, stems=("vocals", "accompaniment"))
    assert "headline" in page_of(made).tables
    only = replace(made, songs=tuple(replace(s, medians={"model": s.medians["model"]}) for s in made.songs))
    assert "unprocessed mixture" not in rows(page_of(only), "headline")
    nothing = replace(made, songs=tuple(replace(s, medians={"model": {}}, above={}) for s in made.songs))
    assert rows(page_of(nothing), "headline")["mine"] == [["–"]] * 3


def test_names_are_text_and_no_markup(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2, model="<b>&amp;")
    odd = replace(made.songs[0], name="<script>alert(1)</script>\udce9")
    text = evaluation.write(replace(made, songs=(odd, made.songs[1]))).read_text()
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_thousand_songs_make_a_page_of_the_size_of_two_hundred(tmp_path, monkeypatch):
    monkeypatch.setattr("stemwise.evaluation.statistics.DRAWS", 50)
    sizes = {}
    for count in (evaluation.SONGS, 1000):
        made = synthetic.evaluation(tmp_path, songs=count)
        sizes[count] = evaluation.write(made).stat().st_size
    assert sizes[1000] < 1.1 * sizes[evaluation.SONGS]
    assert sizes[1000] < 600_000
    found = rows(page_of(made), "song-table")
    order = sorted(made.songs, key=lambda song: -made.average()[made.songs.index(song)])
    half = evaluation.SONGS // 2
    assert list(found) == [song.name for song in (*order[:half], *order[-half:])]
    assert plots.POINTS < 1000
