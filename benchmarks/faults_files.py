"""Faults of what lies on disks: full ones, the cache, the songs."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faults_ground import LAST, STEMS, Command, Ground, Trial, Unexpected, contents, missing_values

DIRECT = ("data.cache=null",)
MEGABYTE = 1 << 20


# Full disks


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, so that it can be filled."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
    except (OSError, subprocess.CalledProcessError):
        raise Unexpected("not done: to mount a file system takes root") from None
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Takes all of its room; returns the file that has it."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(MEGABYTE))
    return path


def full_for_a_while(ground: Ground, number: int) -> Trial:
    """Checkpoints and the log fail, training goes on, and a later checkpoint is written."""
    with small_disk(ground.folder / f"full{number}", 20) as disk:
        run = f"{disk.name}/run"
        command = ground.train(run)
        command.until((disk / "run" / LAST).exists)
        filler = fill(disk)
        command.until(lambda: "not written (No space left on device)" in command.text)
        filler.unlink()
        seconds = command.end(0)
        trial = ground.compared(run)
        values = f"{missing_values(ground.clean(), disk / 'run')} logged values"
        if values in trial.wrong and "Training goes on without this logger" in command.text:
            trial.wrong.remove(values)
            trial.lost = f"{values}, with a warning"
        trial.seconds = seconds
        trial.wrong += [*one_message(command, "the disk is full", 0), *command.orphans()]
    return trial


def full_to_the_end(ground: Ground, number: int) -> Trial:
    """One message; with room again, the run goes on from its last checkpoint."""
    with small_disk(ground.folder / f"fuller{number}", 20) as disk:
        run = f"{disk.name}/run"
        command = ground.train(run)
        command.until((disk / "run" / LAST).exists)
        filler = fill(disk)
        seconds = command.end(2)
        wrong = [*one_message(command, "No space left on device"), *command.orphans()]
        filler.unlink()
        trial = ground.goes_on(run)
    return Trial([*wrong, *trial.wrong], again=trial.again, seconds=seconds)


def full_in_a_build(ground: Ground, number: int) -> Trial:
    """One message, no half entry; with room again, the build goes on."""
    with small_disk(ground.folder / f"fullbuild{number}", 512) as disk:
        cache = disk / "cache"
        command = ground.build(f"{disk.name}/cache")
        command.until(lambda: any(cache.glob("*/*.stft")))
        filler = fill(disk)
        seconds = command.end(2)
        wrong = [*one_message(command, "the spectrogram cannot be written"), *command.orphans()]
        there = contents(cache)
        filler.unlink()
        ground.build(f"{disk.name}/cache").end(0)
        wrong += [] if contents(cache) == ground.built[0] else ["the cache is another"]
    return Trial(wrong, again=len(ground.built[0]) - len(there), seconds=seconds)


# The cache


def cache_removed(ground: Ground, number: int) -> Trial:
    run, cache = f"uncached{number}", _own_cache(ground, f"uncached{number}-cache")
    command = ground.train(run, f"data.cache={cache}")
    command.until((ground.folder / run / LAST).exists)
    remove(cache)
    return _recovered(ground, command, run, "was computed anew")


def bits_flipped_under_way(ground: Ground, number: int) -> Trial:
    run, cache = f"flipped{number}", _own_cache(ground, f"flipped{number}-cache")
    command = ground.train(run, f"data.cache={cache}")
    command.until((ground.folder / run / LAST).exists)
    _flip(ground, cache)
    return _recovered(ground, command, run, "was computed anew", cache)


def bits_flipped_before(ground: Ground, number: int) -> Trial:
    """As a file that was copied badly."""
    run, cache = f"badcopy{number}", _own_cache(ground, f"badcopy{number}-cache")
    _flip(ground, cache)
    return _recovered(
        ground, ground.train(run, f"data.cache={cache}"), run, "cache entry is broken (its checksum is wrong)", cache
    )


def bits_flipped_quietly(ground: Ground, number: int) -> Trial:
    """As by a disk: with the same time of change."""
    run, cache = f"quiet{number}", _own_cache(ground, f"quiet{number}-cache")
    times = {path: path.stat() for path in cache.glob("*/*.stft")}
    _flip(ground, cache)
    for path, known in times.items():
        os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    command = ground.train(run, f"data.cache={cache}", "data.verify=true")
    return _recovered(ground, command, run, "cache entry is broken (its checksum is wrong)", cache)


def remove(folder: Path) -> None:
    """At once: while it goes entry by entry, the run would write new ones into it."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_suffix(".removed")))


def _own_cache(ground: Ground, name: str) -> Path:
    ground.clean()  # has filled it
    return ground.copy("cache", name)


def _flip(ground: Ground, cache: Path) -> None:
    """One bit of each entry's records, anywhere."""
    for path in sorted(cache.glob("*/*.stft")):
        content = bytearray(path.read_bytes())
        content[ground.draw.randrange(4096, len(content))] ^= 1 << ground.draw.randrange(8)
        path.write_bytes(content)


def _recovered(ground: Ground, command: Command, run: str, message: str, cache: Path | None = None) -> Trial:
    """The run ends as the clean one, says what it did, and the entries that it read are sound."""
    command.struck_now()
    seconds = command.end(0)
    trial = ground.compared(run)
    trial.seconds = seconds
    trial.wrong += command.orphans()
    if message not in command.text:
        trial.wrong.append(f"not said: {message}")
    if cache is not None and contents(cache) != contents(ground.folder / "cache"):
        trial.wrong.append("the cache is another")
    return trial


# The songs


def song_removed(ground: Ground, number: int) -> Trial:
    """One message that names it; with the song back, the run goes on."""
    return _songs_damaged(ground, f"removed{number}", Path.unlink, "no such file")


def song_cut_off(ground: Ground, number: int) -> Trial:
    return _songs_damaged(ground, f"cut{number}", lambda path: os.truncate(path, 20000), "")


def song_changed(ground: Ground, number: int) -> Trial:
    """To another recording of the same length."""
    return _songs_damaged(
        ground, f"changed{number}", lambda path: path.write_bytes(_backwards(path)), "changed since this run began"
    )


def song_and_cache_gone(ground: Ground, number: int) -> Trial:
    """The songs are others and their entries are not there: neither may pass for those that the run began with."""
    name = f"both{number}"
    cache = _own_cache(ground, f"{name}-cache")

    def damage(path: Path) -> None:
        path.write_bytes(_backwards(path))
        if path == _recordings(ground, f"{name}-songs/songs")[-1]:
            remove(cache)

    return _songs_damaged(ground, name, damage, "changed since this run began", (f"data.cache={cache}",), ())


def song_not_needed(ground: Ground, number: int) -> Trial:
    """Training songs are gone and the cache is whole: nothing happens."""
    run, songs = f"unneeded{number}", _own_songs(ground, f"unneeded{number}-songs")
    command = ground.train(run, songs=songs)
    command.until((ground.folder / run / LAST).exists)
    for path in _recordings(ground, songs):
        path.unlink()
    return _recovered(ground, command, run, "")


def _songs_damaged(
    ground: Ground,
    name: str,
    damage: Callable[[Path], object],
    message: str,
    keys: tuple[str, ...] = DIRECT,
    like: tuple[str, ...] = DIRECT,
) -> Trial:
    songs = _own_songs(ground, f"{name}-songs")
    command = ground.train(name, *keys, songs=songs)
    command.until((ground.folder / name / LAST).exists)
    for path in _recordings(ground, songs):
        damage(path)
    command.struck_now()
    seconds = command.end(2)
    wrong = [*one_message(command, message), *command.orphans()]
    wrong += [] if f"-{STEMS[0]}.wav" in command.text else ["the song is not named"]
    for path in _recordings(ground, "songs"):
        shutil.copy2(path, ground.folder / songs)
    own = [key for key in keys if key not in like]
    trial = ground.goes_on(name, *own, like=like, songs=songs)
    return Trial([*wrong, *trial.wrong], again=trial.again, seconds=seconds)


def _own_songs(ground: Ground, name: str) -> str:
    # In a folder called as that of the clean run, which the cache's names go by.
    (ground.folder / name).mkdir()
    ground.copy("songs", f"{name}/songs")
    return f"{name}/songs"


def _recordings(ground: Ground, songs: str) -> list[Path]:
    """Of the songs that are trained on."""
    return [ground.folder / songs / f"{song}-{STEMS[0]}.wav" for song in range(4)]


def _backwards(path: Path) -> bytes:
    content = path.read_bytes()
    return content[:44] + content[:43:-1]


def one_message(command: Command, expected: str, count: int = 1) -> list[str]:
    """What is wrong with what a command said as it ended: one error, in words."""
    said = len(re.findall("^error: ", command.text, re.MULTILINE))
    wrong = [] if said == count else [f"{said} messages"]
    wrong += ["a traceback"] if "Traceback" in command.text else []
    return wrong if count == 0 or expected in command.text else [*wrong, f"not said: {expected}"]
