"""`scores.csv` and `scores.md`: the evaluation's numbers, in forms that others read."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

import synthetic
from stemwise.evaluation import pairing, published, tables
from stemwise.evaluation.documents import METRICS


def test_the_csv_has_a_row_per_song_variant_and_stem(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2)
    odd = replace(synthetic.without(made.songs[1], "drums"), name='A "song",\nin two lines')
    made = replace(made, songs=(made.songs[0], odd))
    rows = list(csv.DictReader(io.StringIO(tables.songs_csv(made))))
    assert len(rows) == 2 * 3 * 4
    for row in rows:
        song = made.songs[0] if row["song"] == "Song 0" else odd
        assert row["song"] == song.name
        metrics = song.medians[row["variant"]].get(row["stem"])
        for metric in METRICS:
            assert row[metric] == ("" if metrics is None else f"{metrics[metric]:.5f}")
        if metrics is None:
            assert row["stem"] == "drums"
            assert row["SDR_improvement"] == row["energy_above_band"] == ""
        else:
            gain = metrics["SDR"] - song.medians["mixture"][row["stem"]]["SDR"]
            assert float(row["SDR_improvement"]) == pytest.approx(gain, abs=1e-5)
            assert float(row["energy_above_band"]) == pytest.approx(song.above[row["stem"]])


def test_the_markdown_has_medians_means_intervals_and_the_published(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=9)
    text = tables.markdown(made)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    model = [row for row in cells if row[0] == "mine"]
    for row, statistic in zip(model, (np.median, np.mean), strict=True):
        for stem, cell in zip(made.about.stems, row[1:], strict=True):
            value, low, high = (float(part.strip("[,]")) for part in cell.split())
            assert value == pytest.approx(statistic(made.values("model", stem)), abs=0.005)
            assert low < value < high
    systems = [row for row in cells if "(published)" in row[0]]
    assert len(systems) == len(published.SYSTEMS)
    for system in published.SYSTEMS:
        [row] = [
            row
            for row in systems
            if row[0].startswith(f"*{system.name} ({system.origin}), trained on {system.trained_on}")
        ]
        assert [float(cell) for cell in row[1:]] == [system.scores[stem]["SDR"] for stem in made.about.stems]
        [line] = [line for line in text.splitlines() if line.startswith(f"- {system.name}:")]
        for words in (system.printed_in, f"Trained on {system.trained_on}", f"scored on {system.scored_on}"):
            assert words in line
        assert ("Second-hand" in line) == ("second-hand" in row[0]) == system.second_hand
    assert len({len(row) for row in cells}) == 1


def test_published_systems_stand_beside_the_same_stems_only():
    def beside(*stems: str, solver: str = "museval"):
        return published.beside(synthetic.about(stems=stems, solver=solver))

    assert beside("bass", "drums", "other", "vocals") == published.SYSTEMS
    assert {*beside("vocals", "accompaniment", solver="torch")[0].scores} == {"vocals"}
    assert beside("vocals")
    assert beside("vocals", "piano", "drums", "bass", "other") == ()
    assert beside("piano", "accompaniment") == ()
    assert beside("vocals", "accompaniment", solver="mir_eval") == ()
    for system in published.SYSTEMS:
        assert {*system.scores} == {*published.STEMS}
        assert {tuple(scores) for scores in system.scores.values()} <= {METRICS, METRICS[:1]}


def test_one_song_has_numbers_without_intervals(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=1, stems=("vocals", "accompaniment"))
    line = next(line for line in tables.markdown(made).splitlines() if line.startswith("| mine"))
    assert "[" not in line
    silent = replace(made, songs=(synthetic.without(made.songs[0], "vocals"),))
    line = next(line for line in tables.markdown(silent).splitlines() if line.startswith("| mine"))
    assert line.startswith("| mine | – |")


def test_names_are_no_markup_in_a_table(tmp_path):
    odd = "a|b\n*c* <i>\x1b[31m`d`"
    made = synthetic.evaluation(tmp_path, songs=2, model=odd)
    lines = tables.markdown(made).splitlines()
    [line, _] = [line for line in lines if line.startswith("| a")]
    assert line.startswith("| a\\|b\\\\n\\*c\\* \\<i\\>\\\\x1b\\[31m\\`d\\` | ")
    first = synthetic.evaluation(tmp_path, songs=2, model="plain_name", digest="1" * 32)
    text = tables.differences_markdown(pairing.pair([first, made]))
    assert "\x1b" not in text
    assert "| a\\|b\\\\n" in text
    assert "− plain_name |" in text
