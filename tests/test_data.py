"""The data module: what is wrong is said before training, what is served is what was asked for."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from stemwise import audio, index, sharing, signals
from stemwise.augment import Gain, Remix, TimeStretch
from stemwise.cache import fingerprints, store
from stemwise.data import StemData
from stemwise.errors import UserError
from stemwise.index import Cell, Index
from stemwise.spectrogram import Spectrogram

RATE = 8000
SETTINGS = Spectrogram(sample_rate=RATE, channels=2, n_fft=64, hop=16, bins=24, frames=30)
STEMS = ("vocals", "drums", "bass", "other")
REST = {"accompaniment": "rest"}

Make = Callable[..., StemData]


def write_csv(path: Path, songs: list[str], columns: tuple[str, ...] = ("mix", *STEMS)) -> Path:
    lines = [",".join(f"{column}_path" for column in columns)]
    lines += [",".join(f"{song}/{column}.wav" for column in columns) for song in songs]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven songs whose mixture is the sum of four stems, and the CSVs of two splits."""
    for song in range(7):
        folder = tmp_path / f"song{song}"
        folder.mkdir()
        stems = np.random.default_rng(song).uniform(-0.2, 0.2, (4, 1600 + 100 * song, 2))
        for name, wave in zip(("mix", *STEMS), (stems.sum(0), *stems), strict=True):
            soundfile.write(folder / f"{name}.wav", wave, RATE, subtype="FLOAT")
    write_csv(tmp_path / "train.csv", [f"song{song}" for song in range(5)])
    write_csv(tmp_path / "valid.csv", ["song5", "song6"])
    return tmp_path


@pytest.fixture
def make(root: Path) -> Make:
    def make(stems: tuple[str, ...] = STEMS, **changes: Any) -> StemData:
        chosen = {"train": root / "train.csv", "valid": root / "valid.csv", "cache": root / "cache", "num_workers": 0}
        return StemData(stems, SETTINGS, **{**chosen, **changes})

    return make


def started(data: StemData, rank: int = 0, ranks: int = 1) -> StemData:
    """As Lightning starts it."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, fit_loop=loop)  # type: ignore[assignment]
    if not rank:
        data.prepare_data()
    data.setup("fit")
    return data


def spoil(path: Path) -> None:
    """Breaks a file such that only who decodes it finds out."""
    wave, rate = soundfile.read(path)
    wave[800] = np.nan
    soundfile.write(path, wave, rate, subtype="FLOAT")


def epoch(data: StemData, number: int = 0) -> list[dict[str, Any]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return served(data, loader)


def served(data: StemData, loader: Any) -> list[dict[str, Any]]:
    """What the training module sees of a loader."""
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


# Settings.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size=0 is not a whole number from 1 on"),
        ({"batch_size": 2.5}, r"data\.batch_size=2\.5 is not a whole number"),
        ({"batch_size": None}, r"data\.batch_size=None is not a whole number"),
        ({"examples_per_song": 0}, r"data\.examples_per_song=0 is not a whole number from 1 on"),
        ({"num_workers": -1}, r"data\.num_workers=-1 is not a whole number from 0 on"),
        ({"seed": -1}, r"data\.seed=-1 is not a whole number from 0 on"),
        ({"on_error": "ignore"}, r"data\.on_error='ignore' is not one of raise, skip"),
        ({"on_error": "skip", "cache": None}, r"data\.on_error=skip needs the cache.*Set data\.cache"),
        ({"storage": "float"}, r"data\.storage='float' is not one of half, complex, decibel"),
        (
            {"augment": {"mix": Remix(), "gain": Gain(), "time": TimeStretch()}},
            r"augment: Remix, Gain changes.*data\.storage=half has none\. Set data\.storage=complex",
        ),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_augmentations_find_what_they_need(make: Make) -> None:
    make(augment={"time": TimeStretch()}, storage="decibel")
    make(augment={"gain": Gain()}, storage="complex", cache=None)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_that_nobody_gave(split: str, make: Make) -> None:
    with pytest.raises(UserError, match=rf"data\.{split}: no index CSV is given\. Set data\.{split}=PATH\.csv"):
        make(**{split: None}).catalogue.songs(split)


def test_songs_to_train_with_are_there_at_other_speeds(make: Make, root: Path) -> None:
    """Shorter and higher, in the cache as decoded anew; what a training is judged by stays as it is."""
    data = make(speeds=[80, 125], storage="half")
    data.prepare_data()
    songs = data.catalogue.songs("train")
    assert [song.name for song in songs[::5]] == ["song0", "song0 at 80 %", "song0 at 125 %"]
    assert [song.seconds for song in songs[::5]] == pytest.approx([0.2, 0.25, 0.16])
    assert len(data.catalogue.songs("valid")) == 2
    direct = make(speeds=[80, 125], cache=None)
    for signal in (songs[10].mixture, *songs[10].stems):
        assert data.source.frame_count(signal) == direct.source.frame_count(signal)
        cached, decoded = (source.crop(signal, 0, 100) for source in (data.source, direct.source))
        torch.testing.assert_close(cached, decoded, rtol=1e-3, atol=1e-3)
    # Resampled as a tape that runs faster: 5 samples become 4.
    waveform = audio.read(root / "song0" / "vocals.wav", sample_rate=RATE, channels=2)
    faster = signals.read(songs[10].stems[0], SETTINGS)
    torch.testing.assert_close(faster, torchaudio.functional.resample(waveform, 5, 4))
    later = signals.read(songs[10].stems[0], SETTINGS, start=301, frames=50)
    torch.testing.assert_close(later, faster[:, 301:351])


def test_examples_may_be_shorter_than_a_window(make: Make) -> None:
    """From the same entries; whole songs are as they are."""
    data, whole = make(frames=12), make()
    assert data.entries() == whole.entries()
    data.prepare_data()
    for batch in (*epoch(data), *served(data, data.val_dataloader()[0])):
        assert batch["mixture"].shape[1:] == (2, 12, 24)
        assert batch["stems"].shape[1:] == (4, 2, 12, 24)
    (first, *_), (other, *_) = (served(one, one.val_dataloader()[1]) for one in (data, whole))
    assert torch.equal(first["stems"], other["stems"])
    with pytest.raises(UserError, match=r"data\.frames: spectrogram\.frames=0 is not a whole number"):
        make(frames=0)


def test_a_speed_does_not_change_the_entries_of_songs_as_they_are(make: Make) -> None:
    plain, with_speeds = make().entries(), make(speeds=[90]).entries()
    assert plain < with_speeds
    assert len(with_speeds) - len(plain) == 5 * 5


@pytest.mark.parametrize("speeds", [[100], [90, 90], [24], [401], [0.9], [True]])
def test_speeds_are_percent(speeds: list[Any], make: Make) -> None:
    with pytest.raises(UserError, match=r"data.speeds=.*not a whole number of percent"):
        make(speeds=speeds)


def test_a_split_that_is_empty(make: Make, root: Path) -> None:
    found = {split: Index("a folder", root, []) for split in ("train", "valid", "test")}
    with pytest.raises(UserError, match=r"a folder: the split 'valid' is empty\. Add songs, or set data\.valid"):
        make(valid=None, dataset=lambda _: found).prepare_data()


def test_a_csv_goes_before_the_data_set(make: Make, root: Path) -> None:
    asked = []

    def find(where: Path | None) -> dict[str, Index]:
        asked.append(where)
        return {split: index.read(root / "valid.csv", root) for split in ("train", "valid", "test")}

    data = make(train=root / "train.csv", valid=None, root=root, dataset=find)
    assert [song.name for song in data.catalogue.songs("train")] == [f"song{song}" for song in range(5)]
    assert [song.name for song in data.catalogue.songs("valid")] == ["song5", "song6"]
    assert [song.name for song in data.catalogue.songs("test")] == ["song5", "song6"]
    assert asked == [root]  # once, and not before it is needed


# Songs that are broken, or short.


def test_all_broken_songs_are_named_at_once(make: Make, root: Path) -> None:
    for name in ("song1/drums.wav", "song3/mix.wav", "song3/vocals.wav", "song6/bass.wav"):
        spoil(root / name)
    with pytest.raises(UserError) as caught:
        make().prepare_data()
    message = str(caught.value)
    assert "data.on_error=skip leaves them out): 4 problems" in message
    assert f"train: song1: {root}/song1/drums.wav: NaN or infinite samples at 0.10 s" in message
    assert f"train: song3: {root}/song3/mix.wav: NaN" in message
    assert f"train: song3: {root}/song3/vocals.wav: NaN" in message
    assert f"valid: song6: {root}/song6/bass.wav: NaN" in message


def test_a_stem_that_breaks_its_sums_is_named_once(make: Make, root: Path) -> None:
    spoil(root / "song1/drums.wav")
    write_csv(root / "train.csv", ["song0", "song1"], STEMS)  # the mixture is the sum
    with pytest.raises(UserError, match=": 1 problem\n"):
        make(("drums", "accompaniment"), sums=REST).prepare_data()


def test_broken_songs_are_left_out_counted_and_named(make: Make, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("song1/drums.wav", "song3/mix.wav", "song6/bass.wav"):
        spoil(root / name)
    data = started(make(on_error="skip", batch_size=3, examples_per_song=2))
    said = "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert f"train: song1: {root}/song1/drums.wav: NaN" in said  # why
    assert "train: 2 of 5 songs left out, broken: song1, song3" in said
    assert "valid: 1 of 2 songs left out, broken: song6" in said
    shown = [name for batch in epoch(data) for name in batch["name"]]
    assert sorted(shown) == ["song0"] * 2 + ["song2"] * 2 + ["song4"] * 2
    crops, wholes = data.val_dataloader()
    assert [name for batch in crops for name in batch["name"]] == ["song5"]
    assert [song["name"] for song in wholes] == ["song5"]


def test_a_broken_file_that_is_not_needed_does_not_matter(make: Make, root: Path) -> None:
    spoil(root / "song1/drums.wav")
    spoil(root / "song1/mix.wav")
    assert len(epoch(started(make(("vocals",), train=write_csv(root / "v.csv", ["song1"], ("vocals", "bass")))))) == 1
    # With phases, a complete mixture is made of the stems.
    spoil(root / "song0/mix.wav")
    data = make(storage="complex", train=write_csv(root / "t.csv", ["song0"]))
    assert len(epoch(started(data))) == 1


def test_no_song_is_left(make: Make, root: Path) -> None:
    for song in (5, 6):
        spoil(root / f"song{song}/mix.wav")
    with pytest.raises(UserError, match=r"data\.valid: no song is left that can be decoded"):
        started(make(on_error="skip"))


def test_short_songs_are_said_once(make: Make, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for song in (0, 5):
        for name in ("mix", *STEMS):
            soundfile.write(root / f"song{song}/{name}.wav", np.full((400, 2), 0.1), RATE)
    data = started(make())
    epoch(data)
    said = [record.getMessage() for record in caplog.records if "shorter" in record.getMessage()]
    assert said == ["2 songs are shorter than an example (0.06 s) and padded with silence: song0, song5"]


# Which signals a stem is.


@pytest.mark.parametrize("mixture", [True, False], ids=["mixture", "no mixture"])
@pytest.mark.parametrize(
    ("stems", "sums", "parts", "complete"),
    [
        (STEMS, {}, [["vocals"], ["drums"], ["bass"], ["other"]], True),
        (("vocals",), {}, [["vocals"]], False),
        (("vocals", "accompaniment"), REST, [["vocals"], ["drums", "bass", "other"]], True),
        (("accompaniment", "vocals"), REST, [["drums", "bass", "other"], ["vocals"]], True),
        (("drums", "bass"), {}, [["drums"], ["bass"]], False),
        (("rhythm", "vocals"), {"rhythm": ["drums", "bass"]}, [["drums", "bass"], ["vocals"]], False),
        (("rhythm", "rest"), {"rhythm": ["drums", "bass"], "rest": "rest"}, [STEMS[1:3], ("vocals", "other")], True),
        (("all",), {"all": "rest"}, [STEMS], None),
        # A stem twice: the stems add up to more than the mixture.
        (("vocals", "all"), {"all": list(STEMS)}, [["vocals"], STEMS], False),
    ],
)
def test_stems_of_a_four_stem_index(
    mixture: bool,
    stems: tuple[str, ...],
    sums: dict[str, Any],
    parts: list[list[str]],
    complete: bool | None,
    make: Make,
    root: Path,
) -> None:
    columns = ("mix", *STEMS) if mixture else STEMS
    data = make(stems, sums=sums, train=write_csv(root / "own.csv", ["song2", "song4"], columns))
    for song in data.catalogue.songs("train"):

        def cells(names: Any, song: str = song.name) -> tuple[Cell, ...]:
            return tuple(Cell(root / song / f"{name}.wav") for name in names)

        assert song.stems == tuple(cells(names) for names in parts)
        assert song.mixture == cells(["mix"] if mixture else STEMS)
    assert [song.seconds for song in data.catalogue.songs("train")] == [1800 / RATE, 2000 / RATE]
    # One stem is never thought to be all of a mixture that has a file of its own.
    assert data.catalogue.complete == (complete if complete is not None else not mixture)


@pytest.mark.parametrize(("columns", "complete"), [(("mix", "vocals"), False), (("vocals",), True)])
def test_complete_with_one_column(columns: tuple[str, ...], complete: bool, make: Make, root: Path) -> None:
    assert make(("vocals",), train=write_csv(root / "own.csv", ["song2"], columns)).catalogue.complete == complete


# What is served.


@pytest.mark.parametrize("storage", ["half", "complex", "decibel"])
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("stems", [STEMS, ("vocals",)], ids=["4 stems", "1 stem"])
def test_batches(storage: str, cached: bool, stems: tuple[str, ...], make: Make, root: Path) -> None:
    def batches(**changes: Any) -> list[dict[str, Any]]:
        return epoch(started(make(stems, batch_size=2, **changes)))

    found = batches(storage=storage, **({} if cached else {"cache": None}))
    assert (root / "cache").exists() == cached
    assert len(found) == 3
    # Every storage, with the cache or without, gives the same up to its own error.
    exact = batches(storage="half", cache=None)
    for batch, reference in zip(found, exact, strict=True):
        assert batch["mixture"].shape == (2, 2, 30, 24)
        assert batch["stems"].shape == (2, len(stems), 2, 30, 24)
        assert batch["mixture"].dtype == batch["stems"].dtype == torch.float32
        assert batch["name"] == reference["name"]
        for key in ("mixture", "stems"):
            error = (batch[key] - reference[key]).abs()
            assert (error <= (0.025 if storage == "decibel" and cached else 2e-3) * reference[key] + 5e-3).all()


def test_validation_is_the_same_each_time_and_shared_among_ranks(make: Make) -> None:
    data = started(make(batch_size=1))
    crops, wholes = (served(data, loader) for loader in data.val_dataloader())
    again = served(data, data.val_dataloader()[0])
    assert all(torch.equal(one["stems"], two["stems"]) for one, two in zip(crops, again, strict=True))
    assert [song["mixture"].shape for song in wholes] == [(2, 2100), (2, 2200)]
    names = []
    for rank in range(2):
        share = started(make(batch_size=1), rank, 2).val_dataloader()
        names.append([[name for batch in share[0] for name in batch["name"]], [song["name"] for song in share[1]]])
    assert names == [[["song5"], ["song5"]], [["song6"], ["song6"]]]


@pytest.mark.parametrize("storage", ["half", "complex", "decibel"])
def test_validation_by_several_workers(storage: str, make: Make) -> None:
    """More batches than one, which are not all of the first worker."""
    alone, several = (started(make(batch_size=1, storage=storage, num_workers=workers)) for workers in (0, 2))
    expected, found = (served(data, data.val_dataloader()[0]) for data in (alone, several))
    assert len(expected) == len(found) == 2
    for one, two in zip(expected, found, strict=True):
        assert two["name"] == one["name"]
        for part in ("mixture", "stems"):
            torch.testing.assert_close(two[part], one[part], rtol=0, atol=0)


def test_training_may_follow_a_validation(make: Make) -> None:
    data = started(make(batch_size=1))
    with torch.inference_mode():
        served(data, data.val_dataloader()[0])
    batch = epoch(data)[0]
    weight = torch.ones(1, requires_grad=True)
    (weight * batch["mixture"]).sum().backward()
    torch.testing.assert_close(weight.grad, batch["mixture"].sum().reshape(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_process_and_two_ranks_see_the_same_steps(workers: int, make: Make) -> None:
    chosen = {"storage": "complex", "augment": {"mix": Remix(), "gain": Gain()}, "examples_per_song": 2}
    alone = started(make(batch_size=4, num_workers=workers, **chosen))
    pair = [started(make(batch_size=2, num_workers=workers, **chosen), rank, 2) for rank in range(2)]
    steps = []
    for number in (0, 1):
        shares = [epoch(data, number) for data in pair]
        whole = epoch(alone, number)
        assert [len(share) for share in shares] == [len(whole)] * 2 == [3, 3]
        for step, batch in enumerate(whole):
            for row in range(4):  # rank 0 has the even places
                share = shares[row % 2][step]
                assert batch["name"][row] == share["name"][row // 2]
                for key in ("mixture", "stems"):
                    assert torch.equal(batch[key][row], share[key][row // 2])
        steps.append(torch.cat([batch["mixture"] for batch in whole]))
    assert not torch.equal(*steps)


def test_the_indexes_that_were_used_are_written(make: Make, root: Path) -> None:
    data = make(("vocals",))
    data.prepare_data()
    data.catalogue.write(root / "run")
    assert sorted(path.name for path in (root / "run").iterdir()) == ["train.csv", "valid.csv"]
    for split in ("train", "valid"):
        used, back = data.catalogue.checked(split), index.read(root / f"run/{split}.csv", root)
        assert back.tracks == used.tracks
        assert back.problems == []
        assert all(track.duration for track in back.tracks)
    again = make(("vocals",), root=root, train=root / "run/train.csv", valid=root / "run/valid.csv")
    assert again.catalogue.songs("train") == data.catalogue.songs("train")


# A cache that is shared, damaged or not to be written.


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_cache_that_is_damaged_meanwhile(workers: int, make: Make, root: Path) -> None:
    chosen = {"batch_size": 1, "num_workers": workers, "examples_per_song": 8}
    data = started(make(**chosen))
    expected, found = epoch(data), []
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)  # type: ignore[attr-defined]
    for number, batch in enumerate(loader):
        found.append(data.on_after_batch_transfer(batch, 0))
        entries = sorted((root / "cache").glob("*/*.stft"))
        if number == 5:
            for entry in entries[::2]:
                entry.write_bytes(entry.read_bytes()[:-100])
        if number == 20:
            (root / "cache").rename(root / "gone")  # at once: workers are about to mend what was damaged
    assert len(found) == len(expected) == 40
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one["stems"], two["stems"])
        assert torch.equal(one["mixture"], two["mixture"])


def test_a_rank_that_finds_no_entries_computes_those_that_it_reads(make: Make, root: Path) -> None:
    """As on a machine of its own with a folder of its own, where another has built."""
    expected = epoch(started(make()))
    shutil.rmtree(root / "cache")
    store.forget_files()
    found = epoch(started(make(), rank=1, ranks=2)) + epoch(started(make(), rank=0, ranks=2))
    assert {name for batch in found for name in batch["name"]} == {name for batch in expected for name in batch["name"]}


def test_the_cache_is_built_in_shares(make: Make, root: Path) -> None:
    assert [make().build_cache(part, 3)[0] for part in (1, 0, 2)] == [12, 23, 35]  # 7 songs of 5 signals
    whole = {path.name for path in (root / "cache").glob("*/*.stft")}
    shutil.rmtree(root / "cache")
    started(make())
    assert {path.name for path in (root / "cache").glob("*/*.stft")} == whole


# Copies of a shared cache on the node's own disk.


def started_on_a_node(data: StemData, rank: int = 0, ranks: int = 1) -> StemData:
    """All ranks are on one node, and this one has looked at nothing yet, as it is a process of its own."""
    if rank:
        store.forget_files()
    data.trainer = SimpleNamespace(global_rank=rank, local_rank=rank, world_size=ranks)  # type: ignore[assignment]
    if not rank:
        data.prepare_data()
    data.setup("fit")
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    data.trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))  # type: ignore[union-attr]
    return data


def part_of(cache: Path) -> int:
    """A limit that holds about half of it."""
    return sum(path.stat().st_size for path in cache.glob("*/*.stft")) // 2


@pytest.mark.parametrize("storage", ["half", "complex"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_with_local_copies_are_those_without(
    storage: str, workers: int, make: Make, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {"storage": storage, "batch_size": 2, "examples_per_song": 4, "num_workers": workers}
    expected = epoch(started(make(**chosen)))
    limit = part_of(root / "cache")
    data = started_on_a_node(make(**chosen, local_cache=root / "local", local_cache_limit=limit))
    for number in range(2):
        found = epoch(data)
        assert len(found) == len(expected)
        for one, two in zip(expected, found, strict=True):
            assert torch.equal(one["stems"], two["stems"])
            assert torch.equal(one["mixture"], two["mixture"])
        if number == 0:
            first = {path: path.stat().st_ino for path in (root / "local").glob("*/*.stft")}
    copies = {path: path.stat().st_ino for path in (root / "local").glob("*/*")}
    assert copies == first
    assert limit / 2 < sum(path.stat().st_size for path in copies) <= limit
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("limited", [True, False])
def test_ranks_of_a_node_choose_the_same_without_a_word(
    limited: bool, make: Make, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    started(make())
    key = {"local_cache": root / "local", "local_cache_limit": part_of(root / "cache") if limited else None}
    ranks = [started_on_a_node(make(batch_size=1, **key), rank, 3) for rank in range(3)]
    chosen = [data.source.copies.chosen for data in ranks]  # type: ignore[union-attr]
    assert chosen[0] == chosen[1] == chosen[2]
    assert caplog.text.count("Local cache ") == 1  # one of them makes room
    assert len(chosen[0]) == 35 or limited
    # Songs to learn from before those to validate with, and a song's signals together.
    songs = ranks[0].catalogue.songs("train")
    whole = [all(signal in chosen[0] for signal in (song.mixture, *song.stems)) for song in songs]
    assert whole == sorted(whole, reverse=True)
    assert any(whole)
    for data in ranks[::-1]:
        epoch(data)
    copies = list((root / "local").glob("*/*.stft"))
    assert not limited or sum(path.stat().st_size for path in copies) <= key["local_cache_limit"]
    assert len(copies) == len(chosen[0] & {s for song in songs for s in (song.mixture, *song.stems)})


def test_only_the_first_of_several_ranks_looks_at_the_files(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others take over lengths and fingerprints, and so find the entries of the same cache."""
    started(make())
    met = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: met)
    first = started_on_a_node(make(batch_size=1), 0, 2)
    store.forget_files()
    monkeypatch.setattr(audio, "probe", None)
    monkeypatch.setattr(fingerprints, "_local_fingerprint", None)
    second = started_on_a_node(make(batch_size=1), 1, 2)
    for split in ("train", "valid"):
        assert second.catalogue.songs(split) == first.catalogue.songs(split)
    assert second.entries() == first.entries()
    (root / "train.csv").write_text("".join((root / "train.csv").read_text().splitlines(keepends=True)[:-1]))
    monkeypatch.setattr(sharing, "_asked", Counter())  # a process of its own
    with pytest.raises(UserError, match=r"train.csv: has 4 songs here and 5 where the first rank reads it"):
        started_on_a_node(make(batch_size=1), 1, 2)


def test_training_goes_on_when_the_shared_folder_goes_and_all_is_local(make: Make, root: Path) -> None:
    data = started_on_a_node(make(batch_size=1, num_workers=2, local_cache=root / "local"))
    expected = epoch(data) + served(data, data.val_dataloader()[0])
    (root / "cache").rename(root / "gone")
    found = epoch(data) + served(data, data.val_dataloader()[0])
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one["stems"], two["stems"])
    assert not (root / "cache").exists()


@pytest.mark.parametrize("same", ["cache", "link", "elsewhere/../cache"])
def test_a_cache_is_no_copy_of_itself(same: str, make: Make, root: Path) -> None:
    (root / "link").symlink_to(root / "cache")
    for _ in range(2):  # before the folder is there, and then
        with pytest.raises(
            UserError, match=r"data\.local_cache=.* is data\.cache itself.*a folder on a disk of the node"
        ):
            make(local_cache=root / same)
        (root / "cache").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cache": None, "local_cache": "local"},
            r"data\.local_cache=local: there is no cache to copy\. Set data\.cache",
        ),
        ({"local_cache_limit": "much"}, r"data\.local_cache_limit='much' is not a size\. Write 50G"),
        ({"verify": 1}, r"data\.verify=1 is not true or false"),
        ({"cache_limit": "much"}, r"data\.cache_limit='much' is not a size\. Write 50G"),
        ({"cache_limit": 0}, r"data\.cache_limit=0 is not a size"),
    ],
)
def test_what_is_said_of_the_cache_is_checked(changes: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)
