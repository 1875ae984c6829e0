"""The `stemwise` command: `train`, `evaluate` and `cache build` are Hydra's, the others take files.

Song names with brackets, commas or quotes are no Hydra values, so what takes files is not a Hydra command.
"""

import argparse
import errno
import logging
import os
import signal
import sys

from stemwise import __version__
from stemwise.commands import cache, compare, convert, index, reproduce, separate
from stemwise.errors import UserError

HYDRA_COMMANDS = ("train", "evaluate", "cache build")

DESCRIPTION = """Music source separation that you train yourself.

commands:
  stemwise train stems=4 data=musdb18      train a separator (Hydra: KEY=VALUE; --help lists the keys)
  stemwise evaluate checkpoint=M data=...  score it on held-out songs (Hydra)
  stemwise compare EVAL EVAL               two evaluations, song by song, with intervals, to see and hear
  stemwise separate SONG.mp3 --model M     take a song apart; M is a run's model.safetensors, or spleeter:4stems
  stemwise convert spleeter DIR -o M       Spleeter's models in and out, ONNX, torch.export
  stemwise index folders SONGS -o DIR      write the index CSVs of a data set
  stemwise reproduce RUN                   the command that makes a run again, and what differs today
  stemwise cache info|verify|prune         look after the spectrogram cache; cache build fills it (Hydra)
"""


def main() -> int:
    """Entry point of the console script.

    Returns the exit code: 0 done, 1 some songs failed, 2 wrong use, 130 interrupted, 143 terminated, 129 hung up.
    """
    _prepare_streams()
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()  # while an error can still be told
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        return _output_lost(error)


def _run(arguments: list[str]) -> int:
    for command in HYDRA_COMMANDS:
        if arguments[: len(command.split())] == command.split():
            return _hydra(command)
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, _end)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return int(options.run(options))


def _prepare_streams() -> None:
    """Makes printing safe: a stream may be closed, and a song's name may be no UTF-8."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _end(number: int, _: object) -> None:
    # As an exception, so that what is half written is cleaned up.
    print("Terminated.", file=sys.stderr)
    sys.exit(128 + number)


def _output_lost(error: OSError) -> int:
    """Ends a command whose standard output takes no more: quietly if its reader has left, as others do."""
    if not isinstance(error, BrokenPipeError):
        print(f"error: standard output cannot be written ({error.strerror}).", file=sys.stderr)
    # Python would complain once more while it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1


def _hydra(command: str) -> int:
    # Hydra reads sys.argv itself and would take the command's name for an override.
    del sys.argv[1 : 1 + len(command.split())]
    if command == "train":
        import train

        # Where there are several devices, Lightning starts what is named here once more for each of them.
        sys.argv[0] = train.__file__
        return train.main()
    if command == "cache build":
        from stemwise.commands import cache_build

        return cache_build.main()
    from stemwise.commands import evaluate

    return evaluate.main()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "stemwise", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"stemwise {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in ("train", "evaluate"):
        commands.add_parser(name, add_help=False, help="see above")
    for command in (separate, compare, convert, index, cache, reproduce):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
