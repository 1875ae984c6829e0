"""`stemwise separate SONG… --model M`: songs in, files of stems out."""

import argparse
import dataclasses
import datetime
import gc
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stemwise import naming
from stemwise.commands import song_pages, streams
from stemwise.commands.streams import say
from stemwise.errors import UserError, raise_all

if TYPE_CHECKING:
    from stemwise.codecs.formats import Format
    from stemwise.separation import Wish
    from stemwise.separator import Separator

CODECS = ("wav", "flac", "mp3", "ogg", "m4a", "opus")  # formats.CODECS, without the second it takes to import
CLIPS = ("clamp", "rescale", "float")  # separation.CLIPS
EXTENSIONS = ("zeros", "average", "top")  # masks.EXTENSIONS
LONGEST_WINDOW = 600  # seconds
PRECISIONS = ("float32", "bfloat16", "float16")

EPILOG = """examples:
  stemwise separate 'My Song.mp3' --model spleeter:4stems -o stems
  stemwise separate Album/ 'live/*.flac' --model runs/RUN/model.safetensors --codec mp3 --bitrate 320k
  stemwise separate song.wav --model spleeter:2stems --two-stems vocals      # karaoke: no_vocals.wav
  stemwise separate song.mp3 --model spleeter:4stems --report      # to listen: separated/song/report.html
  ffmpeg -i talk.mkv -f wav - | stemwise separate - --model M --stems vocals -o - > vocals.wav
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "separate",
        help="take songs apart",
        description="Writes one file per stem of each song, as long as the song, at its sample rate and with its tags.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="songs or videos, folders of them, glob patterns; - is standard input"
    )
    parser.add_argument(
        "-m", "--model", required=True, metavar="M", help="spleeter:2stems, 4stems, 5stems, each also -16kHz; or a file"
    )
    _add_choice(parser.add_argument_group("what to write"))
    _add_form(parser.add_argument_group("how to write it"))
    _add_place(parser.add_argument_group("where to write it"))
    _add_work(parser.add_argument_group("how to compute it"))
    parser.set_defaults(run=run)


def _add_choice(group: "argparse._ArgumentGroup") -> None:
    either = group.add_mutually_exclusive_group()
    either.add_argument("--stems", metavar="A,B", help="only these stems")
    either.add_argument("--two-stems", metavar="STEM", help="this stem, and as no_STEM the rest of the mixture")
    group.add_argument(
        "--report", action="store_true", help="also a page to hear and see all of them in a browser: report.html"
    )
    group.add_argument("--residual", action="store_true", help="also what no stem claims, as residual")
    group.add_argument("-s", "--offset", type=float, default=0.0, metavar="S", help="begin at this second")
    group.add_argument("-d", "--duration", type=float, metavar="S", help="take this many seconds (default: all)")


def _add_form(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("-c", "--codec", default="wav", choices=CODECS, help=f"{', '.join(CODECS)} (default: wav)")
    group.add_argument("-b", "--bitrate", metavar="RATE", help="of a lossy codec: 128k, 320k…")
    group.add_argument("--bit-depth", metavar="BITS", help="of wav and flac: 16, 24, or float in wav (default: 16)")
    group.add_argument(
        "--sample-rate", type=int, metavar="HZ", help="default: the song's, or the nearest that the codec has"
    )
    group.add_argument(
        "--clip",
        choices=CLIPS,
        help="samples past full scale: clamp them, rescale all stems of the song alike, or keep them in floating "
        "point (default: clamp, and float with --bit-depth float)",
    )


def _add_place(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "-o",
        "--output",
        default="separated",
        metavar="DIR",
        help="folder (default: %(default)s), or - for standard output of one stem",
    )
    group.add_argument(
        "-f",
        "--filename-format",
        default=naming.PATTERN,
        metavar="PATTERN",
        help="below DIR; fields: filename, instrument, foldername, codec (default: %(default)s)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace stems that exist; without it only those that are missing are made",
    )


def _add_work(group: "argparse._ArgumentGroup") -> None:
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--mwf", action="store_true", help="multichannel Wiener filtering (Spleeter's), in two passes over the song"
    )
    either.add_argument(
        "--mwf-window",
        type=float,
        metavar="S",
        help=f"the same in one pass, over windows of about S seconds, at most {LONGEST_WINDOW}; a minute of 4 stems "
        "takes 0.2 GB of memory",
    )
    group.add_argument(
        "--mask-extension",
        choices=EXTENSIONS,
        help="above the model's band: zeros drops what is there, average shares it by the mean of the mask (both "
        "Spleeter's), top by the mean of the band's top quarter (default: as the model says)",
    )
    group.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="of a window that it has in common with the next, 0 to 0.9: the joins are better, and it takes 1 / (1 - "
        "SHARE) of the time (default: as the model says, which is 0 unless it was trained otherwise)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1… (default: the GPU if there is one)")
    group.add_argument(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help="of the networks; bfloat16 is faster on processors and GPUs that have it, and cost 0.004 dB of SDR "
        "where it was measured; float16 0.0002 dB (default: float32, exact)",
    )


@dataclass(frozen=True)
class Job:
    """What is done to every song."""

    model: "Separator"
    wish: "Wish"
    form: "Format"
    overwrite: bool
    lists: bool  # whether the names of the stems go to standard output
    called: str  # the model, by the user's name for it
    key: str  # of what a report shows: the model and the wish; empty if none is to be made


def run(options: argparse.Namespace) -> int:
    """Separates what `options` name; returns 0, or 1 if any song failed."""
    _import_libraries(options)
    form, wish = _form(options), _wish(options)
    found = naming.songs(options.files, Path(options.output))
    if not found.songs:
        raise_all(found.problems, heading="no songs")
    model = _model(options)
    wish = _completed(wish, options, model)
    if options.sample_rate is not None:
        form.check(options.sample_rate, model.spectrogram.channels)
    names = wish.names(model)
    to_stdout = options.output == naming.STREAM
    if to_stdout and options.report:
        raise UserError("--report: standard output takes one stem and no page. Leave it out, or name a folder with -o.")
    with streams.folder_of(options.output, found.songs, names) as folder:
        places = naming.plan(found.songs, folder, names, options.filename_format, options.codec)
        pages = [naming.page(song, folder, options.filename_format) for song in found.songs]
        _make(folder)
        for problem in found.problems:
            say(f"error: {problem}")
        key = song_pages.key(options.model, model, wish) if options.report else ""
        job = Job(model, wish, form, options.overwrite, lists=not to_stdout, called=options.model, key=key)
        failed = _all(job, found.songs, places, pages) + len(found.problems)
        if to_stdout and not failed:
            streams.send(places[0][0])
    return 1 if failed else 0


def _import_libraries(options: argparse.Namespace) -> None:
    """Imports all that a song needs, before its files are begun: an interrupt in the middle of an import can get lost.

    Nothing of it is garbage. Python would look for some as it imports and once more as it exits, for 0.2 s.
    """
    gc.disable()
    from stemwise import model_file, pretrained, process, separation  # noqa: F401

    if options.report:
        from stemwise.report import song_page  # noqa: F401
    gc.freeze()
    gc.enable()
    process.prepare()


def _form(options: argparse.Namespace) -> "Format":
    from stemwise.codecs import formats

    bitrate = None if options.bitrate is None else formats.bitrate(options.bitrate)
    depth = options.bit_depth
    if options.clip == "float" and options.codec == "wav" and depth is None:
        depth = "float"
    form = formats.Format(options.codec, depth, bitrate)
    if options.clip == "clamp" and depth == "float":
        raise UserError("--clip clamp: floating point keeps what is past full scale. Leave one out, or rescale.")
    if options.clip == "float" and (options.codec == "flac" or depth in ("16", "24")):
        raise UserError(f"--clip float: {options.codec} of {depth or 16} bits ends at full scale. Use --codec wav.")
    return form


def _wish(options: argparse.Namespace) -> "Wish":
    from stemwise import crossfade
    from stemwise.separation import Wish

    stems = None if options.stems is None else tuple(name.strip() for name in options.stems.split(",") if name.strip())
    if stems is not None and (not stems or len({*stems}) < len(stems)):
        raise UserError(f"--stems {options.stems!r}: name stems, each once: --stems vocals,drums.")
    if not 0 <= options.offset < float("inf"):
        raise UserError(f"--offset {options.offset:g}: not a number of seconds from 0 on.")
    if options.duration is not None and not 0 < options.duration < float("inf"):
        raise UserError(f"--duration {options.duration:g}: not a number of seconds above 0.")
    if options.mask_extension is not None and (options.mwf or options.mwf_window is not None):
        raise UserError("--mask-extension: a Wiener filter has no masks, and nothing above the band. Leave one out.")
    if options.overlap is not None:
        crossfade.check(options.overlap, "--overlap ")
    return Wish(
        stems=stems,
        two_stems=options.two_stems,
        residual=options.residual,
        offset=options.offset,
        duration=options.duration,
        sample_rate=options.sample_rate,
        clip=options.clip or ("float" if options.bit_depth == "float" else "clamp"),
    )


def _completed(wish: "Wish", options: argparse.Namespace, model: "Separator") -> "Wish":
    """The wish with its Wiener filter, for the model knows its pieces: as many as make up the seconds, at least one."""
    if options.mwf_window is None:
        return dataclasses.replace(wish, wiener=0 if options.mwf else None)
    if not 0 < options.mwf_window <= LONGEST_WINDOW:
        raise UserError(f"--mwf-window {options.mwf_window:g}: not a number of seconds in (0, {LONGEST_WINDOW}].")
    seconds = model.step * model.spectrogram.hop / model.spectrogram.sample_rate
    return dataclasses.replace(wish, wiener=max(1, round(options.mwf_window / seconds)))


def _model(options: argparse.Namespace) -> "Separator":
    import torch

    from stemwise import model_file, pretrained, separation

    device = separation.device(options.device)
    model = model_file.load(pretrained.path(options.model), device)
    model.lower(getattr(torch, options.precision))
    if options.mask_extension is not None:
        model.mask = dataclasses.replace(model.mask, extension=options.mask_extension)
    if options.overlap is not None:
        model.overlap = options.overlap
    return model


def _make(folder: Path) -> None:
    """Makes the folder now, because a song takes minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {folder}: cannot be written ({error.strerror}). Choose another folder.") from None


def _all(job: Job, songs: Sequence[Path], places: Sequence[Sequence[Path]], pages: Sequence[Path]) -> int:
    """Separates song after song, says what became of each, and returns how many failed."""
    failed = kept = 0
    seconds, start = 0.0, time.monotonic()
    for path, targets, beside in zip(songs, places, pages, strict=True):
        wanted = [None if not job.overwrite and os.path.exists(target) else target for target in targets]
        page = beside if job.key else None
        if page and not job.overwrite and os.path.exists(page):
            song_pages.keep(page, job.key, _name(path))
            page = None
        try:
            if not any(wanted) and not page and path != naming.STDIN:
                say(f"{_name(path)}: its stems are there; --overwrite replaces them")
                kept += 1
                continue
            seconds += _one(job, path, wanted, page)
            if job.overwrite and not page:
                song_pages.outdated(beside, _name(path))
        except UserError as error:
            say(f"error: {error}")
            failed += 1
            continue
        if job.lists:
            streams.list_files([target for target in wanted if target is not None])
    if len(songs) > 1:
        say(_summary(len(songs), failed, kept, seconds, time.monotonic() - start))
    return failed


def _one(job: Job, path: Path, targets: Sequence[Path | None], page: Path | None) -> float:
    """Separates one song, says how it went, and returns its length in seconds."""
    from stemwise import separation

    names = job.wish.names(job.model)
    if there := [name for name, target in zip(names, targets, strict=True) if target is None]:
        if path == naming.STDIN:  # whose songs are all called alike
            raise UserError(f"standard input: {', '.join(there)} are there already. Choose -o, or --overwrite.")
        say(f"{_name(path)}: keeps {', '.join(there)}; --overwrite replaces what is there")
    start = time.monotonic()
    report = song_pages.prepared(page, _title(path), names, job.called, job.key, there) if page else None
    with streams.seekable(path) as song:
        done = separation.separate_file(job.model, song, targets, wish=job.wish, form=job.form, page=report)
    took = time.monotonic() - start
    say(f"{_name(path)}: {done.seconds:.1f} s in {took:.1f} s, {done.seconds / took:.0f} x real time")
    if done.sample_rate != (job.wish.sample_rate or done.song_rate):
        say(f"  {job.form.codec} has no {done.song_rate} Hz: the stems have {done.sample_rate} Hz")
    if done.clamped:
        count = "1 sample" if done.clamped == 1 else f"{done.clamped} samples"
        say(f"  {count} past full scale were clipped; --clip rescale would lower all stems instead")
    if done.gain < 1:
        say(f"  all stems were lowered by {-20 * math.log10(done.gain):.2f} dB to fit full scale")
    if page:
        say(f"  to listen, open {page} in a browser")
    return done.seconds


def _title(path: Path) -> str:
    return _name(path) if path == naming.STDIN else path.stem


def _name(path: Path) -> str:
    return "standard input" if path == naming.STDIN else path.name


def _summary(songs: int, failed: int, kept: int, seconds: float, took: float) -> str:
    parts = [f"{songs - failed - kept} separated ({_clock(seconds)} of music in {_clock(took)})"]
    parts += [f"{kept} kept"] if kept else []
    parts += [f"{failed} failed"] if failed else []
    return f"{songs} songs: {', '.join(parts)}"


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
