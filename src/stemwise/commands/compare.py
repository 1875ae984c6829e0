"""`stemwise compare EVAL_A EVAL_B …`: which of several models is better, and where.

It takes the folders of `stemwise evaluate`, no Hydra values, because a folder may be called anything.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stemwise.commands import streams
from stemwise.errors import UserError

if TYPE_CHECKING:
    from stemwise.evaluation.pairing import Paired
    from stemwise.evaluation.results import Evaluation, Scored
    from stemwise.separator import Separator

EXAMPLES = """examples:
  stemwise compare runs/A/evaluation-test runs/B/evaluation-test
  stemwise compare runs/A/evaluation-test runs/*/evaluation-test -o comparison --songs 5
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers `compare`."""
    parser = commands.add_parser(
        "compare",
        help="compare evaluations of several models, song by song",
        description="Compares models that were evaluated on the same songs: report.html with the differences and songs "
        "to listen to, comparison.csv, comparison.md. The first folder is what the others are measured against.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="EVAL", help="a folder that stemwise evaluate wrote")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("comparison"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--songs",
        type=int,
        default=3,
        metavar="N",
        help="how many songs to listen to, from where the second model gains most to where it loses most; 0 for none "
        "(default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the comparison into `options.output`."""
    from stemwise.evaluation import pairing, results, tables
    from stemwise.report import comparison, hearing, listening, page

    _check(options)
    paired = pairing.pair(pairing.named([results.read(folder) for folder in options.folders]))
    for note in paired.notes:
        streams.say(note)
    path = options.output / page.FILE
    table = tables.differences_markdown(paired)
    with listening.publishing(path) as players:
        songs = _chosen(paired, options.songs)
        unheard = hearing.record(players, path, songs, paired.stems, lambda: _models(paired))
        if unheard:
            streams.say(unheard)
        page.replace(options.output / "comparison.csv", tables.differences_csv(paired))
        page.replace(options.output / "comparison.md", table)
        comparison.write(paired, options.output, players, unheard)
    print(f"\n{table}\nReport: {path}")
    return 0


def _check(options: argparse.Namespace) -> None:
    from stemwise.evaluation import results

    folders = [folder.resolve() for folder in options.folders]
    if len(folders) < 2:
        raise UserError(f"{options.folders[0]}: one evaluation has nothing to be compared with. Name two or more.")
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"{twice}: named twice. Name each evaluation once.")
    if (options.output / results.FILE).exists():
        raise UserError(
            f"-o {options.output}: holds an evaluation, whose page this would replace. Name another folder."
        )
    if options.songs < 0:
        raise UserError(f"--songs {options.songs}: less than none. Give how many songs to listen to, or 0.")
    try:
        options.output.mkdir(parents=True, exist_ok=True)  # before songs to listen to are made, which takes minutes
    except OSError as error:
        raise UserError(f"-o {options.output}: no folder can be made there ({error.strerror}). Name another.") from None


def _chosen(paired: "Paired", count: int) -> "dict[str, Scored]":
    """Songs by their titles, from where the second model gains most over the first to where it loses most."""
    from stemwise.evaluation import statistics
    from stemwise.report.comparison import letter

    apart = paired.average_difference(1)
    songs = paired.evaluations[0].songs
    return {
        f"{songs[place].name} ({letter(1)} − {letter(0)}: {apart[place]:+.2f} dB)": songs[place]
        for place in statistics.spread(apart, count)
    }


def _models(paired: "Paired") -> "dict[str, Separator]":
    from stemwise.report.comparison import letter

    return {f"{letter(n)}: {one.about.model}": _model(one) for n, one in enumerate(paired.evaluations)}


def _model(evaluation: "Evaluation") -> "Separator":
    """The model that was scored. Raises `UserError` if it is gone, or another one lies in its place."""
    from stemwise import model_file
    from stemwise.evaluation import results

    path = Path(evaluation.about.checkpoint)
    model = model_file.load(path)
    if results.digest(path) != evaluation.about.digest:
        raise UserError(f"{path}: changed since it was scored in {evaluation.folder}. Evaluate it once more.")
    if evaluation.about.overlap is not None:
        model.overlap = evaluation.about.overlap
    return model
