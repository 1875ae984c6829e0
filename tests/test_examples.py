"""Examples: the order of an epoch, crops that any worker makes alike, and mixtures that are the sum of their rows.

The songs tell what they are: each stem of each song is a tone in a bin of its own, whose level is the time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from stemwise import examples, signals, spectrogram
from stemwise.augment import ChannelSwap, Gain, Mixup, PitchShift, Polarity, Remix, TimeStretch
from stemwise.cache import storage
from stemwise.cache.store import Cache, Direct, Source
from stemwise.examples import EveryNth, FixedCrops, Order, Place, RandomCrops, Song, WholeSongs
from stemwise.index import Cell
from stemwise.sharing import Pool
from stemwise.spectrogram import Spectrogram

SETTINGS = Spectrogram(sample_rate=8000, channels=2, n_fft=256, hop=64, bins=100, frames=20)
STEMS = ("vocals", "drums", "bass", "other")
LENGTHS = (2000, 2500, 2300)  # samples
FRAMES = [SETTINGS.frame_count(length) for length in LENGTHS]
SLOPE = 1 / 16000  # level per sample


def tone_bin(stem: int, song: int) -> int:
    return 5 + 8 * (stem * len(LENGTHS) + song)


def tone(stem: int, song: int) -> np.ndarray:
    """Stereo (N, 2); left is the louder side."""
    time = np.arange(LENGTHS[song])
    wave = SLOPE * time * np.cos(2 * np.pi * tone_bin(stem, song) / SETTINGS.n_fft * time)
    return np.stack([wave, 0.5 * wave], axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    for song, _ in enumerate(LENGTHS):
        waves = [tone(stem, song) for stem in range(4)]
        for name, wave in zip(("mixture", *STEMS), (sum(waves), *waves), strict=True):
            soundfile.write(folder / f"{song}-{name}.wav", wave, SETTINGS.sample_rate, subtype="FLOAT")
    soundfile.write(folder / "short.wav", tone(0, 0)[:500], SETTINGS.sample_rate, subtype="FLOAT")
    return folder


def songs_in(folder: Path, stems: Sequence[str] = STEMS) -> list[Song]:
    def cell(song: int, name: str) -> tuple[Cell, ...]:
        return (Cell(folder / f"{song}-{name}.wav"),)

    return [
        Song(f"song {song}", cell(song, "mixture"), tuple(cell(song, stem) for stem in stems), length / 8000)
        for song, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def sources(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    made: dict[str, Source] = {"direct": Direct(SETTINGS, has_phase=True)}
    lengths = {signal: song.seconds for song in songs_in(folder) for signal in (song.mixture, *song.stems)}
    lengths[(Cell(folder / "short.wav"),)] = 500 / 8000
    for kind in ("half", "complex"):
        made[kind] = Cache(tmp_path_factory.mktemp("cache"), SETTINGS, storage.by_name(kind))
        assert made[kind].build(lengths, workers=0) == {}
    return made


def places(count: int, epoch: int = 0) -> Iterator[Place]:
    """Every song in turn."""
    return (Place(epoch, position, position % len(LENGTHS)) for position in range(count))


def start_of(magnitudes: Tensor, stem: int, song: int) -> float:
    """The first frame of a crop (C, T, F) at frame `start`, as the level of a tone in its middle tells."""
    middle = SETTINGS.frames // 2
    level = magnitudes[0, middle, tone_bin(stem, song)] / (SETTINGS.n_fft / 4)
    sample = float(level) / SLOPE + SETTINGS.n_fft / 2
    return sample / SETTINGS.hop - middle


def songs_heard(magnitudes: Tensor, stem: int) -> set[int]:
    """Songs whose stem number `stem` is in these magnitudes (C, T, F)."""
    middle = magnitudes[:, SETTINGS.frames // 2].amax(0)  # away from the end, whose click is in every bin
    return {song for song in range(len(LENGTHS)) if middle[tone_bin(stem, song)] > 0.3}


def as_is(batch: Any) -> Any:
    """The data sets make whole batches."""
    return batch


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return torch.equal(one["mixture"], other["mixture"]) and torch.equal(one["stems"], other["stems"])


# The order of an epoch.


@pytest.mark.parametrize(("count", "per_song", "multiple"), [(7, 1, 4), (7, 3, 4), (3, 1, 16), (8, 2, 4), (1, 1, 1)])
def test_an_epoch_shows_each_song_alike_and_fills_its_last_batch(count: int, per_song: int, multiple: int) -> None:
    order = Order(count, per_song, multiple, seed=0)
    found = list(order)
    assert len(found) == len(order)
    assert len(found) % multiple == 0
    assert count * per_song <= len(found) < count * per_song + multiple
    assert [place.position for place in found] == list(range(len(found)))
    shown = [place.song for place in found]
    for begin in range(0, len(shown), count):
        a_round = shown[begin : begin + count]
        assert len(set(a_round)) == len(a_round)  # nobody twice before everybody once
    assert all(shown[: count * per_song].count(song) == per_song for song in range(count))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_a_step_has_the_same_places_for_any_number_of_ranks(ranks: int) -> None:
    alone = list(Order(7, 5, 12, seed=3))
    shares = [list(Order(7, 5, 12, seed=3, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(Order(7, 5, 12, seed=3, rank=0, ranks=ranks))}
    batch = 12 // ranks
    for step in range(len(alone) // 12):
        union = [place for share in shares for place in share[step * batch : (step + 1) * batch]]
        assert sorted(union, key=lambda place: place.position) == alone[step * 12 : (step + 1) * 12]


def test_an_order_is_that_of_its_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        made = Order(30, 2, 4, seed)
        made.set_epoch(epoch)
        assert {place.epoch for place in made} == {epoch}
        return [place.song for place in made]

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert len({tuple(shown) for shown in orders}) == 4
    assert order(1, 1) == orders[3]
    assert orders[0][:30] != orders[0][30:]  # each round anew


def test_every_nth_shares_without_doubles() -> None:
    for count in (0, 1, 5, 12):
        for ranks in (1, 2, 5):
            shares = [list(EveryNth(count, rank, ranks)) for rank in range(ranks)]
            assert [len(share) for share in shares] == [len(EveryNth(count, rank, ranks)) for rank in range(ranks)]
            assert sorted(place for share in shares for place in share) == list(range(count))


# Random crops.


@pytest.mark.parametrize("kind", ["half", "complex"])
def test_an_example_is_the_same_whoever_makes_it_and_when(kind: str, folder: Path, sources: dict[str, Source]) -> None:
    on_rows = [Remix(0.5), Gain(), Polarity(), ChannelSwap()] if kind == "complex" else []
    crops = RandomCrops(songs_in(folder), sources[kind], [*on_rows, TimeStretch(), PitchShift()], True, seed=1)

    def batches(workers: int) -> list[dict[str, Any]]:
        order = Order(3, 4, 4, seed=1)
        order.set_epoch(2)
        torch.manual_seed(workers)  # what else is drawn in this process must not matter
        np.random.seed(workers)  # noqa: NPY002
        loader = DataLoader(crops, batch_size=4, sampler=order, num_workers=workers, collate_fn=as_is)
        return [examples.unpacked(batch, sources[kind], Pool(0)) for batch in loader]

    first, *others = [batches(workers) for workers in (0, 1, 2)]
    assert len(first) == 3
    for other in others:
        assert all(same(one, two) for one, two in zip(first, other, strict=True))
    order = Order(3, 4, 4, seed=1)
    order.set_epoch(2)
    for place in reversed(list(order)):
        made, batch = crops[place], first[place.position // 4]
        row = place.position % 4
        assert same(made, {"mixture": batch["mixture"][row], "stems": batch["stems"][row]})
        assert made["name"] == batch["name"][row] == f"song {place.song}"


def test_examples_differ_by_position_epoch_and_seed(folder: Path, sources: dict[str, Source]) -> None:
    def example(seed: int, epoch: int, position: int) -> dict[str, Any]:
        return RandomCrops(songs_in(folder), sources["complex"], [Gain()], True, seed)[Place(epoch, position, 0)]

    made = [example(*key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 5, 9))]
    assert not any(same(made[i], made[j]) for i in range(5) for j in range(i))


@pytest.mark.parametrize("kind", ["half", "complex", "direct"])
def test_mixture_and_stems_are_cut_at_one_place(kind: str, folder: Path, sources: dict[str, Source]) -> None:
    crops = RandomCrops(songs_in(folder), sources[kind], [], True, seed=0)
    for place in places(30):
        made = crops[place]
        assert made["mixture"].shape == (2, 20, 100)
        assert made["stems"].shape == (4, 2, 20, 100)
        assert made["mixture"].dtype == made["stems"].dtype == torch.float32
        starts = [start_of(made["stems"][stem], stem, place.song) for stem in range(4)]
        starts += [start_of(made["mixture"], stem, place.song) for stem in range(4)]
        assert max(starts) - min(starts) < 0.3
        assert abs(starts[0] - round(starts[0])) < 0.3
        for stem in range(4):
            assert songs_heard(made["stems"][stem], stem) == {place.song}
            assert all(not songs_heard(made["stems"][stem], other) for other in range(4) if other != stem)


def test_crops_come_from_anywhere_in_the_song_alike(folder: Path, sources: dict[str, Source]) -> None:
    crops = RandomCrops(songs_in(folder), sources["half"], [], True, seed=0)
    last = FRAMES[0] - SETTINGS.frames
    found = [start_of(crops[Place(0, position, 0)]["stems"][0], 0, 0) for position in range(500)]
    starts = np.round(found).astype(int)
    assert np.abs(found - starts).max() < 0.2
    counts = np.bincount(starts, minlength=last + 1)
    assert len(counts) == last + 1  # the first frame and the last, and nothing beyond
    assert counts.min() > 0
    assert counts.max() < 4 * 500 / (last + 1)


@pytest.mark.parametrize("kind", ["half", "complex", "direct"])
def test_a_song_that_is_shorter_is_padded(kind: str, folder: Path, sources: dict[str, Source]) -> None:
    cell = (Cell(folder / "short.wav"),)
    short = Song("short", cell, (cell,), 500 / 8000)
    count = SETTINGS.frame_count(500)
    expected = spectrogram.stft(signals.read(cell, SETTINGS), SETTINGS)[..., :100].abs()
    for dataset, key in (
        (RandomCrops([short], sources[kind], [], False, seed=0), Place(0, 5, 0)),
        (FixedCrops([short], sources[kind]), 0),
    ):
        made = dataset[key]
        for magnitudes in (made["mixture"], made["stems"][0]):
            torch.testing.assert_close(magnitudes[:, :count], expected, rtol=2e-3, atol=1e-4)
            assert (magnitudes[:, count:] == 0).all()


def test_with_and_without_phases_agree_where_nothing_is_changed(folder: Path, sources: dict[str, Source]) -> None:
    for complete, stems in ((True, STEMS), (False, ("drums",)), (False, ("vocals", "bass"))):
        songs = songs_in(folder, stems)
        half = RandomCrops(songs, sources["half"], [], complete, seed=0)
        for kind in ("complex", "direct"):
            mixed = RandomCrops(songs, sources[kind], [], complete, seed=0)
            for place in places(12):
                one = half[place]
                # Without Remix, both draw one start and nothing before it.
                other = mixed[place]
                torch.testing.assert_close(one["stems"], other["stems"], rtol=2e-3, atol=2e-3)
                torch.testing.assert_close(one["mixture"], other["mixture"], rtol=2e-3, atol=5e-3)


# Rows that are changed one by one.


def test_the_mixture_is_the_sum_of_the_changed_stems(folder: Path, sources: dict[str, Source]) -> None:
    """Two stems that are one file add up to twice it, or to nothing if one of them is upside down."""
    cell = songs_in(folder)[0].stems[0]
    twins = [Song("twins", cell, (cell, cell), LENGTHS[0] / 8000)]
    flipped = RandomCrops(twins, sources["complex"], [Polarity(0.5)], True, seed=0)
    silent = []
    for position in range(40):
        made = flipped[Place(0, position, 0)]
        torch.testing.assert_close(made["stems"][0], made["stems"][1])
        silent.append(bool((made["mixture"] == 0).all()))
        if not silent[-1]:
            torch.testing.assert_close(made["mixture"], made["stems"].sum(0))
    assert 8 < sum(silent) < 32
    louder = RandomCrops(twins, sources["complex"], [Gain(12)], True, seed=0)
    made = louder[Place(0, 0, 0)]
    ratio = float(made["stems"][0].sum() / made["stems"][1].sum())
    assert not 0.99 < ratio < 1.01
    torch.testing.assert_close(made["mixture"], made["stems"].sum(0), rtol=1e-4, atol=1e-4)


def test_channels_swap_in_stem_and_mixture(folder: Path, sources: dict[str, Source]) -> None:
    crops = RandomCrops(songs_in(folder), sources["complex"], [ChannelSwap(0.5)], True, seed=0)
    seen = set()
    for place in places(30):
        made = crops[place]
        for stem in range(4):
            line = tone_bin(stem, place.song)
            left, right = made["stems"][stem, :, 10, line].tolist()
            assert made["mixture"][:, 10, line].tolist() == pytest.approx([left, right], rel=0.02)
            seen.add(left > right)
    assert seen == {True, False}


@pytest.mark.parametrize("complete", [True, False])
def test_remix_takes_rows_from_other_songs(complete: bool, folder: Path, sources: dict[str, Source]) -> None:
    stems = STEMS if complete else STEMS[:2]
    crops = RandomCrops(songs_in(folder, stems), sources["complex"], [Remix(1.0)], complete, seed=0)
    combinations = set()
    for place in places(60):
        made = crops[place]
        heard = [songs_heard(made["stems"][stem], stem) for stem in range(len(stems))]
        assert heard[0] == {place.song}
        assert all(len(songs) == 1 for songs in heard)
        # The mixture has these stems and no others; what it has besides comes from one song, without its stems.
        assert [songs_heard(made["mixture"], stem) for stem in range(len(stems))] == heard
        if not complete:
            heard += [songs_heard(made["mixture"], 2), songs_heard(made["mixture"], 3)]
            assert heard[2] == heard[3]
            assert len(heard[2]) == 1
        combinations.add(tuple(min(songs) for songs in heard))
    assert len(combinations) > (15 if complete else 10)


def test_mixup_adds_the_same_stem_of_another_song(folder: Path, sources: dict[str, Source]) -> None:
    crops = RandomCrops(songs_in(folder), sources["complex"], [Mixup(1.0)], True, seed=0)
    doubled = 0
    for place in places(20):
        made = crops[place]
        heard = [songs_heard(made["stems"][stem], stem) for stem in range(4)]
        assert all(place.song in songs and len(songs) <= 2 for songs in heard)
        assert [songs_heard(made["mixture"], stem) for stem in range(4)] == heard
        doubled += sum(len(songs) == 2 for songs in heard)
    assert doubled > 40


def test_with_phase_an_example_is_spectra(folder: Path, sources: dict[str, Source]) -> None:
    """The same crops as without, whose magnitudes they have, and whose mixture is the sum."""
    made = {
        phase: RandomCrops(songs_in(folder), sources["complex"], [Remix(1.0)], True, seed=0, phase=phase)
        for phase in (False, True)
    }
    fixed = {phase: FixedCrops(songs_in(folder), sources["complex"], phase=phase) for phase in (False, True)}
    pairs = [(made[False][place], made[True][place]) for place in places(4)] + [(fixed[False][0], fixed[True][0])]
    for plain, spectra in pairs:
        assert torch.equal(spectra["mixture"].abs(), plain["mixture"])
        assert torch.equal(spectra["stems"].abs(), plain["stems"])
        assert spectra["mixture"].is_complex()
        torch.testing.assert_close(spectra["stems"].sum(0), spectra["mixture"], atol=2e-2, rtol=0)


def test_rows_of_one_song_stay_together_in_time(folder: Path, sources: dict[str, Source]) -> None:
    crops = RandomCrops(songs_in(folder), sources["complex"], [Remix(1.0)], True, seed=0)
    together = apart = 0
    for place in places(60):
        made = crops[place]
        starts: dict[int, list[float]] = {}
        for stem in range(4):
            (song,) = songs_heard(made["stems"][stem], stem)
            starts.setdefault(song, []).append(start_of(made["stems"][stem], stem, song))
        assert all(max(found) - min(found) < 0.3 for found in starts.values())
        together += any(len(found) > 1 for found in starts.values())
        firsts = [found[0] for found in starts.values()]
        apart += max(firsts) - min(firsts) > 1
    assert together > 10
    assert apart > 30


def test_with_one_stem_of_four_the_rest_is_in_the_mixture(folder: Path, sources: dict[str, Source]) -> None:
    crops = RandomCrops(songs_in(folder, ["bass"]), sources["complex"], [Gain(6)], False, seed=0)
    gains = set()
    for place in places(12):
        made = crops[place]
        assert made["stems"].shape == (1, 2, 20, 100)
        assert [songs_heard(made["mixture"], stem) for stem in range(4)] == [{place.song}] * 4
        assert songs_heard(made["stems"][0], 2) == {place.song}
        assert not songs_heard(made["stems"][0], 0)
        lines = [float(made["mixture"][0, 15, tone_bin(stem, place.song)]) for stem in range(4)]
        assert lines[0] == pytest.approx(lines[1], rel=0.02)  # the rest has one gain
        assert lines[0] == pytest.approx(lines[3], rel=0.02)
        gains.add(round(lines[2] / lines[0], 2))
    assert len(gains) > 6


def test_magnitudes_are_changed_alike_after_the_rows(folder: Path, sources: dict[str, Source]) -> None:
    plain = RandomCrops(songs_in(folder), sources["complex"], [], True, seed=0)
    moved = RandomCrops(songs_in(folder), sources["complex"], [PitchShift(3)], True, seed=0)
    shifts = set()
    for place in places(9):
        before, after = plain[place], moved[place]
        peaks = [int(after["stems"][stem, 0, 15].argmax()) for stem in range(2)]
        factor = peaks[1] / tone_bin(1, place.song)
        shifts.add(round(factor, 1))
        assert peaks[0] == pytest.approx(tone_bin(0, place.song) * factor, abs=1)
        assert after["mixture"][0, 15, peaks[0]] == pytest.approx(float(after["stems"][0, 0, 15, peaks[0]]), rel=0.1)
        assert not same(before, after)
    assert len(shifts) > 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("half", []), ("half", [TimeStretch(1.0, 1.0)]), ("complex", []), ("complex", [Remix(1.0)])],
    ids=str,
)
def test_an_example_says_where_it_came_from(
    kind: str, changes: list[Any], workers: int, folder: Path, sources: dict[str, Source]
) -> None:
    """The tones of a crop tell its song and first frame; from workers or not, packed or not, pinned and moved."""
    pool = Pool(examples.packed_size(4, 4, sources["half"]), workers)
    crops = RandomCrops(songs_in(folder), sources[kind], changes, True, seed=1, pool=pool)
    order = Order(3, 4, 4, seed=1)
    loader = DataLoader(crops, batch_size=4, sampler=order, num_workers=workers, collate_fn=as_is)
    for batch, first in zip(loader, range(0, 12, 4), strict=True):
        pinned = {**batch, "origin": pin_memory(batch["origin"])}
        made = examples.unpacked(move_data_to_device(pinned, torch.device("cpu")), sources[kind], Pool(0))
        for row, place in enumerate(list(order)[first : first + 4]):
            origin = made["origin"][row]
            assert origin == crops[place]["origin"]
            assert origin[:2] == (place.epoch, place.position)
            heard = {song: stem for stem in range(4) for song in songs_heard(made["stems"][row, stem], stem)}
            assert sorted(origin.songs) == [f"song {song}" for song in sorted(heard)]
            for name, start in zip(origin.songs, origin.starts, strict=True):
                song = int(name.removeprefix("song "))
                assert start_of(made["stems"][row, heard[song]], heard[song], song) == pytest.approx(start, abs=0.5)


@pytest.mark.parametrize("kind", ["half", "complex"])
def test_the_song_that_a_worker_read_last_is_known_elsewhere(
    kind: str, folder: Path, sources: dict[str, Source]
) -> None:
    """Also when the worker is gone."""
    crops = RandomCrops(songs_in(folder), sources[kind], [], False, seed=1, pool=Pool(0, 2))
    loader = DataLoader(crops, batch_size=1, sampler=[Place(0, 0, 2), Place(0, 1, 1)], num_workers=2, collate_fn=as_is)
    shown = iter(loader)
    assert [batch["origin"][0].songs for batch in shown] == [("song 2",), ("song 1",)]
    processes = [worker.pid for worker in shown._workers]  # type: ignore[attr-defined]
    del shown
    assert [crops.whereabouts.of(process) for process in processes] == [2, 1]
    assert crops.whereabouts.of(1) is None


# What is judged.


@pytest.mark.parametrize("kind", ["half", "complex", "direct"])
def test_fixed_crops_are_the_middle_and_never_change(kind: str, folder: Path, sources: dict[str, Source]) -> None:
    crops = FixedCrops(songs_in(folder), sources[kind])
    for song, count in enumerate(FRAMES):
        made = crops[song]
        assert made["name"] == f"song {song}"
        assert same(made, crops[song])
        assert not made["mixture"].is_complex()
        for stem in range(4):
            for magnitudes in (made["mixture"], made["stems"][stem]):
                assert start_of(magnitudes, stem, song) == pytest.approx((count - 20) // 2, abs=0.3)


def test_whole_songs_are_as_long_as_their_longest_part(folder: Path) -> None:
    songs = songs_in(folder)
    for song, length in enumerate(LENGTHS):
        made = WholeSongs(songs, SETTINGS)[song]
        assert made["mixture"].shape == (2, length)
        assert made["stems"].shape == (4, 2, length)
        torch.testing.assert_close(made["mixture"], made["stems"].sum(0), rtol=1e-4, atol=1e-5)
    uneven = Song("uneven", songs[0].mixture, songs[1].stems[:1], 0.3)
    made = WholeSongs([uneven], SETTINGS)[0]
    assert made["mixture"].shape == (2, LENGTHS[1])
    assert (made["mixture"][:, LENGTHS[0] :] == 0).all()
    assert made["stems"].shape == (1, 2, LENGTHS[1])


def test_a_crop_is_mixture_then_stems(folder: Path, sources: dict[str, Source]) -> None:
    song = songs_in(folder)[1]
    made = examples.crop(song, sources["half"], 3, 7)
    assert made.shape == (5, 2, 7, 100)
    for row, signal in enumerate((song.mixture, *song.stems)):
        assert torch.equal(made[row], sources["half"].crop(signal, 3, 7))


@pytest.mark.parametrize("shown", [0, 4, 8, 12, 24, 44])
@pytest.mark.parametrize("lightnings_epoch", [0, 1, 7])
def test_a_resumed_order_goes_on_behind_what_was_shown(shown: int, lightnings_epoch: int) -> None:
    """Whatever Lightning takes for the number of the epoch that it stopped in."""
    whole = Order(7, 3, 4, seed=5)  # epochs of 24
    places = []
    for epoch in range(4):
        whole.set_epoch(epoch)
        places += list(whole)
    resumed, found = Order(7, 3, 4, seed=5, shown=shown), []
    for epoch in range(2):
        resumed.set_epoch(epoch + (lightnings_epoch if shown else 0))
        found += list(resumed)
    assert found == places[shown : (shown // 24 + 2) * 24]


# Batches as they lie in the cache.


@pytest.mark.parametrize("kind", ["half", "decibel"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_packed_batch_is_the_collation_of_its_items(
    kind: str, workers: int, folder: Path, sources: dict[str, Source], tmp_path: Path
) -> None:
    """Bit by bit, songs that are shorter than a crop included."""
    cell = (Cell(folder / "short.wav"),)
    songs = [*songs_in(folder, ["bass"]), Song("short", cell, (cell,), 500 / 8000)]
    source = Cache(tmp_path, SETTINGS, storage.by_name(kind))
    assert source.build({signal: 1.0 for song in songs for signal in (song.mixture, *song.stems)}, workers=0) == {}
    pool = Pool(examples.packed_size(4, 1, source), workers)
    crops, fixed = RandomCrops(songs, source, [], False, 3, pool), FixedCrops(songs, source, pool)
    order = Order(4, 6, 4, seed=3)
    for dataset, sampler in ((crops, order), (fixed, EveryNth(4))):
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=as_is)
        wanted = DataLoader([dataset[place] for place in sampler], batch_size=4)
        found = list(loader)
        assert len(found) == len(wanted)
        for batch, expected in zip(found, wanted, strict=True):
            assert batch["records"].dtype == torch.uint8
            made = examples.unpacked(batch, source, Pool(0))
            assert same(made, expected)
            assert made["name"] == expected["name"]
            assert made["mixture"].is_contiguous()
            assert made["stems"].is_contiguous()


def test_what_is_changed_or_has_phases_is_not_packed(folder: Path, sources: dict[str, Source]) -> None:
    places = list(Order(3, 2, 6, seed=0))
    for kind, changes in (("half", [TimeStretch()]), ("complex", []), ("complex", [Gain()]), ("direct", [])):
        crops = RandomCrops(songs_in(folder), sources[kind], changes, True, seed=0)
        batch = crops.__getitems__(places)
        assert batch["mixture"].dtype == torch.float32
        assert examples.unpacked(batch, sources[kind], Pool(0)) is batch
        for row, place in enumerate(places):
            assert same({key: batch[key][row] for key in ("mixture", "stems")}, crops[place])


def test_ranks_go_on_with_as_many_examples_each_wherever_fewer_had_stopped():
    for shown in range(25):
        lengths = {len(list(Order(4, 3, 8, 0, rank, 4, shown))) for rank in range(4)}
        assert lengths <= {2, 4, 6}
        assert len(lengths) == 1


def test_a_batch_looks_at_no_entry_twice(
    folder: Path, sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = RandomCrops(songs_in(folder), sources["half"], [], True, seed=0)
    places = list(Order(3, 2, 6, seed=0))
    crops.__getitems__(places)
    monkeypatch.setattr("stemwise.cache.entries.parse", None)  # a first page is read once
    monkeypatch.setattr("stemwise.cache.store.hashlib", None)  # and a name is made once
    crops.__getitems__(places)
