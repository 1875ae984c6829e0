"""`stemwise index NAME ROOT`: a data set as index CSVs to edit and share."""

import argparse
import importlib
import sys
from pathlib import Path

DATASETS = ("demo", "folders", "mir1k", "musdb18")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "index",
        help="write the index CSVs of a data set",
        description="Writes train.csv, valid.csv and test.csv as `data=NAME` would use them: edit and share them, "
        "and train with data=csv data.root=ROOT data.train=DIR/train.csv data.valid=DIR/valid.csv.",
        epilog="example: stemwise index folders ~/multitracks -o my-index",
    )
    parser.add_argument("name", choices=DATASETS, metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument("root", metavar="ROOT", help="the data set's folder, on this machine")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="where the CSVs go")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from stemwise import index
    from stemwise.errors import UserError
    from stemwise.files import places

    root = places.place(options.root)
    if not isinstance(root, Path):
        raise UserError(f"{root}: only folders of this machine can be listed. Write the CSV of URLs by hand or script.")
    dataset = importlib.import_module(f"stemwise.datasets.{options.name}")
    for split, found in dataset.find(root).items():
        if not found.tracks:
            print(f"{split}: no songs", file=sys.stderr)
            continue
        checked = index.check(found, found.columns, {})
        target = options.output / f"{split}.csv"
        index.write(checked, target)
        hours = sum(track.duration or 0.0 for track in checked.tracks) / 3600
        print(f"{target}: {len(checked.tracks)} songs, {hours:.2f} h, stems {', '.join(checked.columns)}")
    return 0
