"""Songs behind URLs: decoded as from the disk, cached, trained on, recorded; and what goes wrong on the way."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from stemwise import audio, index, model_file, signals
from stemwise.cache import entries, storage
from stemwise.cache.fingerprints import fingerprint, fingerprint_now
from stemwise.cache.store import Cache, Direct
from stemwise.codecs import formats, remote
from stemwise.errors import UserError
from stemwise.files import stores, streams
from stemwise.files.places import place
from stemwise.index import Cell
from stemwise.spectrogram import Spectrogram
from tiny import TINY

RATE = 44100
SETTINGS = Spectrogram(sample_rate=8000, channels=2, n_fft=256, hop=64, bins=64, frames=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of noise in every format."""
    folder = tmp_path_factory.mktemp("formats")
    noise = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal((2, 5 * RATE))).float()
    for codec in formats.CODECS:
        audio.write(folder / f"song.{codec}", noise, formats.sample_rate(codec, RATE), codec=codec)
    soundfile.write(folder / "song.aiff", noise.T.numpy(), RATE, "PCM_24")
    return folder


def assert_equal_to_local(path: Path, web, **options: int) -> None:
    web.files["/songs/it"] = web.files[f"/songs/{path.name}"] = path.read_bytes()
    rate = audio.probe(path).sample_rate
    for url in (place(f"{web.url}/songs/") / path.name, place("s3://songs") / path.name, place("s3://songs/it")):
        assert audio.probe(url, options.get("stream")) == audio.probe(path, options.get("stream"))
        for start, count in ((0, None), (RATE * 3 + 7, 1000)):
            wanted = {"sample_rate": rate, "channels": 2, "start": start, "frames": count, **options}
            assert torch.equal(audio.read(url, **wanted), audio.read(path, **wanted))


@pytest.mark.parametrize("name", [*(f"song.{codec}" for codec in formats.CODECS), "song.aiff"])
def test_a_song_behind_a_url_is_the_same(name, folder, s3_web):
    assert_equal_to_local(folder / name, s3_web)


def test_a_stem_of_musdb18_behind_a_url_is_the_same(shared_data, s3_web):
    assert_equal_to_local(sorted(shared_data.glob("musdb18*/*/*.stem.mp4"))[0], s3_web, stream=4)


def test_what_was_cut_off_or_is_no_audio_is_named_as_on_the_disk(folder, web):
    for name in ("song.wav", "song.flac", "song.ogg", "song.opus", "song.m4a"):
        content = (folder / name).read_bytes()
        web.files[f"/{name}"] = content[: len(content) // 2]
        with pytest.raises(UserError, match=rf"^{web.url}/{name}: .*cut off"):
            audio.read(place(f"{web.url}/{name}"), sample_rate=RATE, channels=2)
    web.files["/empty.wav"], web.files["/text.wav"] = b"", b"no audio" * 99
    for name, message in (("empty.wav", "empty, 0 bytes"), ("text.wav", "cannot be read as audio")):
        with pytest.raises(UserError, match=f"{name}: {message}"):
            audio.probe(place(f"{web.url}/{name}"))


def test_checking_a_song_costs_three_requests_and_reading_it_few(tmp_path, web):
    soundfile.write(tmp_path / "a.wav", np.zeros((60 * RATE, 2)), RATE)
    web.files["/a.wav"] = (tmp_path / "a.wav").read_bytes()
    audio.probe(place(f"{web.url}/a.wav"))
    assert [method for method, *_ in web.requests] == ["HEAD", "GET", "GET"]
    web.requests.clear()
    for _ in audio.stream(place(f"{web.url}/a.wav"), sample_rate=RATE, channels=2):
        pass
    assert [method for method, *_ in web.requests] == ["HEAD", *["GET"] * 6]


# What goes wrong in the middle


@pytest.mark.parametrize("name", ["song.wav", "song.flac", "song.ogg", "song.mp3", "song.m4a", "song.opus"])
def test_an_error_in_the_middle_of_a_song_is_not_lost(name, folder, web, network, capfd):
    """libsndfile would take it for the end of the song, and cffi print a traceback."""
    network.setattr(streams, "FIRST", 1 << 14)
    network.setattr(streams, "LARGEST", 1 << 14)
    web.files[f"/{name}"] = (folder / name).read_bytes()
    url, found = place(f"{web.url}/{name}"), []

    def read() -> None:
        for block in audio.stream(url, sample_rate=RATE, channels=2, block=1 << 12):
            found.append(block)
            web.broken = 500

    with pytest.raises(UserError, match=f"^{url}: cannot be read .the server answers 500"):
        read()
    whole = audio.read(folder / name, sample_rate=RATE, channels=2)
    got = torch.cat(found, 1)
    assert got.shape[1] > 0
    assert torch.equal(got, whole[:, : got.shape[1]])
    assert "Traceback" not in capfd.readouterr().err


class Ring(BaseException):
    """What a handler of a signal raises, as that of Ctrl-C does."""


@pytest.mark.parametrize(("name", "method"), [("song.flac", "readinto"), ("song.mp3", "read")])
@pytest.mark.parametrize("call", [0, 9])
def test_a_signal_is_not_lost(name, method, call, folder, web, monkeypatch, capfd):
    """Python would run its handler in whatever line the main thread comes to: one that libsndfile or FFmpeg called."""

    def ring(*_: object) -> None:
        raise Ring

    def called(self: remote.Callbacks, wanted: object) -> object:
        if next(calls) == call:
            signal.raise_signal(signal.SIGALRM)
        return read(self, wanted)

    read, calls = getattr(remote.Callbacks, method), itertools.count()
    signal.signal(signal.SIGALRM, ring)
    monkeypatch.setattr(remote.Callbacks, method, called)
    web.files[f"/{name}"] = (folder / name).read_bytes()
    with pytest.raises(Ring):
        audio.read(place(f"{web.url}/{name}"), sample_rate=RATE, channels=2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert "Ring" not in capfd.readouterr().err


# The cache


def contents(folder: Path) -> list[bytes]:
    """Of all entries, without the header, which has the time of writing."""
    found = [(path, entries.look(path)) for path in folder.glob("*/*.stft")]
    parts = []
    for _, entry in found:
        records = np.empty((entry.header.count, entry.header.kind.record), np.uint8)
        entry.read(0, records)
        parts.append(records.tobytes())
    return sorted(parts)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_read_after_their_parent_has(workers, folder, s3_web, web, tmp_path):
    """A forked process has none of its parent's threads, on one of which fsspec's connections live."""
    names = ["song.wav", "song.flac", "song.mp3"]
    web.files.update({f"/songs/{name}": (folder / name).read_bytes() for name in names})
    urls = [place(f"s3://songs/{names[0]}"), *(place(f"{web.url}/songs/{name}") for name in names)]
    begun = time.monotonic()
    for kind, paths in (("remote", urls), ("local", [folder / names[0], *(folder / name for name in names)])):
        lengths = {(Cell(path),): audio.probe(path).seconds for path in paths}
        assert Cache(tmp_path / kind, SETTINGS, storage.by_name("half")).build(lengths, workers=workers) == {}
    remote, local = contents(tmp_path / "remote"), contents(tmp_path / "local")
    assert set(remote) == set(local)
    assert len(remote) == 4
    direct = Direct(SETTINGS, True)  # and the parent after them
    first, *others = [direct.crop((Cell(path),), 100, 16) for path in (folder / names[0], *urls[:2])]
    assert all(torch.equal(other, first) for other in others)
    assert time.monotonic() - begun < 15


def test_an_entry_is_named_after_the_object_and_not_after_its_signature(web):
    web.files["/a.wav"] = b"one"
    one, two = (place(f"{web.url}/a.wav?X-Amz-Signature={key}") for key in ("secret", "another"))
    assert fingerprint(one) == fingerprint(two) == fingerprint_now(one)
    assert {method for method, *_ in web.requests} == {"HEAD"}
    web.files["/a.wav"] = b"two"
    assert fingerprint(one) != fingerprint_now(one) == fingerprint_now(two)


def test_an_object_that_is_replaced_while_it_is_read_makes_no_entry(folder, web, tmp_path, monkeypatch):
    web.files["/a.wav"] = (folder / "song.wav").read_bytes()
    song, stream = (Cell(place(f"{web.url}/a.wav")),), signals.stream

    def changing(*arguments):
        for block in stream(*arguments):
            web.files["/a.wav"] = web.files["/a.wav"][:-2] + b"xy"
            yield block

    monkeypatch.setattr(signals, "stream", changing)
    failed = Cache(tmp_path, SETTINGS, storage.by_name("half")).build({song: 5.0}, workers=0)
    assert failed[song] == f"{web.url}/a.wav: changed since this run began. Leave songs alone while it runs."
    assert contents(tmp_path) == []


# The index


def write_csv(path: Path, *cells: str) -> Path:
    path.write_text("\n".join(["vocals_path", *cells]) + "\n", encoding="utf-8")
    return path


def test_an_index_mixes_urls_and_files(folder, s3_web, tmp_path):
    for name in ("song.wav", "song.flac"):
        s3_web.files[f"/songs/sub/{name}"] = (folder / name).read_bytes()
    cells = [
        "song.wav",
        "s3://songs/sub/song.flac#channel=1",
        str(folder / "song.mp3"),
        f"{s3_web.url}/songs/sub/song.wav",
    ]
    csv = write_csv(tmp_path / "train.csv", *cells)
    s3_web.files["/songs/sub/train.csv"] = csv.read_bytes()
    url = place("s3://songs/sub/train.csv")
    for source in (csv, url):
        checked = index.check(index.read(source, url.parent), ["vocals"], {})
        assert [track.duration for track in checked.tracks] == pytest.approx([5.0] * 4, abs=0.06)
        index.write(checked, tmp_path / "again.csv")
        assert [track.stems for track in index.read(tmp_path / "again.csv", url.parent).tracks] == [
            track.stems for track in checked.tracks
        ]
        assert "\nsong (2),song.wav," in (tmp_path / "again.csv").read_text()


def test_all_problems_of_cells_come_at_once(folder, web, tmp_path):
    web.files["/song.wav"] = (folder / "song.wav").read_bytes()
    cells = [f"{web.url}/song.wav", f"{web.url}/none.wav", "file:///etc/passwd", "simplecache::s3://b/x", "here.wav"]
    with pytest.raises(UserError) as caught:
        index.check(index.read(write_csv(tmp_path / "train.csv", *cells), tmp_path), ["vocals"], {})
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for part in (
        "row 4: file://…: not a URL",
        "row 5: simplecache::s3://…: not",
        "none.wav: no such file",
        "here.wav: no",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("problem", ["missing", "refused"])
def test_a_wrong_root_is_one_message(problem, s3_web, tmp_path):
    s3_web.broken = 404 if problem == "missing" else 403
    csv = write_csv(tmp_path / "train.csv", *(f"{number}.wav" for number in range(50)))
    expected = "none of the 50 files is there" if problem == "missing" else "access is denied"
    with pytest.raises(UserError, match=expected) as caught:
        index.check(index.read(csv, place("s3://songs/folder")), ["vocals"], {})
    assert len(str(caught.value).splitlines()) <= 2


# The commands


@pytest.fixture
def bucket(s3, songs) -> str:
    """The six songs of `songs` and their index CSVs, on S3."""
    return s3.put_folder(songs, "six songs")


def test_training_from_s3_equals_training_from_the_disk(bucket, train, stemwise, monkeypatch, tmp_path):
    monkeypatch.setattr("stemwise.cache.entries.now", lambda: 10**9)
    assert train("data.cache=local", "hydra.run.dir=one").code == 0
    remote = [f"data.{split}='{bucket}/{split}.csv'" for split in ("train", "valid", "test")]
    done = train("data.root=null", "data.cache=remote", "hydra.run.dir=two", *remote)
    assert done.code == 0, done.output
    assert contents(Path("local")) == contents(Path("remote"))
    one, two = (model_file.load(Path(run, "model.safetensors")).state_dict() for run in ("one", "two"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    written = index.read(Path("two/index/train.csv"), place(bucket))
    assert [track.stems for track in written.tracks] == [
        track.stems for track in index.read(place(f"{bucket}/train.csv"), place(bucket)).tracks
    ]


def test_a_record_has_marks_of_the_store_and_reproduce_compares_them(bucket, train, stemwise, s3, network):
    remote = [f"data.{split}='{bucket}/{split}.csv'" for split in ("train", "valid", "test")]
    assert train("data.root=null", "trainer.max_steps=1", *remote).code == 0
    known = json.loads(Path("run/provenance.json").read_text())["index"]["train"]
    assert known["root"] == bucket
    file = known["files"]["Song 0/vocals.wav"]
    assert (file["sha256"], file["changed"]) == (None, None)
    assert len(file["token"]) == 32
    done = stemwise("reproduce", "run")
    assert done.code == 0, done.output
    assert f"{bucket}/train.csv" in done.output.splitlines()[0]
    s3.put("six songs/Song 0/vocals.wav", bytes(file["size"]))
    s3.client.delete_object(Bucket="songs", Key="six songs/Song 1/bass.wav")
    stores.forget()
    done = stemwise("reproduce", "run")
    assert done.code == 1
    assert f"train: Song 0/vocals.wav: {file['size']} bytes, ETag {file['token']} → {file['size']} bytes" in done.output
    assert "train: Song 1/bass.wav" in done.output
    assert "→ gone" in done.output

    def denies(_):
        raise UserError("s3://songs: access is denied.")

    network.setattr(stores, "existing", denies)
    done = stemwise("reproduce", "run")
    assert done.code == 1
    assert "train: the files: as recorded → s3://songs: access is denied." in done.output


def test_building_the_cache_from_a_web_server(songs, web, stemwise):
    for path in songs.rglob("*.*"):
        web.files[f"/six songs/{path.relative_to(songs)}"] = path.read_bytes()
    keys = [f"data.{split}={songs}/{split}.csv" for split in ("train", "valid")]
    done = stemwise("cache", "build", "data=csv", *keys, f"data.root='{web.url}/six songs'", *TINY, "data.cache=cache")
    assert done.code == 0, done.output
    assert "spectrograms are there" in done.output
    web.broken = 500
    done = stemwise("cache", "build", "data=csv", *keys, f"data.root='{web.url}/six songs'", *TINY, "data.cache=none")
    assert (done.code, done.output.count("the server answers 500")) == (2, 1)


def test_no_credentials_are_left_anywhere(songs, web, train, tmp_path):
    for path in songs.rglob("*.wav"):
        web.files[f"/{path.relative_to(songs)}"] = path.read_bytes()
    address = web.url.replace("//", "//me:pa55word@")
    for split in ("train", "valid"):
        cells = sorted(path.relative_to(songs).as_posix() for path in songs.glob("Song */vocals.wav"))
        signed = [f"{address}/{cell}?X-Amz-Signature=51gned&token=t0ken" for cell in cells]
        (tmp_path / f"{split}.csv").write_text("\n".join(["vocals_path", *signed]))
    keys = [f"data.{split}={tmp_path}/{split}.csv" for split in ("train", "valid")]
    done = train("data.root=null", "stems=1", "data.cache=cache", "trainer.max_steps=1", *keys)
    assert done.code == 0, done.output
    web.broken = 403
    failed = train("data.root=null", "stems=1", "data.cache=other", "hydra.run.dir=second", *keys)
    assert failed.code == 2
    assert "access is denied" in failed.output
    for path in (tmp_path / f"{split}.csv" for split in ("train", "valid")):
        path.unlink()
    everything = done.output.encode() + failed.output.encode()
    everything += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert web.host.encode() in everything
    for secret in (b"pa55word", b"51gned", b"t0ken"):
        assert secret not in everything


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("data.train='https://me:pa55word@host/train.csv'", "data.train=https://host/train.csv: a URL with a password"),
        ("data.root='https://host/songs?token=pa55word'", "data.root=https://host/songs"),
        ("data.cache=s3://bucket/cache", "data.cache=s3://bucket/cache is not a folder of this machine"),
        ("data.train=ftp://host/train.csv", "ftp://…: not a URL that is read here"),
    ],
)
def test_urls_that_a_config_must_not_have(key, message, train, tmp_path):
    done = train(key)
    assert done.code == 2
    assert f"error: {message}" in done.output
    assert "pa55word" not in done.output
    assert not any(b"pa55word" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_what_looks_for_songs_in_folders_says_so(train, stemwise):
    done = train("data=folders", "data.root=s3://songs/x", "data.train=null", "data.valid=null")
    assert done.code == 2
    assert "only songs that are listed in CSVs may lie behind a URL" in done.output
    done = stemwise("index", "folders", "s3://songs/x", "-o", "out")
    assert done.code == 2
    assert "only folders of this machine can be listed" in done.output


ASKS = """
import sys
from stemwise import audio
from stemwise.files.places import place
print("asks", flush=True)
try:
    audio.probe(place(f"{sys.argv[1]}/a.wav"))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_waits_for_no_server_that_is_silent(network):
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", ASKS, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "asks\n"
            silent.accept()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors


def test_no_thread_is_left(folder, web):
    web.files["/song.wav"] = (folder / "song.wav").read_bytes()
    before = {*threading.enumerate()}
    stream = audio.stream(place(f"{web.url}/song.wav"), sample_rate=RATE, channels=2)
    next(stream)
    stream.close()
    end = time.monotonic() + 10
    while (left := pools() - before) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left


def pools() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}
