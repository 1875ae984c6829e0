"""`evaluation.json`: what comes back is what was written, and what cannot be read is said."""

import json
import math

import numpy as np
import pytest

import synthetic
from stemwise.catalogue import Song
from stemwise.errors import UserError
from stemwise.evaluation import documents, results
from stemwise.index import Cell


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    written = synthetic.evaluation(tmp_path, songs=3)
    silent = synthetic.without(written.songs[1], "vocals")
    silent.medians["model"]["bass"]["SIR"] = math.nan
    written = results.Evaluation(tmp_path, written.about, (written.songs[0], silent, written.songs[2]))
    results.write(written)
    found = results.read(tmp_path)
    assert found.about == written.about
    assert found.variants == ("model", "mixture", "oracle")
    for variant in found.variants:
        for stem in found.about.stems:
            for metric in documents.METRICS:
                np.testing.assert_array_equal(
                    found.values(variant, stem, metric), written.values(variant, stem, metric)
                )
    assert math.isnan(found.values("model", "vocals")[1])
    assert math.isnan(found.above("vocals")[1])
    assert found.songs[0] == written.songs[0]
    assert "NaN" not in (tmp_path / results.FILE).read_text()  # JSON has no such number


def test_an_evaluation_from_before_windows_could_overlap_is_read(tmp_path):
    written = synthetic.evaluation(tmp_path, songs=2, overlap=0.5)
    results.write(written)
    assert results.read(tmp_path).about.overlap == 0.5
    path = tmp_path / results.FILE
    document = json.loads(path.read_text())
    del document["overlap"]
    path.write_text(json.dumps(document))
    assert results.read(tmp_path).about.overlap is None


def test_a_song_can_be_read_again_from_its_files(tmp_path):
    cells = (Cell(tmp_path / "a [1], no#2.stem.mp4", 4, None), Cell(tmp_path / "b.wav", None, 1))
    for cell in cells:
        cell.path.write_bytes(cell.path.name.encode())
    song = Song("a", cells[:1], (cells, cells[1:]), 3.0)
    about = synthetic.about(stems=("vocals", "rest"))
    scores = synthetic.scores(documents.SongScores("a", 3.0, {"model": {}}, {}))
    made = results.gather(tmp_path, about, [song], scores)
    assert made.songs[0].song() == song
    results.write(made)
    assert results.read(tmp_path) == made


def test_marks_are_those_of_contents(tmp_path):
    """A copy elsewhere, at another time, is the same song; another sample, stream or channel is not."""
    about = synthetic.about(stems=("vocals",))
    scores = synthetic.scores(documents.SongScores("a", 3.0, {"model": {}}, {}))

    def marks(folder: str, content: bytes, **cell) -> dict[str, str]:
        path = tmp_path / folder / "a.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        signal = (Cell(path, cell.get("stream"), cell.get("channel")),)
        return results.gather(tmp_path, about, [Song("a", signal, (signal,), 3.0)], scores).songs[0].marks

    first = marks("one", bytes(300_000))
    assert first.keys() == {"", "vocals"}
    assert marks("two", bytes(300_000)) == first
    assert marks("two", bytes(150_000) + b"\1" + bytes(149_999)) != first
    assert marks("two", bytes(300_000), stream=1) != first
    assert marks("two", bytes(300_000), channel=1) != first


def test_the_average_of_a_song_is_that_of_its_stems_with_a_score(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2)
    half = synthetic.without(made.songs[1], "vocals")
    made = results.Evaluation(tmp_path, made.about, (made.songs[0], half))
    expected = [np.mean([values["SDR"] for values in song.medians["model"].values()]) for song in made.songs]
    np.testing.assert_allclose(made.average(), expected)


def test_a_gain_is_of_the_stems_that_both_have(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=2)
    # The model left one stem silent: the mixture, which has it, must not be averaged with it.
    del made.songs[0].medians["model"]["drums"]
    expected = [
        np.mean(
            [values["SDR"] - song.medians["mixture"][stem]["SDR"] for stem, values in song.medians["model"].items()]
        )
        for song in made.songs
    ]
    np.testing.assert_allclose(made.gain(), expected)
    np.testing.assert_array_equal(np.isnan(made.improvement("drums")), [True, False])


def test_a_song_without_its_easy_stem_is_not_ranked_as_a_bad_one(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=3)
    for song, level in zip(made.songs, (0.0, 1.0, 2.0), strict=True):
        for stem, ease in zip(made.about.stems, (9.0, 3.0, 2.0, 1.0), strict=True):
            song.medians["model"][stem]["SDR"] = ease + level
    del made.songs[2].medians["model"]["vocals"]
    assert made.average().argmax() != 2
    assert made.standing().argmax() == 2
    # Of whole songs the order is that of their means.
    whole = synthetic.evaluation(tmp_path, songs=9)
    np.testing.assert_array_equal(np.argsort(whole.standing()), np.argsort(whole.average()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no evaluation.json, so no evaluation"),
        ("{", "not what stemwise evaluate writes .no JSON from line 1 on"),
        ("[]", "something in it is of another kind: a list where an object should be"),
        (json.dumps({"format": 99}), "of format 99, and this version of stemwise reads 1"),
        (json.dumps({"format": 1}), "'model' is missing in it"),
    ],
)
def test_what_is_no_evaluation_is_said(tmp_path, text, message):
    if text is not None:
        (tmp_path / results.FILE).write_text(text)
    with pytest.raises(UserError, match=message):
        results.read(tmp_path)


def test_numbers_are_numbers(tmp_path):
    results.write(synthetic.evaluation(tmp_path, songs=1))
    document = json.loads((tmp_path / results.FILE).read_text())
    (tmp_path / results.FILE).write_text(json.dumps(document | {"band": "wide"}))
    with pytest.raises(UserError, match="not what stemwise evaluate writes"):
        results.read(tmp_path)


def test_an_evaluation_by_an_older_version_and_a_missing_folder_are_told_apart(tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(UserError, match=r"older stemwise\. Evaluate into it once more"):
        results.read(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        results.read(tmp_path / "none")


def test_the_curve_of_a_song_leaves_out_silent_windows(tmp_path):
    made = synthetic.evaluation(tmp_path, songs=1)
    values = [1.0, math.nan, None, 4.0]
    frames = [{"time": float(at), "metrics": {"SDR": value}} for at, value in enumerate(values)]
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / made.songs[0].file
    path.write_text(json.dumps({"targets": [{"name": "vocals", "frames": frames}]}))
    assert made.curves(made.songs[0]) == {"vocals": [(0.0, 1.0), (3.0, 4.0)]}
    path.unlink()
    assert made.curves(made.songs[0]) == {}
