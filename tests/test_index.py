"""The index CSV: what it may say, what `stems` it serves, and a message for every way to get it wrong."""

import csv
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from stemwise import audio, index
from stemwise.errors import UserError
from stemwise.index import Cell, Index, Track

STEMS = ("vocals", "drums")
SONG = {"mixture": None, "vocals": None, "drums": None}


def write_csv(root: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = root / "index.csv"
    path.write_text("".join(line + "\n" for line in lines), encoding=encoding)
    return path


def row(song: str, duration: str = "") -> str:
    return f"{song}/mixture.wav,{song}/vocals.wav,{song}/drums.wav,{duration}"


HEADER = "mix_path,vocals_path,drums_path,duration"


def message(path: Path, root: Path, stems: tuple[str, ...] = STEMS, sums: dict | None = None) -> str:
    """What the user is told about this index."""
    with pytest.raises(UserError) as caught:
        index.check(index.read(path, root), stems, sums or {})
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path, write_song) -> Path:
    for song in ("One", "Two"):
        write_song(tmp_path / song, SONG)
    return tmp_path


# What an index may say.


def test_spleeters_own_index_reads_unchanged(root: Path) -> None:
    stems = ("mixture", "vocals", "drums", "bass", "other")
    path = write_csv(
        root,
        "mix_path,vocals_path,drums_path,bass_path,other_path,duration",
        ",".join(f"train/A - B/{stem}.wav" for stem in stems) + ",171.247166",
        ",".join(f'"train/J, K/{stem}.wav"' for stem in stems) + ",191.471746",
    )
    found = index.read(path, root)
    assert found.problems == []
    assert found.columns == ["vocals", "drums", "bass", "other"]
    assert found.has_mixture
    first, second = found.tracks
    assert (first.name, first.duration, first.row) == ("A - B", 171.247166, 2)
    assert first.mixture == Cell(root / "train/A - B/mixture.wav")
    assert (second.name, second.row) == ("J, K", 3)
    assert second.stems["other"] == Cell(root / "train/J, K/other.wav")


@pytest.mark.parametrize(
    ("text", "path", "stream", "channel"),
    [
        ("a/song.wav", "a/song.wav", None, None),
        ("song.stem.mp4#stream=4", "song.stem.mp4", 4, None),
        ("clip.flac#channel=0", "clip.flac", None, 0),
        ("song.mkv#stream=12#channel=1", "song.mkv", 12, 1),
        ("Song #1.wav", "Song #1.wav", None, None),
        ("Song #1.wav#channel=1", "Song #1.wav", None, 1),
        ("#stream=1/song.wav", "#stream=1/song.wav", None, None),
        ("song.wav#stream=", "song.wav#stream=", None, None),
        ("song.wav#stream=-1", "song.wav#stream=-1", None, None),
    ],
)
def test_a_cell_names_a_file_a_stream_or_a_channel(
    text: str, path: str, stream: int | None, channel: int | None, tmp_path: Path
) -> None:
    cell = Cell.parse(text, tmp_path)
    assert cell == Cell(tmp_path / path, stream, channel)
    assert cell.text(tmp_path) == text


def test_an_absolute_path_stays_absolute(tmp_path: Path) -> None:
    cell = Cell.parse("/elsewhere/song.wav", tmp_path)
    assert cell.path == Path("/elsewhere/song.wav")
    assert cell.text(tmp_path) == "/elsewhere/song.wav"


def test_without_a_mixture_column_the_stems_add_up(root: Path) -> None:
    found = index.read(write_csv(root, "vocals_path,drums_path", "One/vocals.wav,One/drums.wav"), root)
    (track,) = found.tracks
    assert not found.has_mixture
    assert track.mixture_signal == (Cell(root / "One/vocals.wav"), Cell(root / "One/drums.wav"))
    assert track.signal(["drums"]) == (Cell(root / "One/drums.wav"),)
    index.check(found, STEMS, {})


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("songs/One/mixture.wav", "One"),
        ("songs/One/MIX.flac", "One"),
        ("songs/One/vocals.wav", "One"),
        ("One.stem.mp4#stream=0", "One"),
        ("mixtures/One.wav", "One"),
        ("clip_01.flac#channel=1", "clip_01"),
        ("Dr. No/mixture.wav", "Dr. No"),
    ],
)
def test_a_track_is_named_after_its_files(cell: str, name: str, root: Path) -> None:
    (track,) = index.read(write_csv(root, "mix_path,vocals_path", f"{cell},v.wav"), root).tracks
    assert track.name == name


def test_a_name_column_wins_and_equal_names_get_their_row(root: Path) -> None:
    path = write_csv(root, "name,vocals_path", "Song,a.wav", "Song,b.wav", ",c/vocals.wav")
    assert [track.name for track in index.read(path, root).tracks] == ["Song (2)", "Song (3)", "c"]


def test_what_spreadsheets_add_does_not_matter(root: Path) -> None:
    path = write_csv(
        root,
        "name , mix_path,vocals_path,drums_path,genre,,",
        ",,,,,,",
        "One, One/mixture.wav,One/vocals.wav ,One/drums.wav,rock,,",
        "",
        "Two,Two/mixture.wav,Two/vocals.wav,Two/drums.wav,,,",
        encoding="utf-8-sig",
    )
    found = index.read(path, root)
    assert [(track.name, track.row) for track in found.tracks] == [("One", 3), ("Two", 5)]
    index.check(found, STEMS, {})


def test_a_byte_order_mark_is_no_part_of_the_first_column(root: Path) -> None:
    path = write_csv(root, "vocals_path,drums_path", "One/vocals.wav,One/drums.wav", encoding="utf-8-sig")
    assert index.read(path, root).columns == ["vocals", "drums"]


# What is written reads back.

names = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/") | st.just(" "),
    min_size=1,
    max_size=12,
).filter(lambda text: text == text.strip() and text not in (".", ".."))
cells = st.builds(
    lambda folder, name, stream, channel: Cell(Path("/root") / folder / f"{name}.wav", stream, channel),
    names,
    names,
    st.none() | st.integers(0, 99),
    st.none() | st.integers(0, 9),
)
durations = st.none() | st.floats(1e-6, 1e6)


@st.composite
def tracks(draw: st.DrawFn) -> list[Track]:
    stems = draw(st.lists(names, min_size=1, max_size=4, unique=True).filter(lambda found: "mix" not in found))
    has_mixture = draw(st.booleans())
    found = [
        Track(
            name,
            {stem: draw(cells) for stem in stems},
            draw(cells) if has_mixture else None,
            draw(durations),
        )
        for name in draw(st.lists(names, min_size=1, max_size=5, unique=True))
    ]
    files = [(track.mixture, *track.stems.values()) for track in found]
    return found if len(set(files)) == len(files) else found[:1]


@given(tracks())
def test_what_is_written_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, found: list[Track]) -> None:
    path = tmp_path_factory.mktemp("index") / "index.csv"
    root = Path("/root")
    index.write(Index("test", root, found), path)
    with mock.patch.object(Path, "is_dir", return_value=True):
        again = index.read(path, root)
    assert again.problems == []
    assert again.tracks == found


def test_paths_outside_the_root_are_written_absolute(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    found = Index("test", tmp_path / "root", [Track("One", {"vocals": Cell(tmp_path / "vocals.wav")})])
    index.write(found, tmp_path / "deep" / "index.csv")
    assert str(tmp_path / "vocals.wav") in (tmp_path / "deep" / "index.csv").read_text()
    assert index.read(tmp_path / "deep" / "index.csv", tmp_path / "root").tracks == found.tracks


# Which columns make up which stem.

FOUR = ["vocals", "drums", "bass", "other"]


@pytest.mark.parametrize(
    ("columns", "stems", "sums", "expected"),
    [
        (FOUR, FOUR, {}, {stem: (stem,) for stem in FOUR}),
        (FOUR, ["bass"], {}, {"bass": ("bass",)}),
        (
            FOUR,
            ["vocals", "accompaniment"],
            {"accompaniment": "rest"},
            {"vocals": ("vocals",), "accompaniment": ("drums", "bass", "other")},
        ),
        (
            ["vocals", "accompaniment"],
            ["vocals", "accompaniment"],
            {"accompaniment": "rest"},
            {"vocals": ("vocals",), "accompaniment": ("accompaniment",)},
        ),
        (
            FOUR,
            ["rhythm", "others"],
            {"rhythm": ["drums", "bass"], "others": "rest"},
            {"rhythm": ("drums", "bass"), "others": ("vocals", "other")},
        ),
        (
            ["vocals", "piano", "accompaniment"],
            ["vocals", "accompaniment"],
            {"accompaniment": "rest"},
            {"vocals": ("vocals",), "accompaniment": ("accompaniment",)},
        ),
        (FOUR, ["voice"], {"voice": "vocals"}, {"voice": ("vocals",)}),
    ],
)
def test_stems_are_columns_or_sums_of_them(columns, stems, sums, expected) -> None:
    found, problems = index.sources(columns, stems, sums)
    assert problems == []
    assert found == expected
    assert list(found) == list(stems)


@pytest.mark.parametrize(
    ("columns", "stems", "sums", "said"),
    [
        (
            FOUR,
            [*FOUR, "piano"],
            {},
            "no column 'piano_path', which the stem 'piano' needs (stems there: vocals, drums",
        ),
        (FOUR, ["rhythm"], {"rhythm": ["drums", "claps"]}, "no column 'claps_path'"),
        (
            ["vocals"],
            ["vocals", "accompaniment"],
            {"accompaniment": "rest"},
            "no column 'accompaniment_path'",
        ),
        ([], ["vocals"], {}, "(stems there: none)"),
    ],
)
def test_a_missing_column_is_named_with_what_is_there(columns, stems, sums, said: str) -> None:
    _, problems = index.sources(columns, stems, sums)
    assert len(problems) == 1
    assert said in problems[0]
    assert "Add the column, or train the stems that are there" in problems[0]


# Every bad input says where, what was found, and what to do.


def test_a_good_index_passes_and_gets_its_durations_measured(root: Path) -> None:
    found = index.read(write_csv(root, HEADER, row("One", "180"), row("Two")), root)
    checked = index.check(found, STEMS, {})
    assert [track.duration for track in checked.tracks] == [0.5, 0.5]
    assert [(track.name, track.stems, track.row) for track in checked.tracks] == [
        (track.name, track.stems, track.row) for track in found.tracks
    ]


def test_no_such_root(root: Path) -> None:
    path = write_csv(root, HEADER, row("One"))
    assert "absent: no such folder. Set data.root" in message(path, root / "absent")


def test_no_such_index(root: Path) -> None:
    assert "absent.csv: no such index CSV" in message(root / "absent.csv", root)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "empty. The first line names the columns"),
        (["", "a,b"], "empty. The first line names the columns"),
        ([HEADER], "no songs below the header. Add a row per song."),
        ([HEADER, "", ",,,"], "no songs below the header"),
        (["mix_path,duration", "a,1"], "no column with a stem (columns: mix_path, duration)"),
        (["vocals_path,vocals_path", "a,b"], "column 'vocals_path' is there twice"),
        (["mix_path;vocals_path", "a;b"], "cells are separated by ';'. Export it with commas"),
        (["mix_path\tvocals_path", "a\tb"], "cells are separated by '\\t'"),
        (['vocals_path,"drums_path', "a,b"], "not a CSV file"),
    ],
)
def test_a_file_that_is_no_index(lines: list[str], said: str, root: Path) -> None:
    path = write_csv(root, *lines)
    found = message(path, root)
    assert found.startswith(f"{path}: ")
    assert said in found


def test_a_file_that_is_no_text(root: Path) -> None:
    (root / "index.csv").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    assert "not a CSV file in UTF-8" in message(root / "index.csv", root)


def test_a_missing_column_for_a_stem(root: Path) -> None:
    path = write_csv(root, HEADER, row("One"))
    found = message(path, root, (*STEMS, "piano"))
    assert found.startswith(f"{path}: 1 problem\n")
    assert "no column 'piano_path', which the stem 'piano' needs (stems there: vocals, drums)" in found
    assert "stem_names=[vocals,drums]" in found


def test_a_missing_file(root: Path) -> None:
    (root / "Two/drums.wav").unlink()
    found = message(write_csv(root, HEADER, row("One"), row("Two")), root)
    assert "1 problem\n" in found
    assert f"row 3 (Two): {root / 'Two/drums.wav'}" in found


def test_a_wrong_root_is_one_problem_and_not_one_per_file(root: Path) -> None:
    (root / "music").mkdir()
    found = message(write_csv(root, HEADER, row("One"), row("Two")), root / "music")
    assert "1 problem\n" in found
    assert f"none of the 6 files is there; row 2 (One): {root}/music/One/mixture.wav. Set data.root" in found


@pytest.mark.parametrize(
    "cell", ["x" * 5000, "a\0b", f"One/vocals.wav#stream={'9' * 5000}", "One/vocals.wav#channel=9" * 9]
)
def test_a_cell_that_can_be_no_file_is_a_missing_file(cell: str, root: Path) -> None:
    """Too long a name, a NUL in it, a number with more digits than Python converts."""
    lines = ["vocals_path,drums_path", f'"{cell}","{cell}"']
    assert "none of the 1 files is there" in message(write_csv(root, *lines), root)
    found = message(write_csv(root, *lines, "One/vocals.wav,One/drums.wav"), root)
    assert "no such file" in found or "File name too long" in found


def test_an_index_that_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(root, HEADER, row("One"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert f"{path}: cannot be read (Permission denied)" in message(path, root)
    assert "no such index CSV" in message(root / ("x" * 5000), root)


def test_an_unneeded_file_is_not_looked_at(root: Path) -> None:
    (root / "Two/drums.wav").unlink()
    index.check(index.read(write_csv(root, HEADER, row("One"), row("Two")), root), ["vocals"], {})


def test_without_a_mixture_every_stem_is_looked_at(root: Path) -> None:
    (root / "One/drums.wav").unlink()
    path = write_csv(root, "vocals_path,drums_path", "One/vocals.wav,One/drums.wav")
    assert "drums.wav" in message(path, root, ("vocals",))


def test_duplicate_rows(root: Path) -> None:
    again = row("One").replace("One/drums.wav", "./One/drums.wav")
    found = message(write_csv(root, HEADER, row("One"), row("Two"), again), root)
    assert "row 4: the same files as row 2. Remove one of them." in found


@pytest.mark.parametrize("duration", ["3:05", "nan", "inf", "0", "-1"])
def test_a_bad_duration(duration: str, root: Path) -> None:
    found = message(write_csv(root, HEADER, row("One"), row("Two", duration)), root)
    assert "row 3: duration is " in found
    assert duration in found
    assert "leave it empty" in found


@pytest.mark.parametrize("line", ["One/mixture.wav,One/vocals.wav", row("One") + ",,"])
def test_a_row_of_another_length(line: str, root: Path) -> None:
    found = message(write_csv(root, HEADER, row("Two"), line), root)
    cells = line.count(",") + 1
    assert f"row 3: {cells} cells, the header has 4. Fill in what is missing, and quote" in found


def test_rows_that_are_all_wrong_do_not_make_columns_missing(root: Path) -> None:
    found = message(write_csv(root, HEADER, "a", "b"), root)
    assert "2 problems\n" in found
    assert "no column" not in found


def test_an_empty_cell_is_one_problem_of_its_row(root: Path) -> None:
    found = message(write_csv(root, HEADER, row("One"), "Two/mixture.wav,Two/vocals.wav,,"), root)
    assert "1 problem\n" in found
    assert "row 3: drums_path is empty. Fill it in." in found


@pytest.mark.parametrize("seconds", [0.35, 0.65])
def test_a_stem_of_another_length(seconds: float, root: Path, write_song) -> None:
    write_song(root / "Two", {"drums": None}, seconds=seconds)
    found = message(write_csv(root, HEADER, row("One"), row("Two")), root)
    assert "1 problem\n" in found
    assert f"row 3 (Two): Two/drums.wav lasts {seconds:.2f} s, Two/mixture.wav 0.50 s." in found
    assert "Export both with the same start and end." in found


@pytest.mark.parametrize("seconds", [0.45, 0.55])
def test_a_stem_of_almost_the_length_passes(seconds: float, root: Path, write_song) -> None:
    write_song(root / "One", {"drums": None}, seconds=seconds)
    index.check(index.read(write_csv(root, HEADER, row("One")), root), STEMS, {})


@pytest.mark.parametrize("wrong", ["mixture", "vocals", "bass"])
def test_the_file_that_differs_is_named_and_not_all_others(wrong: str, root: Path, write_song) -> None:
    write_song(root / "Two", {"bass": None})
    write_song(root / "Two", {wrong: None}, seconds=0.3)
    header = "mix_path,vocals_path,drums_path,bass_path" if wrong == "mixture" else "bass_path,vocals_path,drums_path"
    names = [name.removesuffix("_path").replace("mix", "mixture") for name in header.split(",")]
    path = write_csv(root, header, ",".join(f"Two/{name}.wav" for name in names))
    with pytest.raises(UserError) as caught:
        index.check(index.read(path, root), tuple(name for name in names if name != "mixture"), {})
    assert "1 problem\n" in str(caught.value)
    assert f"Two/{wrong}.wav lasts 0.30 s, Two/" in str(caught.value)


def test_lengths_are_compared_in_seconds_across_sample_rates(root: Path, write_song) -> None:
    write_song(root / "One", {"drums": None}, sample_rate=22050)
    index.check(index.read(write_csv(root, HEADER, row("One")), root), STEMS, {})


def test_a_file_that_is_no_audio(root: Path) -> None:
    (root / "Two/drums.wav").write_text("not audio")
    found = message(write_csv(root, HEADER, row("One"), row("Two")), root)
    assert "1 problem\n" in found
    assert "row 3 (Two): " in found
    assert "Two/drums.wav" in found


def test_a_truncated_file(root: Path) -> None:
    whole = (root / "Two/drums.wav").read_bytes()
    (root / "Two/drums.wav").write_bytes(whole[: len(whole) // 2])
    found = message(write_csv(root, HEADER, row("One"), row("Two")), root)
    assert "row 3 (Two): " in found
    assert "Two/drums.wav" in found


def test_a_channel_that_the_file_lacks(root: Path) -> None:
    path = write_csv(root, "vocals_path,drums_path", "One/mixture.wav#channel=1,One/mixture.wav#channel=2")
    assert "row 2 (One): One/mixture.wav#channel=2 names channel 2, the file has 2. Count from 0." in message(
        path, root
    )


def test_a_stream_that_the_file_lacks(shared_data: Path, tmp_path: Path) -> None:
    song = sorted((shared_data / "musdb18-7s/test").glob("*.stem.mp4"))[0]
    path = write_csv(tmp_path, "vocals_path,drums_path", f"{song}#stream=4,{song}#stream=5")
    found = message(path, tmp_path)
    assert "1 problem\n" in found
    assert "row 2 (" in found


def test_all_problems_come_in_one_message_with_their_rows(root: Path, write_song) -> None:
    write_song(root / "Three", SONG, seconds=0.8)
    write_song(root / "Three", {"vocals": None})
    (root / "Two/mixture.wav").unlink()
    path = write_csv(
        root,
        HEADER,
        row("One", "soon"),
        row("Two"),
        row("Three"),
        row("One"),
        "One/mixture.wav",
        "Four/mixture.wav,,Four/drums.wav,",
    )
    found = message(path, root, (*STEMS, "piano"))
    first, *lines = found.split("\n")
    assert first == f"{path}: {len(lines)} problems"
    assert len(lines) == 9
    said = " ".join(lines)
    for part in (
        "no column 'piano_path'",
        "row 2: duration is 'soon'",
        "row 3 (Two): ",
        "row 4 (Three): Three/vocals.wav lasts 0.50 s, Three/mixture.wav 0.80 s.",
        "row 5: the same files as row 2",
        "row 6: 1 cells",
        "row 7: vocals_path is empty",
        "row 7 (Four): ",
    ):
        assert part in said


# Ten thousand songs.


class CountedLookups(dict):
    """Stems of a track that count how often anything looks into them."""

    def __init__(self, stems: dict[str, Cell]) -> None:
        super().__init__(stems)
        self.lookups = 0

    def __getitem__(self, stem: str) -> Cell:
        self.lookups += 1
        return super().__getitem__(stem)

    def __iter__(self):
        self.lookups += 1
        return super().__iter__()

    def __contains__(self, stem: object) -> bool:
        self.lookups += 1
        return super().__contains__(stem)

    def values(self):
        self.lookups += 1
        return super().values()

    def items(self):
        self.lookups += 1
        return super().items()


def test_each_track_is_looked_at_a_few_times_however_many_there_are(tmp_path: Path) -> None:
    def lookups(songs: int) -> int:
        stems = [CountedLookups({stem: Cell(Path(f"{song}/{stem}.wav")) for stem in STEMS}) for song in range(songs)]
        found = Index("test", Path(), [Track(str(song), cells) for song, cells in enumerate(stems)])
        index.write(found, tmp_path / "index.csv")
        with (
            mock.patch.object(os.path, "exists", return_value=True),
            mock.patch.object(audio, "probe", return_value=audio.Info(44100, 44100, 2)),
        ):
            index.check(found, STEMS, {})
        return sum(cells.lookups for cells in stems)

    assert lookups(400) == 10 * lookups(40)


def test_ten_thousand_rows_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "index.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER.split(","), *(row(f"song {n}", "180").split(",") for n in range(10_000))])
    found = index.read(path, tmp_path)
    assert len(found.tracks) == 10_000
    assert found.problems == []
    assert found.tracks[-1].name == "song 9999"
    assert found.columns == list(STEMS)


def test_a_file_is_opened_once_for_all_its_channels(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.zeros((100, 2)), 16000)
    path = write_csv(tmp_path, "vocals_path,drums_path", "clip.wav#channel=1,clip.wav#channel=0")
    with mock.patch.object(audio, "probe", wraps=audio.probe) as probe:
        index.check(index.read(path, tmp_path), STEMS, {})
    probe.assert_called_once()
