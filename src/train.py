"""Trains a separator: `python -m train stems=4 data=musdb18`, the same as `stemwise train …`.

Composes the config, builds the parts, fits, and says where the model lies.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from stemwise import checks, launch, process
from stemwise.errors import UserError

log = logging.getLogger("stemwise.train")


@hydra.main(version_base="1.3", config_path=launch.CONF, config_name="train")
@launch.task
def command(cfg: DictConfig) -> None:
    """Trains what `cfg` describes; see `conf/train.yaml`."""
    from stemwise.running import folders, interrupts

    interrupts.before_training()
    process.prepare()
    launch.quiet_lightning()
    checks.training(cfg)
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        with folders.claimed(folder, list(hydra_config.overrides.task)):
            _train(cfg, folder)
    finally:
        interrupts.after_training()


def _train(cfg: DictConfig, folder: Path) -> None:
    """Builds the parts, records where the run comes from, trains, and leaves the model in `folder`."""
    import lightning

    from stemwise.running import boards, ranks
    from stemwise.running.interrupts import Stopped

    _set_precision(cfg.matmul_precision)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    loss = instantiate(cfg.loss, _convert_="all")
    data = instantiate(cfg.data, _convert_="all", phase=loss.needs_phase)
    if not ranks.begun_together():
        data.indexes()  # before a network is built and a logger begins a run
    model, facts = _model(cfg, complete=data.catalogue.complete)
    checkpoint = _checkpoint(cfg, folder, model)
    checks.examples(data.spectrogram.frames, model.unet.stride)
    module, trainer = _training(cfg, loss, model, data, facts), _trainer(cfg, folder)
    if trainer.is_global_zero:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    log.info("Run folder: %s", folder)
    with boards.ended(trainer.loggers, folder if cfg.log_model else None):
        try:
            _fit(trainer, module, data, checkpoint)
            _finish(trainer, module, data, folder)
        except Stopped:
            raise
        except SystemExit:
            # So Lightning ends on Ctrl-C, with 1.
            sys.exit(130 if trainer.interrupted else 1)


def _set_precision(matmul: str) -> None:
    """Lets a GPU compute float32 with less than float32's precision, unless `matmul` is `highest`."""
    import torch

    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = matmul != "highest"  # torch's own default is True


def _checkpoint(cfg: DictConfig, folder: Path, model: Any) -> Path | None:
    """The checkpoint to go on from. It must be of a model like this one.

    `ckpt_path=last` is the newest of the run folder, and must be there; with `resume=auto` it may be.
    """
    from stemwise import model_file
    from stemwise.running import checkpoints

    path = cfg.ckpt_path
    if path is None and cfg.resume is None:
        return None
    found = checkpoints.newest(folder) if path in (None, "last") else Path(path)
    if found is None and path is None:
        log.info("resume=auto: no checkpoint in %s, so the run begins.", folder)
        return None
    if found is None or not found.is_file():
        hint = "Say which run to resume: hydra.run.dir=RUN ckpt_path=last" if path == "last" else "Give a .ckpt file"
        raise UserError(f"ckpt_path={path}: no checkpoint {found or folder / checkpoints.LAST}. {hint}.")
    if found.suffix != ".ckpt":
        raise UserError(f"ckpt_path={path}: not a .ckpt. To start from a model's weights, use init_from={path}.")
    theirs, ours = model_file.load(found).settings, model.settings
    for name in ("stems", "unet", "output"):
        if theirs[name] != ours[name]:
            raise UserError(f"{found}: that run had {name}={theirs[name]}, this one {ours[name]}. Use the same.")
    log.info("Going on from %s", found)
    return found


def _fit(trainer: Any, module: Any, data: Any, checkpoint: Path | None) -> None:
    from stemwise import workers
    from stemwise.running import parts, ranks

    watched = parts.callback(trainer, ranks.Ranks)
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except RuntimeError as error:
        if death := workers.death(error, trainer.global_rank, data.read_by):
            raise death from None
        if lost := watched.lost(error):
            raise lost from error
        raise
    finally:
        workers.end()  # those of a run that failed are still there


def _model(cfg: DictConfig, complete: bool) -> tuple[Any, dict[str, Any]]:
    """The model to train, and the facts of the one that it starts from."""
    from stemwise import model_file, pretrained, separator

    settings = launch.plain(cfg.model)
    if settings["mask"]["rest"] is None:
        # Stems that are not all of the mixture must not divide all of it among themselves.
        settings["mask"]["rest"] = not complete
    model = instantiate(settings, _convert_="all")
    if cfg.init_from is None:
        return model, {}
    other, facts = model_file.read(pretrained.path(cfg.init_from))
    taken = separator.start_from(model, other)
    log.info("init_from=%s: took over %s", cfg.init_from, ", ".join(taken))
    return model, facts


def _training(cfg: DictConfig, loss: Any, model: Any, data: Any, facts: Mapping[str, Any]) -> Any:
    """The training of `model`, which started from a model with these facts."""
    from stemwise.training import SeparatorTraining

    normalization = cfg.normalization or ("stored" if facts.get("normalization") == "stored" else "batch")
    if cfg.normalization is None and normalization == "stored":
        log.info("normalization=stored: as the model of init_from was trained.")
    own = {"sums": data.catalogue.sums, "normalization": normalization}
    parts = instantiate(cfg.optimizer), instantiate(cfg.scheduler)
    return SeparatorTraining(model, *parts, own, normalization, cfg.compile, loss)


def _trainer(cfg: DictConfig, folder: Path) -> Any:
    from stemwise.running import checkpoints
    from stemwise.running.loggers import guarded

    parts = [guarded(name, partial(instantiate, logger)) for name, logger in (cfg.get("logger") or {}).items()]
    loggers = [logger for logger in parts if logger is not None]
    files = checkpoints.CheckpointFiles()
    return instantiate(
        cfg.trainer,
        _convert_="all",
        default_root_dir=str(folder),
        callbacks=_callbacks(cfg, folder, files, loggers),
        logger=loggers or False,
        enable_progress_bar=False,  # there is one of our own
        plugins=[*_plugins(cfg), files],
    )


def _plugins(cfg: DictConfig) -> list[Any]:
    """Lightning's plugins that are asked for, and SLURM's without its own way to save and to queue again."""
    from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    from stemwise.running.synchronized import SynchronizedNorms

    asked = instantiate(cfg.trainer.plugins, _convert_="all")
    plugins = asked if isinstance(asked, list) else [asked] if asked else []
    own = any(isinstance(plugin, SLURMEnvironment) for plugin in plugins)
    # torchrun may well be started by SLURM; the ranks are then its own.
    if not own and not TorchElasticEnvironment.detect() and SLURMEnvironment.detect():
        checks.slurm(cfg)
        plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
    return [*plugins, SynchronizedNorms()] if cfg.trainer.sync_batchnorm else plugins


def _callbacks(cfg: DictConfig, folder: Path, files: Any, loggers: Sequence[Any]) -> list[Any]:
    from lightning.pytorch import callbacks as lightnings

    from stemwise.running import callbacks, checkpoints, faults, interrupts, media, meters, ranks, terminal, watchdog

    signals = interrupts.Interrupts()
    parts: list[Any] = [signals, ranks.Ranks(), callbacks.RunFolder(folder, partial(_record, cfg, folder, loggers))]
    parts.append(faults.NonFinite(folder, launch.plain(cfg), cfg.on_nonfinite, cfg.max_nonfinite))
    if cfg.watchdog is not None:
        parts.append(watchdog.Watchdog(cfg.watchdog))
    if cfg.ema is not None:
        parts.append(callbacks.EMA(decay=cfg.ema))
    # Even where nothing is logged: a run may go on with a logger that began without one.
    parts += [meters.Meters(), media.Media(**cfg.media)]
    wanted = cfg.trainer.enable_progress_bar is not False
    if wanted and terminal.can_draw():
        parts.append(terminal.Bar())
    elif wanted or not sys.stderr.isatty():
        parts.append(terminal.Lines())
    keep = cfg.checkpoints
    parts.append(checkpoints.Checkpoints(folder, files, signals, keep.every, keep.last))
    if keep.best:
        name = "best" if keep.best == 1 else "best-{step}"
        best: Any = {"filename": name, "monitor": callbacks.SCORE, "mode": "max", "save_top_k": keep.best}
        parts.append(lightnings.ModelCheckpoint(folder / checkpoints.FOLDER, enable_version_counter=False, **best))
    return parts


def _record(cfg: DictConfig, folder: Path, loggers: Sequence[Any], indexes: Mapping[str, Any]) -> None:
    """Writes down where the run comes from, and tells the loggers."""
    from stemwise.running import boards, provenance

    found = provenance.record(folder, launch.plain(cfg), launch.given(), indexes)
    boards.begin(loggers, launch.plain(cfg), provenance.facts(found), list(cfg.stem_names))


def _finish(trainer: Any, module: Any, data: Any, folder: Path) -> None:
    """Judges the weights of the last steps too, and says what to do with the best."""
    from stemwise.running import callbacks, parts

    judged = parts.callback(trainer, callbacks.RunFolder)
    if judged.validated_at != trainer.global_step:
        # Lightning counts what it logs from 0, a validation as the step before it; not so after a training's end.
        trainer.fit_loop.epoch_loop._batches_that_stepped = max(trainer.global_step - 1, 0)
        trainer.validate(module, data, verbose=False, weights_only=True)
    if not (folder / callbacks.MODEL_FILE).exists():
        judged.write_model(trainer, {})  # trainer.limit_val_batches=0: nothing to choose by
    if trainer.is_global_zero:
        model = folder / callbacks.MODEL_FILE
        print(f"\nModel: {model}\nTry:   stemwise separate SONG.mp3 --model {model} -o out")


def main() -> int:
    """Entry point of `python -m train` and `stemwise train`."""
    launch.offer_trainer_arguments()
    return launch.run(command)


if __name__ == "__main__":
    sys.exit(main())
