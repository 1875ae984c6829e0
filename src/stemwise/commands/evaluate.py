"""`stemwise evaluate checkpoint=PATH data=… split=test`: BSSEval scores of a model, as a Hydra command."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from stemwise import launch
from stemwise.commands import streams
from stemwise.errors import UserError

if TYPE_CHECKING:
    from stemwise.evaluation.documents import Scores
    from stemwise.evaluation.results import About, Evaluation
    from stemwise.separator import Separator

log = logging.getLogger(__name__)


HEADINGS = {
    "museval": "museval, dB, median of 1 s windows, then of songs:",
    "torch": "BSSEval v4 (solver=torch), dB, median of 1 s windows, then of songs:",
    "mir_eval": "BSSEval v3 (solver=mir_eval), dB, median of songs:",
}


@hydra.main(version_base="1.3", config_path=launch.CONF, config_name="evaluate")
@launch.task
def command(cfg: DictConfig) -> None:
    """Scores `cfg.checkpoint` on a split of `cfg.data`; see `conf/evaluate.yaml`."""
    from stemwise import crossfade, index, model_file, pretrained
    from stemwise.evaluation import results, scoring, solvers

    if cfg.split not in index.SPLITS:
        raise UserError(f"split={cfg.split}: not one of {', '.join(index.SPLITS)}.")
    if cfg.checkpoint is None:
        raise UserError("checkpoint=null: no model to score. Give a run's model.safetensors, or a .ckpt.")
    workers, baselines, heard = _workers(cfg.workers), _names(cfg.baselines), _count(cfg.listening_songs)
    if cfg.overlap is not None:
        crossfade.check(cfg.overlap, "overlap=")
    checkpoint = pretrained.path(str(cfg.checkpoint))
    model, facts = model_file.read(checkpoint)
    # A model that was not trained here says nothing of sums; an accompaniment is all that is not its other stems.
    own_sums = facts.get("sums", {"accompaniment": index.REST})
    sums = own_sums if cfg.stem_sums is None else launch.plain(cfg.stem_sums)
    own = {"stems": list(model.stems), "spectrogram": model.spectrogram, "sums": sums, "augment": {}}
    songs = instantiate(cfg.data, **own, _convert_="all").catalogue.songs(cfg.split)
    folder = _folder(cfg, checkpoint)
    log.info("%d songs of %s, scores in %s", len(songs), cfg.split, folder)
    solver, device = str(cfg.solver), str(cfg.device)
    scores = scoring.evaluate(checkpoint, songs, folder, baselines, workers, solver, device, cfg.overlap)
    evaluation = results.gather(folder, _about(cfg, checkpoint, model), songs, scores)
    _write(evaluation, scores)
    model.overlap = model.overlap if cfg.overlap is None else cfg.overlap
    _show(evaluation, heard, model.to(solvers.device(device, solver)))


def _folder(cfg: DictConfig, checkpoint: Path) -> Path:
    """Where the scores go: beside the model, or, for a model by name, into the current folder."""
    if cfg.output is not None:
        return Path(str(cfg.output))
    # A folder for each solver and overlap, so that trying one does not replace what the other took hours for.
    how = "" if cfg.solver == "museval" else f"-{cfg.solver}"
    how += "" if cfg.overlap is None else f"-overlap{cfg.overlap}"
    if str(cfg.checkpoint) != str(checkpoint):
        return Path(f"evaluation-{cfg.split}-{checkpoint.stem}{how}")
    return checkpoint.parent / f"evaluation-{cfg.split}{how}"


def _workers(value: Any) -> int | None:
    if value is None or (type(value) is int and value >= 0):
        return value
    raise UserError(
        f"workers={value}: not a whole number from 0 on. Give how many songs to score at once, or null for all cores."
    )


def _count(value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    raise UserError(f"listening_songs={value}: not a whole number from 0 on. Give how many songs are to be heard.")


def _names(value: Any) -> list[str]:
    """A list in the config, or one name without the brackets, or null."""
    if isinstance(value, ListConfig):
        return [str(name) for name in value]
    return [] if value is None else [str(value)]


def _about(cfg: DictConfig, checkpoint: Path, model: "Separator") -> "About":
    from stemwise import __version__
    from stemwise.evaluation import results

    settings = model.spectrogram
    return results.About(
        model=_name(str(cfg.checkpoint), checkpoint) + ("" if cfg.overlap is None else f", overlap {cfg.overlap}"),
        checkpoint=str(checkpoint.absolute()),
        digest=results.digest(checkpoint),
        data=str(HydraConfig.get().runtime.choices["data"]),
        split=str(cfg.split),
        solver=str(cfg.solver),
        stems=model.stems,
        sample_rate=settings.sample_rate,
        channels=settings.channels,
        band=settings.bins * settings.sample_rate / settings.n_fft,
        version=__version__,
        overlap=cfg.overlap,
    )


def _name(given: str, checkpoint: Path) -> str:
    """What a report calls the model: its own name, or that of its run."""
    if given != str(checkpoint):
        return given  # spleeter:4stems
    path = checkpoint.absolute()
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}/{path.stem}"
    return path.parent.name if path.stem == "model" else path.stem


def _write(evaluation: "Evaluation", scores: "Scores") -> None:
    """Leaves the tables in the folder, and prints the one of medians.

    `evaluation.json` comes last: where it is, all of them are of these scores.
    """
    from stemwise.evaluation import global_scores, results, solvers, tables
    from stemwise.report import page

    folder, about = evaluation.folder, evaluation.about
    table, heading = scores.table(about.stems), HEADINGS[about.solver]
    if about.solver == solvers.MIR_EVAL:
        table = f"{table}\n\nMean of clips by their length, dB:\n\n{global_scores.table(evaluation)}"
    texts = {
        "scores.md": f"{heading}\n\n{table}\n\n{tables.markdown(evaluation)}",
        "scores.json": json.dumps(results.finite(scores.values), indent=1, allow_nan=False),
        "scores.csv": tables.songs_csv(evaluation),
    }
    for file, text in texts.items():
        page.replace(folder / file, text)
    results.write(evaluation)
    print(f"\n{heading}\n\n{table}\n")
    if scores.silent:
        songs = "; ".join(f"{song}: {', '.join(names)}" for song, names in scores.silent.items())
        count = f"{len(scores.silent)} song{'s' if len(scores.silent) > 1 else ''}"
        print(streams.plain(f"{count} with silent stems, which have no score there: {songs}"))
    print(f"Scores: {folder}")


def _show(evaluation: "Evaluation", count: int, model: "Separator") -> None:
    """Leaves `report.html` in the folder, with `count` songs to hear."""
    from stemwise.evaluation import statistics
    from stemwise.report import evaluation as report
    from stemwise.report import hearing, listening, page

    average = evaluation.average()
    places = statistics.spread(evaluation.standing(), count)
    titles = {f"{song.name} ({average[place]:.2f} dB)": song for place in places for song in [evaluation.songs[place]]}
    path = evaluation.folder / page.FILE
    with listening.publishing(path) as players:
        unheard = hearing.record(players, path, titles, evaluation.about.stems, lambda: {"": model})
        if unheard:
            log.warning("%s", streams.plain(unheard))
        report.write(evaluation, players, unheard)
    print(f"Report: {path}")


def main() -> int:
    """Entry point of `stemwise evaluate`."""
    code = launch.run(command)
    if code == 130:
        print("Interrupted. The same command goes on where this one ended.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
