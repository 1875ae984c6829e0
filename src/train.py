"""Trains a separator: `python -m train stems=4 data=musdb18`, the same as `stemwise train …`.

Composes the config, builds the parts, fits, and says where the model lies.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from stemwise import launch
from stemwise.errors import UserError

log = logging.getLogger("stemwise.train")


@hydra.main(version_base="1.3", config_path=launch.CONF, config_name="train")
@launch.task
def command(cfg: DictConfig) -> None:
    """Trains what `cfg` describes; see `conf/train.yaml`."""
    import lightning

    launch.quiet_lightning()
    folder = Path(HydraConfig.get().runtime.output_dir)
    _check(cfg)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    checkpoint = _checkpoint(cfg.ckpt_path, folder)
    data = instantiate(cfg.data, _convert_="all")
    model = _model(cfg, complete=data.complete)
    module, trainer = _training(cfg, model), _trainer(cfg, folder)
    log.info("Run folder: %s", folder)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    _finish(trainer, module, data, folder)


def _check(cfg: DictConfig) -> None:
    if not cfg.stem_names:
        raise UserError(
            f"stems={cfg.stems}: no such set of stems. Choose {', '.join(cfg.stem_sets)}, "
            "or name your own: stem_names=[vocals,guitar]."
        )


def _checkpoint(path: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from; `last` is that of the run folder."""
    from stemwise import callbacks

    if path is None:
        return None
    found = folder / callbacks.LAST if path == "last" else Path(path)
    if not found.is_file():
        hint = "Say which run to resume: hydra.run.dir=RUN ckpt_path=last" if path == "last" else "Give a .ckpt file"
        raise UserError(f"ckpt_path={path}: no checkpoint {found}. {hint}.")
    return found


def _model(cfg: DictConfig, complete: bool) -> Any:
    from stemwise import model_file, separator

    settings = launch.plain(cfg.model)
    if settings["mask"]["rest"] is None:
        # Stems that are not all of the mixture must not divide all of it among themselves.
        settings["mask"]["rest"] = not complete
    model = instantiate(settings, _convert_="all")
    if cfg.init_from is not None:
        taken = separator.start_from(model, model_file.load(cfg.init_from))
        log.info("init_from=%s: took over %s", cfg.init_from, ", ".join(taken))
    return model


def _training(cfg: DictConfig, model: Any) -> Any:
    from stemwise.training import SeparatorTraining

    return SeparatorTraining(model, instantiate(cfg.optimizer), instantiate(cfg.scheduler))


def _trainer(cfg: DictConfig, folder: Path) -> Any:
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

    from stemwise import callbacks

    interactive = sys.stderr.isatty()
    loggers = [instantiate(logger) for logger in cfg.logger.values()]
    parts: list[Any] = [callbacks.RunFolder(folder)]
    if cfg.ema is not None:
        parts.append(callbacks.EMA(decay=cfg.ema))
    if loggers:
        parts.append(LearningRateMonitor())
    if not interactive:
        parts.append(callbacks.Lines())
    parts.append(
        ModelCheckpoint(
            folder / "checkpoints",
            filename="best",
            monitor=callbacks.SCORE,
            mode="max",
            save_last=True,
            enable_version_counter=False,
        )
    )
    bar = cfg.trainer.enable_progress_bar
    return instantiate(
        cfg.trainer,
        _convert_="all",
        default_root_dir=str(folder),
        callbacks=parts,
        logger=loggers or False,
        enable_progress_bar=interactive if bar is None else bar,
    )


def _finish(trainer: Any, module: Any, data: Any, folder: Path) -> None:
    """Judges the weights of the last steps too, and says what to do with the best."""
    from stemwise import callbacks

    judged = next(part for part in trainer.callbacks if isinstance(part, callbacks.RunFolder))
    if judged.validated_at != trainer.global_step:
        trainer.validate(module, data, verbose=False, weights_only=True)
    if trainer.is_global_zero:
        model = folder / callbacks.MODEL_FILE
        print(f"\nModel: {model}\nTry:   stemwise separate SONG.mp3 --model {model} -o out")


def main() -> int:
    """Entry point of `python -m train` and `stemwise train`."""
    launch.offer_trainer_arguments()
    return launch.run(command)


if __name__ == "__main__":
    sys.exit(main())
