"""What must hold in a training's config before anything is read or built; the parts check their own values.

Every check raises `UserError`.
"""

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stemwise.errors import UserError

PATHS = (
    *("ckpt_path", "init_from", "data.root", "data.train", "data.valid", "data.test"),
    *("data.cache", "data.local_cache"),
)
PRECISIONS = ("highest", "high", "medium")  # as torch names them


def training(cfg: DictConfig) -> None:
    """Checks the keys of `conf/train.yaml` that no part takes as they are, and what only two keys together show."""
    _stems(cfg)
    _numbers(cfg)
    for key in PATHS:
        if not isinstance(value := OmegaConf.select(cfg, key), str | None):
            raise UserError(f"{key}={value} is not a path.")
    _speed(cfg)


def examples(frames: int, stride: int) -> None:
    """Checks that networks that halve T until it is `stride` times as short take examples of so many frames."""
    if frames % stride:
        raise UserError(
            f"data.frames={frames} is not a multiple of {stride}, which the layers of stride 2 of model.unet.filters "
            f"need. Take {max(frames // stride, 1) * stride}."
        )


def slurm(cfg: DictConfig) -> None:
    """Checks that the tasks of a job of SLURM are the ranks of `cfg`; else those that are there wait for the rest."""
    tasks = int(os.environ["SLURM_NTASKS"])
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise UserError(
            f"This job of SLURM has {tasks} tasks, and none was started by srun. Write `srun python -m train …`."
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(f"sbatch --ntasks={tasks}: write --nodes=… --ntasks-per-node=… instead.")
    wanted = {"devices": "SLURM_NTASKS_PER_NODE", "num_nodes": "SLURM_NNODES"}
    for key, variable in wanted.items():
        there, value = os.environ.get(variable), cfg.trainer[key]
        if tasks > 1 and there is not None and isinstance(value, int) and value != int(there):
            raise UserError(f"trainer.{key}={value}, but {variable}={there}. Set trainer.{key}={there}.")


def _stems(cfg: DictConfig) -> None:
    if not cfg.stem_names:
        raise UserError(
            f"stems={cfg.stems}: no such set of stems. Choose {', '.join(cfg.stem_sets)}, "
            "or name your own: stem_names=[vocals,guitar]."
        )
    if not OmegaConf.is_list(cfg.stem_names) or not all(isinstance(name, str) for name in cfg.stem_names):
        raise UserError(f"stem_names={cfg.stem_names} is not a list of names. Write stem_names=[vocals,guitar].")
    for stem, parts in (cfg.stem_sums or {}).items():
        if not (isinstance(parts, str) or OmegaConf.is_list(parts)):
            raise UserError(f"stem_sums.{stem}={parts} is not a list of columns, nor `rest`.")


def _numbers(cfg: DictConfig) -> None:
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise UserError(f"seed={cfg.seed} is not a whole number from 0 on.")
    if cfg.resume not in (None, "auto"):
        raise UserError(f"resume={cfg.resume} is not null or auto. A checkpoint of your choice is ckpt_path=FILE.")
    for name, least in (("every", 1), ("last", 1), ("best", 0)):
        value = cfg.checkpoints[name]
        if (value is not None or name != "every") and (not isinstance(value, int) or value < least):
            raise UserError(f"checkpoints.{name}={value} is not a whole number from {least} on.")
    media = cfg.media
    for name, least in (("every", 1), ("songs", 0)):
        if (media[name] is not None or name == "songs") and (type(media[name]) is not int or media[name] < least):
            raise UserError(f"media.{name}={media[name]} is not a whole number from {least} on.")
    if type(media.seconds) not in (int, float) or not 0 < media.seconds <= 60:
        raise UserError(f"media.seconds={media.seconds} is not a number of seconds above 0 and up to 60.")
    if cfg.ema is not None and not (isinstance(cfg.ema, float) and 0 < cfg.ema < 1):
        raise UserError(f"ema={cfg.ema} is not a decay between 0 and 1, such as 0.999.")
    if cfg.watchdog is not None and not (type(cfg.watchdog) in (int, float) and cfg.watchdog > 0):
        raise UserError(f"watchdog={cfg.watchdog} is not a number of seconds above 0, such as 60, nor null.")


def _speed(cfg: DictConfig) -> None:
    from stemwise import compilation

    if cfg.matmul_precision not in PRECISIONS:
        raise UserError(f"matmul_precision={cfg.matmul_precision} is not one of {', '.join(PRECISIONS)}.")
    if cfg.compile is not None:
        compilation.check(cfg.compile)
    if cfg.compile in compilation.GRAPHS and cfg.trainer.accumulate_grad_batches != 1:
        # PyTorch issues 169545 and 96693: an error, or the gradients of the last batch alone.
        raise UserError(
            f"compile={cfg.compile}: with CUDA graphs PyTorch cannot add up the gradients of "
            f"trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches} batches. Set compile=default."
        )
    _device(cfg.trainer.accelerator)


def _device(accelerator: Any) -> None:
    from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

    there = {"cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    if not there.get(accelerator, accelerator != "gpu" or any(there.values())):
        import torch

        raise UserError(
            f"trainer.accelerator={accelerator}: PyTorch {torch.__version__} finds no such device here. "
            "Check the driver (nvidia-smi) and that PyTorch is a build for it, or train with trainer=default."
        )
