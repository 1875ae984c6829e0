"""What W&B and TensorBoard get besides numbers: where a run comes from, axes, songs to hear and see, the model.

Everything goes through `loggers.using`, so that a logger that fails here is switched off like everywhere else.
"""

import html
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.loggers.tensorboard import TensorBoardLogger
from lightning.pytorch.loggers.wandb import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from stemwise import model_file, pictures
from stemwise.running import callbacks, checkpoints, clips, loggers
from stemwise.running.clips import MEAN, MIXTURE, TRUTH, Clip

AXES = ("epoch", "progress/songs", "progress/hours")  # besides the step


def begin(some: Iterable[Logger], config: Mapping[str, Any], facts: Mapping[str, Any], stems: Sequence[str]) -> None:
    """Tells loggers the run's config, and under `run` the facts of where it comes from; what curves may be drawn over,
    and which belong together."""
    for logger in some:
        logger.log_hyperparams({**config, "run": dict(facts)})
        if isinstance(logger, WandbLogger):
            loggers.using(logger, _define_axes)
        elif isinstance(logger, TensorBoardLogger):
            loggers.using(logger, partial(_introduce, facts=facts, stems=stems))


def _define_axes(run: Any) -> None:
    for name in AXES:
        run.define_metric(name)


def _introduce(writer: Any, facts: Mapping[str, Any], stems: Sequence[str]) -> None:
    writer.add_custom_scalars(layout(stems))
    writer.add_text("run", "\n".join(f"    {name}: {value}" for name, value in facts.items()))


def layout(stems: Sequence[str]) -> dict[str, Any]:
    """TensorBoard's page "Custom Scalars": each SDR with its ceiling, and each loss with that of the validation."""

    def chart(*names: str) -> list[Any]:
        return ["Multiline", [f"^{re.escape(name)}$" for name in names]]

    return {
        "SDR in dB": {name: chart(f"sdr/{name}", f"sdr/oracle/{name}") for name in (MEAN, *stems)},
        "improvement over the mixture in dB": {"all": chart(*(f"sdr/improvement/{n}" for n in (MEAN, *stems)))},
        "loss": {name: chart(f"train/{name}", f"val/{name}") for name in ("loss", *stems)},
    }


@contextmanager
def ended(some: Iterable[Logger], folder: Path | None) -> Iterator[None]:
    """At the end, however it comes, gives W&B the models of a run's folder, if that is given, and ends its run.

    Another run may follow in this process.
    """
    code = 1
    try:
        yield
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        raise
    finally:
        for logger in some:
            if isinstance(logger, WandbLogger):
                _end(logger, folder, code)


@rank_zero_only
def _end(logger: WandbLogger, folder: Path | None, code: int) -> None:
    if folder is not None:
        loggers.using(logger, lambda run: _offer(run, folder))
    loggers.using(logger, lambda run: run.finish(exit_code=code))


@contextmanager
def _staging(run: Any) -> Iterator[None]:
    """Has W&B copy the files of artifacts into the run's folder: those of an offline run stay in the user's home."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = before or str(Path(run.dir).parent / "data")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before


def _offer(run: Any, folder: Path) -> None:
    """The model with the best validation and that of the last checkpoint, which may be the same."""
    best, last, kept = folder / callbacks.MODEL_FILE, folder / checkpoints.LAST, folder / "wandb"
    if run.disabled:
        return None
    steps = {path: model_file.read(path)[1].get("step") for path in (best, last) if path.exists()}
    if len(set(steps.values())) < len(steps):
        return _log_model(run, kept, best, "best", "latest")
    for path, alias in ((best, "best"), (last, "latest")):  # in this order: W&B calls all `latest` until the next comes
        if path in steps:
            _log_model(run, kept, path, alias)
    return None


def _log_model(run: Any, folder: Path, path: Path, *aliases: str) -> None:
    """The model in a file. `folder` keeps it for W&B, which takes it when it uploads it: of an offline run, that may be
    after the next resume."""
    import wandb

    model, facts = model_file.read(path)
    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=facts)
    folder.mkdir(exist_ok=True)
    kept = folder / f"{aliases[0]}-{facts.get('step')}{Path(callbacks.MODEL_FILE).suffix}"
    if path.suffix != kept.suffix:
        model_file.save(model, kept, facts)
    else:
        kept.unlink(missing_ok=True)
        try:
            os.link(path, kept)  # which, unlike a copy, takes no room
        except OSError:  # a file system without links
            shutil.copyfile(path, kept)
    artifact.add_file(str(kept), name=callbacks.MODEL_FILE, policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=[*aliases])


def shows(logger: Logger) -> bool:
    """Whether it can play sounds and show pictures."""
    return isinstance(logger, WandbLogger | TensorBoardLogger)


def show(logger: Logger, songs: Sequence[Clip], step: int, axes: Mapping[str, float], sample_rate: int) -> None:
    """Logs what is to be heard and seen of these songs, at a step and at these `AXES`. May raise anything.

    TensorBoard draws over the step and the time, and takes no others.
    """
    there = loggers.experiment(logger)
    if there is not None and isinstance(logger, WandbLogger):
        _to_wandb(there, songs, {**axes, "trainer/global_step": step})
    elif there is not None and isinstance(logger, TensorBoardLogger):
        _to_tensorboard(there, songs, step, sample_rate)


def _to_wandb(run: Any, songs: Sequence[Clip], axes: Mapping[str, float]) -> None:
    import wandb

    with tempfile.TemporaryDirectory() as folder, _staging(run):

        def audio(song: Clip, what: str) -> Any:
            path = Path(folder, f"{song.number}-{len(os.listdir(folder))}.{song.codec}")
            path.write_bytes(song.sounds[what])
            return wandb.Audio(str(path), caption=f"{song.name}: {_named(what)}")

        logged: dict[str, Any] = {"songs/boxes": wandb.Image(boxes(songs), caption="SDR of the validation songs")}
        for song in songs:
            if song.drawn:
                drawn = [
                    wandb.Image(Image.open(io.BytesIO(file)), caption=f"{song.name}: {stem}, {_score(song, stem)}")
                    for stem, file in song.drawn.items()
                ]
                logged[f"spectrograms/song_{song.number + 1}"] = drawn
                logged[f"audio/song_{song.number + 1}"] = [audio(song, what) for what in song.sounds]
        heard = [what for what in songs[0].sounds if not what.endswith(TRUTH)]
        columns: list[str | int] = ["song", *(f"{name} SDR" for name in songs[0].sdr), *heard]
        rows = [
            [
                song.name,
                *map(_finite, song.sdr.values()),
                *(audio(song, w) if w in song.sounds else None for w in heard),
            ]
            for song in songs
        ]
        logged["songs/table"] = wandb.Table(columns=columns, data=rows)
        run.log({**logged, **axes})


def _to_tensorboard(writer: Any, songs: Sequence[Clip], step: int, sample_rate: int) -> None:
    for song in songs:
        if not song.drawn:
            continue
        for stem, file in song.drawn.items():
            picture = np.asarray(Image.open(io.BytesIO(file)))
            writer.add_image(f"spectrograms/song_{song.number + 1}/{stem}", picture, step, dataformats="HWC")
        for what, sound in song.sounds.items():
            mono = torch.from_numpy(clips.decoded(sound).mean(axis=0, keepdims=True))  # all that it takes
            writer.add_audio(f"audio/song_{song.number + 1}/{_named(what)}", mono.clamp(-1, 1), step, sample_rate)
    writer.add_image("songs/boxes", np.asarray(boxes(songs)), step, dataformats="HWC")
    for name in songs[0].sdr:
        values = [song.sdr[name] for song in songs if np.isfinite(song.sdr[name])]
        if values:
            writer.add_histogram(f"songs/{name}", np.array(values), step)
    writer.add_text("songs/table", table(songs), step)


def _named(what: str) -> str:
    return what if what == MIXTURE or what.endswith(TRUTH) else f"{what} estimate"


def boxes(songs: Sequence[Clip]) -> Image.Image:
    """A box plot of the songs' SDR for each stem and the mean."""
    return pictures.boxes({name: [song.sdr[name] for song in songs] for name in songs[0].sdr}, "SDR, dB")


def table(songs: Sequence[Clip]) -> str:
    """SDR in dB in Markdown, the worst song first."""
    names = list(songs[0].sdr)
    lines = [f"| song | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for song in sorted(songs, key=lambda song: (np.isnan(song.sdr[MEAN]), song.sdr[MEAN])):
        cells = " | ".join(f"{song.sdr[name]:.2f}" for name in names)
        name = html.escape(" ".join(song.name.split()).replace("|", "¦"))
        lines.append(f"| {song.number + 1} {name} | {cells} |")
    return "\n".join(lines)


def _score(song: Clip, stem: str) -> str:
    return "silent" if np.isnan(song.sdr[stem]) else f"{song.sdr[stem]:.2f} dB"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
