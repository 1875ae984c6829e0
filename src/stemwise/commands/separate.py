"""`stemwise separate`."""

import argparse
import sys
import time
from pathlib import Path

from stemwise.errors import UserError

PATTERN = "{filename}/{instrument}.{codec}"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "separate",
        help="take songs apart",
        description="Writes one file per stem of each song, as long as the song and at its sample rate.",
        epilog="example: stemwise separate 'My Song.mp3' --model runs/RUN/model.safetensors -o out",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a song: WAV, FLAC, MP3, OGG, M4A, MP4…")
    parser.add_argument("--model", required=True, type=Path, metavar="M", help="a run's model.safetensors, or a .ckpt")
    parser.add_argument(
        "-o", "--output", default=Path("separated"), type=Path, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "-f",
        "--filename-format",
        default=PATTERN,
        metavar="PATTERN",
        help="where a stem goes below DIR; fields: filename, instrument, foldername, codec (default: %(default)s)",
    )
    parser.add_argument("-c", "--codec", default="wav", choices=("wav", "flac"), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1… (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from stemwise import model_file, separation

    model = model_file.load(options.model, separation.device(options.device))
    places = separation.plan(options.files, options.output, model.stems, options.filename_format, options.codec)
    _make(options.output)
    failed = 0
    for path, targets in zip(options.files, places, strict=True):
        start = time.monotonic()
        try:
            clipped = separation.separate_file(model, path, targets, codec=options.codec)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        print(f"{path.name}: {', '.join(model.stems)} in {time.monotonic() - start:.1f} s")
        print("\n".join(f"  {target}" for target in targets))
        if clipped:
            print(f"  {clipped} {'sample' if clipped == 1 else 'samples'} past full scale were clipped")
    if failed:
        print(f"{failed} of {len(options.files)} songs failed.", file=sys.stderr)
    if failed == len(options.files):
        return 2
    return 1 if failed else 0


def _make(folder: Path) -> None:
    """Makes the folder now, because a song takes minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {folder}: cannot be written ({error.strerror}). Choose another folder.") from None
