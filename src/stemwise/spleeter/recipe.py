"""Spleeter's training configurations as ours: Hydra overrides for `python -m train`, or an experiment file.

A key that the configuration leaves out has Spleeter's default (spleeter.dataset, spleeter.model), not ours. What has
no counterpart becomes a remark that says why.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stemwise import grammar
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import config as configuration
from stemwise.spleeter.config import Config
from stemwise.unet import UNetSettings

# What conf/model/*.yaml say of the network.
_ELU = UNetSettings(encoder_activation="elu", decoder_activation="elu")
_MODELS = {"unet": ("sigmoid", UNetSettings()), "unet_elu": ("sigmoid", _ELU), "softmax_unet": ("softmax", _ELU)}
# Spleeter leaves Adadelta at TensorFlow's defaults, whatever learning_rate says.
_OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "SGD": {"_target_": "torch.optim.SGD"},
    "Adadelta": {"_target_": "torch.optim.Adadelta", "lr": 1e-3, "rho": 0.95, "eps": 1e-8},
}
_ADDED = {"optimizer.rho", "optimizer.eps"}  # keys that conf/ does not have yet, which Hydra wants to know

_NOT_OURS = {
    "throttle_secs": "validation counts steps, not seconds: trainer.val_check_interval.",
    "validation_cache": "one folder, data.cache, holds the spectrograms of both splits.",
    "MWF": "a choice at separation: stemwise separate --mwf.",
}


@dataclass(frozen=True)
class Recipe:
    """A training: options of config groups, values of keys in dotted form, and what could not be said."""

    source: str
    choices: Mapping[str, str]
    values: Mapping[str, Any]
    remarks: Mapping[str, str]


def translate(given: Path | str) -> Recipe:
    """Our recipe for a configuration in a JSON file, or of a released name such as `4stems`.

    Raises `UserError` for what is not a configuration of Spleeter's, or of a network or loss that is not here.
    """
    config = configuration.load(given)
    if (loss := config.raw.get("loss_type", "L1_mask")) != "L1_mask":
        raise UserError(f"{config.source}: loss_type is {loss!r}; training here has only Spleeter's default, L1_mask.")
    with torch.device("meta"):
        config.separator()  # which finds what does not fit together
    model = _model(config)
    values = {
        "stem_names": list(config.stems),
        **_different("spectrogram", asdict(config.spectrogram), asdict(Spectrogram())),
        **_different("model.unet", asdict(config.unet), asdict(_MODELS[model][1])),
        **_different("model.mask", asdict(config.mask), asdict(MaskRule())),
        **_optimizer(config),
        "normalization": "stored",  # see `training.SeparatorTraining`
        **_data(config),
        **_run(config),
    }
    if len(config.stems) > 1:
        # Spleeter's stems always divide all of the mixture among themselves.
        values["model.mask.rest"] = False
    _check_texts(config.source, values)
    choices = {"data": "csv", "model": model, **({} if _other_optimizer(config) else {"optimizer": "tf_adam"})}
    return Recipe(config.source, choices, values, _remarks(config))


def _model(config: Config) -> str:
    """The option of conf/model that is nearest."""
    alike = [name for name, (output, _) in _MODELS.items() if output == config.output]
    return min(alike, key=lambda name: len(_different("", asdict(config.unet), asdict(_MODELS[name][1]))))


def _check_texts(source: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            # OmegaConf's way to escape it does not work in every text.
            if isinstance(text, str) and "${" in text:
                raise UserError(f"{source}: {text!r} would become {key}, where ${{ refers to other keys. Rename it.")


def _different(prefix: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{prefix}.{name}": value for name, value in values.items() if value != defaults[name]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _optimizer(config: Config) -> dict[str, Any]:
    values = {"lr": _number(config, "learning_rate"), **_other_optimizer(config)}
    return {f"optimizer.{key}": value for key, value in values.items() if value is not None}


def _other_optimizer(config: Config) -> Mapping[str, Any]:
    """What to set for an optimiser that is not Adam; Spleeter takes a name that it does not know for Adam."""
    name = config.raw.get("optimizer")
    return _OPTIMIZERS.get(name, {}) if isinstance(name, str) else {}


def _data(config: Config) -> dict[str, Any]:
    values = {
        "data.train": _text(config, "train_csv"),
        "data.valid": _text(config, "validation_csv"),
        "data.batch_size": _whole(config, "batch_size", 8),
        "data.examples_per_song": _whole(config, "n_chunks_per_song", 2),
    }
    given = {key: value for key, value in values.items() if value is not None}
    return given | {"data.cache": _text(config, "training_cache")}  # None: no cache, in both programs


def _run(config: Config) -> dict[str, Any]:
    values = {
        "trainer.max_steps": _whole(config, "train_max_steps", None),
        # Checkpoints are written with each validation.
        "trainer.val_check_interval": _whole(config, "save_checkpoints_steps", None),
        "trainer.log_every_n_steps": _whole(config, "save_summary_steps", None),
        "seed": _whole(config, "random_seed", 0, least=0),
        "hydra.run.dir": _text(config, "model_dir"),
    }
    return {key: value for key, value in values.items() if value is not None}


def _whole(config: Config, key: str, default: int | None, least: int = 1) -> int | None:
    value = config.raw.get(key, default)
    if value is not None and (type(value) is not int or value < least):
        raise UserError(f"{config.source}: {key} is {value!r}, not a whole number from {least} on. Mend it.")
    return value


def _number(config: Config, key: str) -> float | None:
    value = config.raw.get(key)
    if value is not None and (type(value) not in (int, float) or not 0 < value < 1e6):
        raise UserError(f"{config.source}: {key} is {value!r}, not a number above zero. Mend it.")
    return value


def _text(config: Config, key: str) -> str | None:
    value = config.raw.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{config.source}: {key} is {value!r}, not a path. Mend it.")
    return value


def _remarks(config: Config) -> dict[str, str]:
    raw = config.raw
    remarks = {key: why for key, why in _NOT_OURS.items() if key in raw}
    if (mix := raw.get("mix_name", "mix")) != "mix":
        remarks["mix_name"] = f"the mixture's column must be mix_path: rename {_quoted(f'{mix}_path')} in both CSVs."
    if "n_chunks_per_song" in raw or "chunk_duration" in raw:
        remarks["chunk_duration"] = "crops are drawn anew from the whole song, not from fixed chunks of it."
    if "training_cache" in raw:
        remarks["training_cache"] = "data.storage=decibel keeps 8 bits as Spleeter does; our default is finer."
    if raw.get("optimizer") == "Adadelta":
        remarks["learning_rate"] = "Spleeter's Adadelta does not use it."
    if not raw.get("train_csv") or not raw.get("validation_csv"):
        remarks["train_csv, validation_csv"] = "not both are given: set data.train and data.valid."
    known = {*configuration.KEYS, *_NOT_OURS}
    remarks |= {key: "not a key that Spleeter knows." for key in raw if key not in known}
    return remarks


def overrides(recipe: Recipe) -> list[str]:
    """The recipe in Hydra's grammar, one override an element."""
    chosen = [f"{group}={option}" for group, option in recipe.choices.items()]
    added = {key: f"+{key}" if key in _ADDED else key for key in recipe.values}
    return chosen + [f"{added[key]}={grammar.text(value)}" for key, value in recipe.values.items()]


def command(recipe: Recipe) -> str:
    """A shell command, with the remarks as comments below it."""
    parts = [shlex.quote(override) for override in (*overrides(recipe), "data.root=/path/to/songs")]
    lines = [" \\\n  ".join(["python -m train", *parts]), *_comments(recipe)]
    return "\n".join(lines)


def experiment(recipe: Recipe, name: str) -> str:
    """A file for `conf/experiment`, to be run as `experiment=<name>`."""
    import yaml

    tree: dict[str, Any] = {}
    for key, value in recipe.values.items():
        *folders, last = key.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    choices = {"defaults": [{f"override /{group}": option} for group, option in recipe.choices.items()]}
    lines = [
        "# @package _global_",
        f"# python -m train experiment={_quoted(name)} data.root=/path/to/songs",
        *_comments(recipe),
    ]
    return "\n".join([*lines, _yaml(yaml, choices), _yaml(yaml, tree)])


def _yaml(yaml: Any, tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)


def _comments(recipe: Recipe) -> list[str]:
    lines = [f"# From Spleeter's {_quoted(Path(recipe.source).name)}; data.root is what Spleeter's -d was."]
    return lines + [f"# {_quoted(key)}: {why}" for key, why in recipe.remarks.items()]


def _quoted(text: str) -> str:
    """A text from the configuration within one line."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
