"""A song's scores as a file, and the medians of a split's songs."""

import re

from stemwise.evaluation import documents
from stemwise.evaluation.documents import Scores, SongScores


def test_medians_of_medians():
    frames = [{"metrics": dict.fromkeys(documents.METRICS, value)} for value in (1.0, 5.0, float("nan"), 2.0)]
    scores = Scores()
    for shift in (0, 10, 100):
        moved = [{"metrics": {m: v + shift for m, v in frame["metrics"].items()}} for frame in frames]
        medians = documents.medians({"targets": [{"name": "vocals", "frames": moved}]})
        scores.add(SongScores(f"song {shift}", 3.0, {"model": medians}, {}))
    assert scores.median("model", "vocals", "SDR") == 12.0
    assert "| vocals | model | 12.00 |" in scores.table(["vocals"])


def test_song_names_become_file_names():
    assert documents.file_name("A [song], no. 1") == "A [song], no. 1.json"
    assert re.fullmatch(r"AC_DC_\.\.-[0-9a-f]{12}\.json", documents.file_name("AC/DC\\.."))
    assert re.fullmatch(r"_\.\._etc-[0-9a-f]{12}\.json", documents.file_name("../../etc"))


def test_no_two_songs_share_a_file(tmp_path):
    songs = ["a/b", "a_b", "a\\b", ".a", "a", "..a", "", ".", "é" * 200, "é" * 201, "x" * 250, "x" * 251, "\udce9/"]
    songs.append(documents.file_name("a/b").removesuffix(".json"))
    names = [documents.file_name(song) for song in songs]
    assert len({*names}) == len(songs)
    for name in names:
        assert not name.startswith(".")
        (tmp_path / name).touch()  # refuses more than 255 bytes
