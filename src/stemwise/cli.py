"""The `stemwise` command: `train` and `evaluate` are Hydra's, `separate` and `index` take files.

Song names with brackets, commas or quotes are no Hydra values, so what takes files is not a Hydra command.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

from stemwise import __version__
from stemwise.errors import UserError

HYDRA_COMMANDS = ("train", "evaluate")
PATTERN = "{filename}/{instrument}.{codec}"
DATASETS = ("demo", "folders", "mir1k", "musdb18")

DESCRIPTION = """Music source separation that you train yourself.

commands:
  stemwise train stems=4 data=musdb18      train a separator (Hydra: KEY=VALUE; --help lists the keys)
  stemwise evaluate checkpoint=M data=...  score it on held-out songs (Hydra)
  stemwise separate SONG.mp3 --model M     take a song apart
  stemwise index folders SONGS -o DIR      write the index CSVs of a data set
"""


def main() -> int:
    """Entry point of the console script.

    Returns the exit code: 0 done, 1 some songs failed, 2 wrong use, 130 interrupted.
    """
    arguments = sys.argv[1:]
    try:
        if arguments and arguments[0] in HYDRA_COMMANDS:
            return _hydra(arguments[0])
        options = _parser().parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        return int(options.run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _hydra(command: str) -> int:
    # Hydra reads sys.argv itself and would take the command's name for an override.
    del sys.argv[1]
    if command == "train":
        import train

        # Where there are several devices, Lightning starts what is named here once more for each of them.
        sys.argv[0] = train.__file__
        return train.main()
    from stemwise import evaluate

    return evaluate.main()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "stemwise", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"stemwise {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in HYDRA_COMMANDS:
        commands.add_parser(name, add_help=False, help="see above")
    _add_separate(commands)
    _add_index(commands)
    return parser


def _add_separate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
    parser.set_defaults(run=_separate)


def _separate(options: argparse.Namespace) -> int:
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


def _add_index(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "index",
        help="write the index CSVs of a data set",
        description="Writes train.csv, valid.csv and test.csv as `data=NAME` would use them: edit and share them, "
        "and train with data=csv data.root=ROOT data.train=DIR/train.csv data.valid=DIR/valid.csv.",
        epilog="example: stemwise index folders ~/multitracks -o my-index",
    )
    parser.add_argument("name", choices=DATASETS, metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument("root", type=Path, metavar="ROOT", help="the data set's folder")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="where the CSVs go")
    parser.set_defaults(run=_index)


def _index(options: argparse.Namespace) -> int:
    import importlib

    from stemwise import index

    dataset = importlib.import_module(f"stemwise.datasets.{options.name}")
    for split, found in dataset.find(options.root).items():
        if not found.tracks:
            print(f"{split}: no songs", file=sys.stderr)
            continue
        checked = index.check(found, found.columns, {})
        target = options.output / f"{split}.csv"
        index.write(checked, target)
        hours = sum(track.duration or 0.0 for track in checked.tracks) / 3600
        print(f"{target}: {len(checked.tracks)} songs, {hours:.2f} h, stems {', '.join(checked.columns)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
