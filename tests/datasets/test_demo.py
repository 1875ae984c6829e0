"""The demo songs sound like what they are called, and their files survive what happens to files."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stemwise.datasets import demo
from stemwise.datasets.demo import band, files, score, synth
from stemwise.errors import UserError

STEMS = ("vocals", "drums", "bass", "other")
RATE = files.RATE
LOW_RATE = 8000  # for what is about form and levels, not about timbre
FEW = {"train": 2, "test": 1}
SHORT = 1.0


@pytest.fixture(scope="module")
def songs() -> list[dict[str, np.ndarray]]:
    return [demo.compose(seed, seconds=12.0) for seed in range(3)]


@pytest.fixture(scope="module")
def sketches() -> list[dict[str, np.ndarray]]:
    return [demo.compose(seed, seconds=16.0, sample_rate=LOW_RATE) for seed in range(8)]


def mixture(stems: dict[str, np.ndarray]) -> np.ndarray:
    return np.sum(list(stems.values()), axis=0)


def energy(signal: np.ndarray) -> float:
    return float(np.sum(signal.astype(np.float64) ** 2))


def envelope(signal: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """RMS of consecutive pieces of the (2, N) signal."""
    size = round(seconds * rate)
    count = signal.shape[1] // size
    return np.sqrt(np.mean(signal[:, : count * size].reshape(2, count, size) ** 2, axis=(0, 2)))


# What the songs are.


def test_same_seed_same_samples_and_another_seed_another_song() -> None:
    first, again, other = (demo.compose(seed, seconds=3.0) for seed in (5, 5, 6))
    assert all(np.array_equal(first[stem], again[stem]) for stem in STEMS)
    assert not any(np.array_equal(first[stem], other[stem]) for stem in STEMS)


@pytest.mark.parametrize("seconds", [1.0, 2.345, 21.0])
def test_shapes_peaks_and_finite_values_at_any_length(seconds: float) -> None:
    for seed in range(3):
        stems = demo.compose(seed, seconds=seconds, sample_rate=LOW_RATE)
        assert tuple(stems) == STEMS
        for stem in stems.values():
            assert stem.shape == (2, round(seconds * LOW_RATE))
            assert stem.dtype == np.float32
            assert np.isfinite(stem).all()
            assert np.abs(stem).max() > 0.01
        assert np.abs(mixture(stems)).max() == pytest.approx(10 ** (-1 / 20), rel=1e-3)


def test_every_stem_has_its_share_of_the_energy(sketches: list[dict[str, np.ndarray]]) -> None:
    for stems in sketches:
        whole = energy(mixture(stems))
        shares = {stem: 10 * np.log10(energy(signal) / whole) for stem, signal in stems.items()}
        assert all(-20 < share < -1.5 for share in shares.values()), shares


def test_who_rests_is_silent_and_every_stem_rests_somewhere(sketches: list[dict[str, np.ndarray]]) -> None:
    resting = set()
    for seed, stems in enumerate(sketches):
        song = score.write(seed, 16.0)
        for number, bar in enumerate(song.bars[:-1]):
            # The third beat: before, the room still answers the last bar; after, the singer breathes in.
            span = slice(*(round(song.time(number, step) * LOW_RATE) for step in (8, 11)))
            for stem in set(STEMS) - bar.parts:
                assert np.abs(stems[stem][:, span]).max() < 3e-3
                resting.add(stem)
            for stem in bar.parts - {"vocals"}:  # singers breathe
                assert np.abs(stems[stem][:, span]).max() > 1e-2
    assert resting == set(STEMS)


def test_stems_are_spread_over_the_stereo(songs: list[dict[str, np.ndarray]]) -> None:
    for stems in songs:
        for stem in ("vocals", "drums", "other"):
            left, right = stems[stem]
            assert energy(left - right) > 1e-3 * energy(left + right)


def test_keys_tempi_and_forms_differ() -> None:
    scores = [score.write(seed, 16.0) for seed in range(24)]
    assert len({str(song.key) for song in scores}) > 8
    assert len({round(song.tempo) for song in scores}) > 12
    assert len({tuple(bar.section for bar in song.bars) for song in scores}) > 8
    assert len({song.swing for song in scores}) == 3


def test_melody_stays_in_the_scale() -> None:
    song = score.write(1, 40.0)
    lines = score.melody(song, np.random.default_rng(0), 10)
    assert lines
    for note in (note for line in lines for note in line):
        degree = song.bars[note.bar].degree
        allowed = {(song.key.tonic + place) % 12 for place in song.key.scale}
        if degree == 4:
            allowed |= {(song.key.tonic + 11) % 12}
        assert song.key.pitch(note.step, degree) % 12 in allowed
        assert abs(note.step - 10) < 9


# What the stems sound like.


def test_bass_is_low(songs: list[dict[str, np.ndarray]]) -> None:
    for stems in songs:
        power = np.abs(np.fft.rfft(stems["bass"].sum(axis=0))) ** 2
        hz = np.fft.rfftfreq(stems["bass"].shape[1], 1 / RATE)
        assert power[hz < 400].sum() > 0.9 * power.sum()


def test_drums_keep_time() -> None:
    straight = [seed for seed in range(20) if score.write(seed, 16.0).swing == 0][:4]
    for seed in straight:
        drums = demo.compose(seed, seconds=16.0, sample_rate=LOW_RATE)["drums"]
        level = envelope(drums, LOW_RATE, 0.005)
        onsets = np.maximum(np.diff(level), 0) ** 2
        time = (np.arange(len(onsets)) + 1) * 0.005

        def coherence(step: float, onsets: np.ndarray = onsets, time: np.ndarray = time) -> float:
            return float(np.abs(np.sum(onsets * np.exp(2j * np.pi * time / step))) / onsets.sum())

        step = score.write(seed, 16.0).step
        assert coherence(step) > 0.5
        assert coherence(step * 1.083) < 0.3


def test_drums_hiss_and_the_others_have_partials(songs: list[dict[str, np.ndarray]]) -> None:
    for stems in songs:
        flatness = {}
        for stem, signal in stems.items():
            power = np.abs(np.fft.rfft(signal[0].reshape(-1, 5292) * np.hanning(5292))) ** 2
            heard = power[power.sum(axis=1) > 1e-2 * power.sum(axis=1).max(), 120:600] + 1e-12  # 1 to 5 kHz
            flatness[stem] = float(np.median(np.exp(np.log(heard).mean(axis=1)) / heard.mean(axis=1)))
        assert flatness["drums"] > 0.2
        assert all(flatness[stem] < 0.5 * flatness["drums"] for stem in ("vocals", "bass", "other"))


def pitches(voice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fundamental (T,) in hertz by autocorrelation, 100 times per second, and how periodic the signal is."""
    size, hop = 2048, RATE // 100
    frames = np.lib.stride_tricks.sliding_window_view(voice, size)[::hop] * np.hanning(size)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, n=2 * size)) ** 2)
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), n=2 * size)) ** 2)
    lags = np.arange(RATE // 700, RATE // 90)
    shares = correlation[:, lags] / window[lags] / (correlation[:, :1] / window[0] + 1e-9)
    best = np.argmax(shares > 0.97 * shares.max(axis=1, keepdims=True), axis=1)
    # The first lag that is nearly as good as the best; its neighbourhood holds the summit.
    near = np.clip(best[:, None] + np.arange(12), 0, len(lags) - 1)
    best = near[np.arange(len(best)), np.argmax(np.take_along_axis(shares, near, axis=1), axis=1)]
    left, middle, right = (shares[np.arange(len(best)), np.clip(best + i, 0, len(lags) - 1)] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    offset = np.where(np.abs(bend) > 1e-9, 0.5 * (left - right) / np.where(bend == 0, 1, bend), 0)
    return RATE / (lags[best] + np.clip(offset, -0.5, 0.5)), middle


def test_voice_has_vibrato(songs: list[dict[str, np.ndarray]]) -> None:
    rates, depths = [], []
    for stems in songs:
        hz, periodic = pitches(stems["vocals"].mean(axis=0))
        semitones = 12 * np.log2(hz / 440)
        for start in range(0, len(hz) - 60, 20):
            piece = semitones[start : start + 60]
            if periodic[start : start + 60].min() < 0.9 or np.ptp(piece) > 1.6:
                continue  # silence, a consonant, or another note
            wave = piece - np.polyval(np.polyfit(np.arange(60), piece, 1), np.arange(60))
            spectrum = np.abs(np.fft.rfft(wave * np.hanning(60), n=600))
            rates.append(float(np.argmax(spectrum)) / 6)
            depths.append(float(np.std(wave)) * np.sqrt(2))
    assert len(rates) >= 5
    assert 4 < np.median(rates) < 7
    assert np.mean([4 < rate < 7 for rate in rates]) > 0.7
    assert 0.1 < np.median(depths) < 0.7  # semitones


def test_voice_has_formants_that_move(songs: list[dict[str, np.ndarray]]) -> None:
    for stems in songs:
        voice = stems["vocals"].mean(axis=0)
        frames = np.lib.stride_tricks.sliding_window_view(voice, 2048)[::1024] * np.hanning(2048)
        power = np.abs(np.fft.rfft(frames)) ** 2
        sung = power[power.sum(axis=1) > 0.05 * power.sum(axis=1).max()]
        hz = np.fft.rfftfreq(2048, 1 / RATE)
        second = sung[:, (hz > 1400) & (hz < 2400)].sum(axis=1) / sung.sum(axis=1)
        # /i/ and /e/ have a formant there, /o/ and /u/ have a gap.
        assert np.quantile(second, 0.9) > 4 * np.quantile(second, 0.1)


# What they are made of.


def test_ring_is_a_sum_of_damped_sines() -> None:
    hz, gains, decays, phases = (
        np.array([110.0, 333.0]),
        np.array([0.5, 0.2]),
        np.array([1.0, 7.0]),
        np.array([0.0, 1.0]),
    )
    time = np.arange(RATE // 2) / RATE
    wanted = sum(
        gain * np.exp(-decay * time) * np.sin(2 * np.pi * f * time + phase)
        for f, gain, decay, phase in zip(hz, gains, decays, phases, strict=True)
    )
    assert np.allclose(synth.ring(hz, gains, decays, 0.5, RATE, phases), wanted, atol=2e-6)


def test_ring_leaves_out_what_would_alias() -> None:
    assert not synth.ring([5000.0], 1.0, 0.0, 0.1, LOW_RATE).any()


def test_moving_filter_with_unit_gain_changes_nothing() -> None:
    signal = synth.noise(0.7, RATE, np.random.default_rng(0))
    gains = np.ones((len(synth.frame_times(0.7, RATE)), synth.WINDOW // 2 + 1), np.float32)
    assert np.allclose(synth.moving_filter(signal, gains), signal, atol=1e-5)


def test_reverb_is_a_convolution_whose_length_is_the_rooms() -> None:
    track = np.zeros((2, 3 * LOW_RATE), np.float32)
    track[:, 100] = 1.0
    wet = synth.reverb(track, LOW_RATE, np.random.default_rng(0), seconds=0.5, wet=0.5)
    assert np.abs(wet[:, 101 : 100 + LOW_RATE // 2]).max() > 1e-3
    assert np.abs(wet[:, 101 + LOW_RATE // 2 :]).max() < 1e-6
    later = synth.reverb(np.roll(track, 9000, axis=1), LOW_RATE, np.random.default_rng(0), seconds=0.5, wet=0.5)
    assert np.allclose(np.roll(wet, 9000, axis=1), later, atol=1e-6)


# What lies on disk.


@pytest.fixture(autouse=True)
def low_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the disk is the same at a rate that takes less time."""
    monkeypatch.setattr(files, "RATE", LOW_RATE)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that have been composed."""
    seeds: list[int] = []
    compose = band.compose

    def counting(seed: int, *, seconds: float, sample_rate: int = RATE) -> dict[str, np.ndarray]:
        seeds.append(seed)
        return compose(seed, seconds=seconds, sample_rate=sample_rate)

    monkeypatch.setattr(band, "compose", counting)
    return seeds


def times(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in sorted(root.rglob("*")) if path.is_file()}


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob("*.part"))


def test_songs_are_written_at_the_rate_of_a_cd() -> None:
    assert RATE == 44100


def test_find_returns_indexes_of_files_that_are_there(tmp_path: Path) -> None:
    found = demo.find(tmp_path, songs=FEW, seconds=SHORT)
    assert {split: len(index.tracks) for split, index in found.items()} == FEW
    names = [track.name for index in found.values() for track in index.tracks]
    assert len(set(names)) == len(names)
    for index in found.values():
        assert not index.problems
        assert index.columns == list(STEMS)
        for track in index.tracks:
            assert track.duration == SHORT
            assert track.mixture is not None
            parts = [soundfile.read(track.stems[stem].path, dtype="int16")[0] for stem in STEMS]
            whole, rate = soundfile.read(track.mixture.path, dtype="int16")
            assert rate == LOW_RATE
            assert whole.shape == (LOW_RATE * SHORT, 2)
            assert np.array_equal(np.sum(parts, axis=0), whole)
            assert np.abs(whole).max() == pytest.approx(32767 * 10 ** (-1 / 20), rel=1e-2)


def test_splits_share_no_song(tmp_path: Path, composed: list[int]) -> None:
    demo.find(tmp_path / "0", songs=FEW, seconds=SHORT)
    demo.find(tmp_path / "1", songs=FEW, seconds=SHORT, seed=1)
    assert len(set(composed)) == len(composed) == 6


def test_second_run_writes_nothing(tmp_path: Path, composed: list[int]) -> None:
    first = demo.find(tmp_path, songs=FEW, seconds=SHORT)
    before, count = times(tmp_path), len(composed)
    assert demo.find(tmp_path, songs=FEW, seconds=SHORT) == first
    assert times(tmp_path) == before
    assert len(composed) == count


def stop_at(call: int, function: Callable[..., object]) -> Iterator[Callable[..., object]]:
    calls = 0

    def stopping(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return function(*args, **options)

    yield stopping


@pytest.mark.parametrize("call", [1, 8])
def test_interrupted_run_goes_on_where_it_stopped(call: int, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.soundfile, "write", next(stop_at(call, soundfile.write)))
        with pytest.raises(KeyboardInterrupt):
            demo.find(tmp_path, songs=FEW, seconds=SHORT)
    kept = {name: time for name, time in times(tmp_path).items() if name.endswith(".flac") and ".part" not in name}
    assert len(kept) == 5 * ((call - 1) // 5)
    found = demo.find(tmp_path, songs=FEW, seconds=SHORT)
    assert not leftovers(tmp_path)
    assert kept.items() <= times(tmp_path).items()
    clean = demo.find(tmp_path / "clean", songs=FEW, seconds=SHORT)
    for mine, other in zip(found["train"].tracks, clean["train"].tracks, strict=True):
        assert mine.mixture is not None
        assert other.mixture is not None
        assert mine.mixture.path.read_bytes() == other.mixture.path.read_bytes()


def test_a_lost_file_comes_back(tmp_path: Path, composed: list[int]) -> None:
    found = demo.find(tmp_path, songs=FEW, seconds=SHORT)
    lost = found["test"].tracks[0].stems["bass"].path
    before = lost.read_bytes()
    lost.unlink()
    demo.find(tmp_path, songs=FEW, seconds=SHORT)
    assert lost.read_bytes() == before
    assert len(composed) == 4


def test_more_songs_are_added_and_fewer_shorten_the_index(tmp_path: Path, composed: list[int]) -> None:
    demo.find(tmp_path, songs=FEW, seconds=SHORT)
    assert len(demo.find(tmp_path, songs={**FEW, "train": 3}, seconds=SHORT)["train"].tracks) == 3
    assert len(demo.find(tmp_path, songs={**FEW, "train": 1}, seconds=SHORT)["train"].tracks) == 1
    assert len(demo.find(tmp_path, songs={**FEW, "train": 3}, seconds=SHORT)["train"].tracks) == 3
    assert len(composed) == 4


@pytest.mark.parametrize("change", [{"seconds": 1.5}, {"seed": 3}])
def test_another_recipe_replaces_our_songs_and_nothing_else(change: dict[str, float], tmp_path: Path) -> None:
    old = demo.find(tmp_path, songs=FEW, seconds=SHORT)
    mine = old["train"].tracks[0].stems["bass"].path.with_name("notes.txt")
    (tmp_path / "train" / "my song").mkdir()
    for path in (mine, tmp_path / "train" / "my song" / "mixture.flac"):
        path.write_text("mine")
    arguments = {"seconds": SHORT, **change}
    found = demo.find(tmp_path, songs=FEW, **arguments)  # type: ignore[arg-type]
    assert mine.read_text() == "mine"
    assert (tmp_path / "train" / "my song" / "mixture.flac").read_text() == "mine"
    written = {path.parent for path in tmp_path.rglob("vocals.flac")}
    assert written == {track.stems["vocals"].path.parent for index in found.values() for track in index.tracks}
    for path in tmp_path.rglob("vocals.flac"):
        assert soundfile.info(path).frames == round(arguments["seconds"] * LOW_RATE)


def test_interrupted_replacement_is_finished(tmp_path: Path) -> None:
    demo.find(tmp_path, songs=FEW, seconds=SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.soundfile, "write", next(stop_at(8, soundfile.write)))
        with pytest.raises(KeyboardInterrupt):
            demo.find(tmp_path, songs=FEW, seconds=1.5)
    demo.find(tmp_path, songs=FEW, seconds=SHORT)
    assert {soundfile.info(path).frames for path in tmp_path.rglob("*.flac")} == {LOW_RATE}
    assert not leftovers(tmp_path)


def test_a_new_composer_replaces_the_old_ones_songs(tmp_path: Path, composed: list[int]) -> None:
    demo.find(tmp_path, songs={"train": 1}, seconds=SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "VERSION", files.VERSION + 1)
        demo.find(tmp_path, songs={"train": 1}, seconds=SHORT)
    assert len(composed) == 2


def test_two_at_once_share_the_work(tmp_path: Path, composed: list[int]) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(demo.find, tmp_path, songs=FEW, seconds=SHORT) for _ in range(2)]
        first, second = (run.result() for run in runs)
    assert first == second
    assert len(composed) == 3
    assert not leftovers(tmp_path)


def test_another_data_set_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "valid.csv").write_text("mine")
    with pytest.raises(UserError, match=r"valid\.csv.*data\.root"):
        demo.find(tmp_path, songs=FEW, seconds=SHORT)
    assert (tmp_path / "valid.csv").read_text() == "mine"
    assert not list(tmp_path.rglob("*.flac"))


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/songs: cannot write .*Set data\.root"):
        demo.find(tmp_path / "file" / "songs", songs=FEW, seconds=SHORT)
    if os.geteuid():  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(UserError, match=r"locked: cannot write"):
            demo.find(tmp_path / "locked", songs=FEW, seconds=SHORT)


def test_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"recipe": ')
    with pytest.raises(UserError, match=r"demo\.json: damaged"):
        demo.find(tmp_path, songs=FEW, seconds=SHORT)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"songs": {"training": 2}}, "data.dataset.songs.training"),
        ({"songs": {"train": -1}}, "data.dataset.songs.train=-1"),
        ({"songs": {"train": 0}}, "data.dataset.songs"),
        ({"seconds": 0.0}, "data.dataset.seconds=0.0"),
        ({"seconds": float("nan")}, "data.dataset.seconds=nan"),
        ({"seed": -1}, "data.dataset.seed=-1"),
    ],
)
def test_arguments_out_of_bounds_name_their_key(arguments: dict, key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key):
        demo.find(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())
