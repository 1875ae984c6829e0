"""Who separates best after the same time of training: `python benchmarks/quality/peers.py --minutes 25`.

Spleeter, Open-Unmix, and stemwise with Spleeter's recipe and with its own train on the same songs for as long, one
after the other on the same machine (`contenders.py` says how that is counted), and separate songs of artists that they
did not hear. All are scored by the same scorer, and beside them the mixture as it is and the oracle. A training that is
done is not done again: it is in `benchmarks/results/quality/peers.json`, under all that it depends on.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other scripts, which find each other by name

import environment
import report
from quality import folds, scores, songs
from quality.contenders import CONTENDERS, FRAMES, SETTINGS, Task

RESULTS = report.RESULTS / "quality"
WORK = Path(__file__).resolve().parents[1] / ".quality"  # songs and runs, which git ignores
DATA = Path(__file__).resolve().parents[3] / "shared/data/musdb18-7s"
FOLD = 2  # eight songs of seven artists; in the first, seven of nine are of one
BOUNDS = "bounds"  # mixture and oracle, which are found like a system's scores
STEMS = (*songs.STEMS, "mean")

INTRODUCTION = """# Against the peers, at equal time

Each system trains for {minutes:g} minutes with all cores{gpu}, on the same songs: {train} to learn from and {watched}
that a training may watch itself with. Scored are {scored} of other artists. SDR is museval's (median over windows of a
second, then over songs), uSDR that of whole songs (mean over songs), both in dB{spread}.

A system's time begins when its process is started: importing, reading songs and filling caches are in it. It is over
with the last step that began in it; validating and saving after that, and separating, are not counted. Stemwise's own
recipe plans its schedule by a pilot, whose time is in it too. Open-Unmix trains a network for each stem, each in a
quarter of the time; its steps are those of all four."""
HOW = f"""Spleeter is its own `train` with its 4stems.json, and Spleeter's recipe the same settings in stemwise, both
with windows of {FRAMES} frames: the excerpts are shorter than 512. Open-Unmix's package has no training; its published
settings are those of `benchmarks/quality/openunmix_side.py`. The oracle is Spleeter's rule of masks on the true
magnitudes, up to 11 kHz."""
GPU = ", and PyTorch on the GPU (Spleeter's TensorFlow finds none)"

Run = tuple[str, int, int]
"""System, fold and seed."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared; `machine` is in it because what a minute is worth depends on it."""

    systems: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: int
    minutes: float
    device: str
    machine: str
    splits: Mapping[int, songs.Split]

    def key(self, system: str, fold: int, seed: int) -> str:
        """Names all that a result depends on."""
        split = self.splits[fold]
        if system == BOUNDS:
            return f"{BOUNDS} fold={fold} songs={_digest(split.scored)}"
        time = f"minutes={self.minutes:g} machine={self.machine}"
        songs = _digest(dataclasses.astuple(split))
        return f"{system} {SETTINGS[system]} fold={fold} songs={songs} seed={seed} {time}"

    @property
    def keys(self) -> dict[str, Run]:
        """All that is to be done: the bounds, then every system with the first fold and seed, then with the next."""
        bounds = [(BOUNDS, fold, 0) for fold in self.folds]
        runs = [(name, fold, seed) for seed in range(self.seeds) for fold in self.folds for name in self.systems]
        return {self.key(*run): run for run in (*bounds, *runs)}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=6).hexdigest()


def answer(plan: Plan, data: Path, environments: Path, name: str) -> None:
    """Does what is missing, and writes page and results after each."""
    found = done(name)
    missing = {key: run for key, run in plan.keys.items() if key not in found}
    for number, (key, (system, fold, seed)) in enumerate(missing.items(), 1):
        print(f"{number} of {len(missing)}: {system}, fold {fold}, seed {seed}", flush=True)
        split = plan.splits[fold]
        if system == BOUNDS:
            found[key] = {"rows": scores.bounds(data, split.scored)}
        else:
            found[key] = trained(system, seed, plan, split, data, environments)
        write(name, plan, found)
    write(name, plan, found)


def trained(system: str, seed: int, plan: Plan, split: songs.Split, data: Path, environments: Path) -> dict[str, Any]:
    """The scores of one training, and what it did. Leaves nothing behind."""
    WORK.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"peers-{system}-", dir=WORK))
    try:
        task = Task(data, split, seed, 60 * plan.minutes, plan.device, environments, folder)
        outcome = CONTENDERS[system](task)
        rows = {row: scores.of_folder(where, data, split.scored) for row, where in outcome.estimates.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    own = {system: environment.versions(system, environments)} if system in environment.PEERS else {}
    return {
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "what": outcome.what,
        "versions": own,
        "rows": rows,
    }


def done(name: str) -> dict[str, dict[str, Any]]:
    """The results that are there, by what they depend on."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}


def page(plan: Plan, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, and what each system ran."""
    here = {run: found[key] for key, run in plan.keys.items() if key in found}
    names = dict.fromkeys(name for one in here.values() for name in one["rows"])
    rows = [_row(name, plan, here) for name in sorted(names, key=lambda name: name == "oracle")]
    columns = ["system", *(f"SDR {stem}" for stem in STEMS), "uSDR", "steps", "steps a minute"]
    ran = [
        f"- {system}, fold {fold}, seed {seed}: {one['seconds']:.0f} s with saving. {one['what']}"
        for (system, fold, seed), one in here.items()
        if system != BOUNDS
    ]
    text = [_introduction(plan), report.table(columns, filter(None, rows)), HOW, "What was run:", "\n".join(ran)]
    return "\n\n".join(text)


def _introduction(plan: Plan) -> str:
    splits = plan.splits.values()
    counts = {name: sorted({len(getattr(split, name)) for split in splits}) for name in ("train", "watched")}
    return INTRODUCTION.format(
        minutes=plan.minutes,
        gpu="" if plan.device == "cpu" else GPU,
        spread=f"; ± is the standard deviation over {plan.seeds} seeds" if plan.seeds > 1 else ", of one seed",
        scored=sum(len(split.scored) for split in splits),
        **{name: " or ".join(map(str, each)) for name, each in counts.items()},
    )


def _row(name: str, plan: Plan, here: Mapping[Run, Mapping[str, Any]]) -> tuple[str, ...] | None:
    """A system's cells, means over the seeds that have all folds of what their songs come to; None if none has yet."""
    runs = {run: one for run, one in here.items() if name in one["rows"]}
    folds_of = {seed: [fold for _, fold, other in runs if other == seed] for _, _, seed in runs}
    whole = [seed for seed, folds in folds_of.items() if len(folds) == len(plan.folds)]
    if not whole:
        return None
    songs_of = {seed: [one["rows"][name] for run, one in runs.items() if run[2] == seed] for seed in whole}
    found = [scores.over_songs({k: v for rows in each for k, v in rows.items()}) for each in songs_of.values()]
    cells = [_spread([one["SDR"][stem] for one in found if stem in one["SDR"]]) for stem in STEMS]
    trained = [one for run, one in runs.items() if run[2] in whole and "steps" in one]
    return (name, *cells, _spread([one["uSDR"]["mean"] for one in found]), *_steps(trained))


def _steps(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Of a training, and in a minute of it; nothing for what was not trained."""
    if not runs:
        return "", ""
    paces = [60 * run["steps"] / run["seconds"] for run in runs]
    return f"{statistics.mean(run['steps'] for run in runs):.0f}", f"{statistics.mean(paces):.1f}"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def write(name: str, plan: Plan, found: Mapping[str, Any]) -> None:
    """Writes page and results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"runs": found}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(f"{page(plan, found)}\n\n{_origin(plan, found)}\n", encoding="utf-8")


def _origin(plan: Plan, found: Mapping[str, Any]) -> str:
    """The command, the machine, and the versions of the peers."""
    machine = report.machine()
    options = f"--minutes {plan.minutes:g} --seeds {plan.seeds} --folds {' '.join(map(str, plan.folds))}"
    where = f"{machine['processor']} ({machine['cores']} cores, {machine['memory_gib']} GiB)"
    versions = {peer: packages for one in found.values() for peer, packages in one.get("versions", {}).items()}
    own = [
        f"{peer}: {', '.join(f'{name} {v}' for name, v in packages.items())}." for peer, packages in versions.items()
    ]
    command = f"`python benchmarks/quality/peers.py {options} --device {plan.device}`, on {where}."
    return " ".join([command, *own])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    environment.add_option(parser)
    parser.add_argument("--data", type=Path, default=DATA, help="MUSDB18 (default: its excerpts in ../shared/data)")
    parser.add_argument("--minutes", type=float, default=25.0, help="of each training (25)")
    parser.add_argument("--systems", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), help="all")
    parser.add_argument("--folds", nargs="+", type=int, choices=range(folds.COUNT), default=[FOLD], help=f"({FOLD})")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each system and fold (1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where PyTorch trains (cpu)")
    options = parser.parse_args()
    data = WORK / f"songs-{_digest(str(options.data.resolve()))}"
    names = songs.write(options.data, data)
    splits = {fold: songs.split(names, fold) for fold in options.folds}
    given = tuple(options.systems), tuple(options.folds), options.seeds, options.minutes, options.device
    name = "peers" if options.device == "cpu" else f"peers-{report.slug(options.device)}"
    plan = Plan(*given, report.slug(options.device), splits)
    answer(plan, data, options.environments, name)
    print(page(plan, done(name)))


if __name__ == "__main__":
    main()
