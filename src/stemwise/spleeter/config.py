"""Spleeter's JSON configurations in our terms, and the other way round.

`frame_length`, `frame_step`, `F`, `T` and `n_channels` are `Spectrogram`'s n_fft, hop, bins, frames and channels;
`conv_n_filters` and the activations are `UNetSettings`; `separation_exponent` and `mask_extension` are `MaskRule`;
`unet.unet` and `unet.softmax_unet` are the outputs `sigmoid` and `softmax`. What Spleeter does with each was read in
spleeter.model and spleeter.model.functions.unet of version 2.4.2.

One thing differs on purpose. Spleeter divides by the overlap of its windows with the constant 2/3, which is right
for a `frame_step` of a quarter of the `frame_length`; ours is exact for any (`spectrogram.overlap_add`). With another
overlap Spleeter's output is ours times the constant 2/3 · Σ window² / frame_step, for example twice as loud for 1/8.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import MOST_STEMS, Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

FILE = "config.json"
TYPES = {"unet.unet": "sigmoid", "unet.softmax_unet": "softmax"}
EXTENSIONS = ("zeros", "average")
LAYERS = 6

# Spleeter's key -> the field of our `Spectrogram`.
FRAMES = {
    "sample_rate": "sample_rate",
    "n_channels": "channels",
    "frame_length": "n_fft",
    "frame_step": "hop",
    "F": "bins",
    "T": "frames",
}

# A name that is not among these is taken for the default, which is listed first.
_ENCODER = {"LeakyReLU": "leaky_relu", "ReLU": "relu", "ELU": "elu"}
_DECODER = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu"}

_REQUIRED = (*FRAMES, "instrument_list", "separation_exponent", "mask_extension", "model")
_LARGEST_FILE = 2**20  # bytes
_MOST_FILTERS = 2**16

# What Spleeter's own configurations have in common; `spleeter train` wants every key.
_COMMON: dict[str, Any] = {
    "train_csv": "path/to/train.csv",
    "validation_csv": "path/to/test.csv",
    "mix_name": "mix",
    "sample_rate": 44100,
    "frame_length": 4096,
    "frame_step": 1024,
    "T": 512,
    "F": 1024,
    "n_channels": 2,
    "separation_exponent": 2,
    "mask_extension": "zeros",
    "learning_rate": 1e-4,
    "batch_size": 4,
    "training_cache": "training_cache",
    "validation_cache": "validation_cache",
    "train_max_steps": 1_000_000,
    "throttle_secs": 300,
    "random_seed": 0,
    "save_checkpoints_steps": 150,
    "save_summary_steps": 5,
}
KEYS = (
    *_COMMON,
    "instrument_list",
    "model",
    "model_dir",
    "n_chunks_per_song",
    "chunk_duration",
    "optimizer",
    "loss_type",
)
"""All keys that Spleeter reads."""

_ELU = {"conv_activation": "ELU", "deconv_activation": "ELU"}
_LARGER = {"throttle_secs": 600, "save_checkpoints_steps": 300}
_SETS: dict[str, dict[str, Any]] = {
    "2stems": {
        **_COMMON,
        "instrument_list": ["vocals", "accompaniment"],
        "model": {"type": "unet.unet", "params": {}},
    },
    "4stems": {
        **_COMMON,
        **_LARGER,
        "instrument_list": ["vocals", "drums", "bass", "other"],
        "train_max_steps": 1_500_000,
        "random_seed": 3,
        "model": {"type": "unet.unet", "params": _ELU},
    },
    "5stems": {
        **_COMMON,
        **_LARGER,
        "instrument_list": ["vocals", "piano", "drums", "bass", "other"],
        "train_max_steps": 2_500_000,
        "random_seed": 8,
        "model": {"type": "unet.softmax_unet", "params": _ELU},
    },
}

RELEASED: Mapping[str, Mapping[str, Any]] = {
    f"{name}{suffix}": {**values, "model_dir": name, "F": bins}
    for name, values in _SETS.items()
    for suffix, bins in (("", 1024), ("-16kHz", 1536))
}
"""The configurations that come with Spleeter, by name. The 16 kHz ones share the weights of the others."""


@dataclass(frozen=True)
class Config:
    """What a Spleeter configuration says of a model; `source` is its file or released name, `raw` all its keys."""

    source: str
    raw: Mapping[str, Any]
    stems: tuple[str, ...]
    spectrogram: Spectrogram
    unet: UNetSettings
    mask: MaskRule
    output: str

    def separator(self) -> Separator:
        """A fresh model of these settings."""
        try:
            return Separator(self.stems, self.spectrogram, self.unet, self.mask, self.output)
        except UserError as error:
            _in_our_terms(self.source, error)


def find(folder: Path, given: Path | str | None = None) -> Config:
    """The configuration of the model in `folder`.

    `given` is a file or a released name such as `4stems-16kHz`. Without it, it is the folder's config.json, or what
    the folder's own name says: `2stems`, `2stems-finetune`.
    """
    if given is not None:
        return load(given)
    if (folder / FILE).exists():
        return load(folder / FILE)
    name = folder.resolve().name.removesuffix("-finetune")
    if name in RELEASED:
        return load(name)
    raise UserError(
        f"{folder}: no {FILE}, and {folder.resolve().name!r} is no model that Spleeter released. Say what it is with "
        f"--config: the JSON that it was trained with, or one of {', '.join(RELEASED)}."
    )


def load(given: Path | str) -> Config:
    """The configuration in a JSON file, or of a released name, also written `spleeter:2stems`."""
    name = str(given).removeprefix("spleeter:")
    return parse(RELEASED[name], name) if name in RELEASED else parse(_json(Path(given)), str(given))


def _json(path: Path) -> Any:
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such configuration. Give a JSON file, or one of {', '.join(RELEASED)}.")
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(data) > _LARGEST_FILE:
        raise UserError(f"{path}: more than {_LARGEST_FILE} bytes. This is no configuration of Spleeter.")
    try:
        raw = json.loads(data)
        json.dumps(raw, ensure_ascii=False).encode()
        return raw
    # ValueError: not JSON, a number too long, or half a character; RecursionError: brackets without end.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}). Give Spleeter's configuration of the model.") from None


def parse(raw: Any, source: str) -> Config:
    """The settings in a configuration's keys. Raises `UserError` for what Spleeter or this network does not have."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{source}: not a JSON object with Spleeter's keys.")
    if missing := [key for key in _REQUIRED if key not in raw]:
        raise UserError(f"{source}: no {', '.join(missing)}. Give the whole configuration, as Spleeter needs it.")
    params, output = _model(raw["model"], source)
    if raw["n_channels"] != 2:
        raise UserError(f"{source}: n_channels is {raw['n_channels']!r}; Spleeter's networks are stereo. Set it to 2.")
    if raw["mask_extension"] not in EXTENSIONS:
        raise UserError(
            f"{source}: mask_extension is {raw['mask_extension']!r}, not one of {', '.join(EXTENSIONS)}. Choose one."
        )
    try:
        return Config(
            source,
            raw,
            _stems(raw["instrument_list"], source),
            Spectrogram(**{ours: raw[theirs] for theirs, ours in FRAMES.items()}),
            UNetSettings(
                filters=_filters(params, source),
                encoder_activation=_ENCODER.get(str(params.get("conv_activation")), _ENCODER["LeakyReLU"]),
                decoder_activation=_DECODER.get(str(params.get("deconv_activation")), _DECODER["ReLU"]),
                dropout=0,  # its layers are never told to train: see `training.SeparatorTraining`
            ),
            MaskRule(raw["separation_exponent"], raw["mask_extension"]),
            output,
        )
    except UserError as error:
        _in_our_terms(source, error)


def _in_our_terms(source: str, error: UserError) -> NoReturn:
    message = str(error)
    if not message.startswith(source):
        names = ", ".join(f"{theirs} is {ours}" for theirs, ours in FRAMES.items() if theirs != ours)
        message = f"{source}: {message}" + (f" ({names})" if message.startswith("spectrogram.") else "")
    raise UserError(message) from None


def _model(model: Any, source: str) -> tuple[Mapping[str, Any], str]:
    """The network's parameters, and what our output is called."""
    if not isinstance(model, Mapping):
        raise UserError(f"{source}: model is {model!r}, not an object with type and params.")
    name, params = model.get("type", "unet.unet"), model.get("params")
    if not isinstance(name, str) or name not in TYPES:
        raise UserError(
            f"{source}: model.type is {name!r}; only Spleeter's U-Nets can be taken over: {', '.join(TYPES)}."
        )
    if params is not None and not isinstance(params, Mapping):
        raise UserError(f"{source}: model.params is {params!r}, not an object such as {{}}.")
    return params or {}, TYPES[name]


def _stems(names: Any, source: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not 0 < len(names) <= MOST_STEMS:
        raise UserError(f"{source}: instrument_list is not a list of 1 to {MOST_STEMS} names.")
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{source}: instrument_list: {wrong[0]!r} is no name for a stem. Write names in quotes.")
    return tuple(names)


def _filters(params: Mapping[str, Any], source: str) -> tuple[int, ...]:
    """Filters of the six layers; Spleeter does not look at a seventh number."""
    filters = params.get("conv_n_filters", list(UNetSettings().filters))
    whole = isinstance(filters, list) and all(type(n) is int and 0 < n <= _MOST_FILTERS for n in filters)
    if not whole or len(filters) < LAYERS:
        raise UserError(
            f"{source}: model.params.conv_n_filters is not a list of {LAYERS} whole numbers from 1 to {_MOST_FILTERS}."
        )
    return tuple(filters[:LAYERS])


def describe(model: Separator, model_dir: str) -> tuple[dict[str, Any], list[str]]:
    """Spleeter's configuration for a model of ours, and notes on what differs there.

    Keys of training that a model does not know have the values of Spleeter's own configurations. Raises `UserError`
    for a model that Spleeter has no network or no rule for.
    """
    if len(model.unet.filters) != LAYERS:
        raise UserError(f"Spleeter's networks have {LAYERS} layers, this model {len(model.unet.filters)}.")
    if model.spectrogram.channels != 2:
        raise UserError("Spleeter's networks are stereo, this model is mono.")
    if model.mask.rest:
        raise UserError(
            "this model's masks leave room for what no stem claims (mask.rest), which Spleeter's rule does not have. "
            "Train with model.mask.rest=false."
        )
    types = {ours: theirs for theirs, ours in TYPES.items()}
    params = {
        "conv_n_filters": list(model.unet.filters),
        "conv_activation": _name(_ENCODER, model.unet.encoder_activation),
        "deconv_activation": _name(_DECODER, model.unet.decoder_activation),
    }
    extension = model.mask.extension if model.mask.extension in EXTENSIONS else EXTENSIONS[0]
    values = {
        **_COMMON,
        "model_dir": model_dir,
        "instrument_list": list(model.stems),
        **{theirs: getattr(model.spectrogram, ours) for theirs, ours in FRAMES.items()},
        "separation_exponent": model.mask.exponent,
        "mask_extension": extension,
        "model": {"type": types[model.output], "params": params},
    }
    return values, _differences(model, extension)


def _name(names: Mapping[str, str], activation: str) -> str:
    return next(theirs for theirs, ours in names.items() if ours == activation)


def _differences(model: Separator, extension: str) -> list[str]:
    notes = []
    if model.mask.extension != extension:
        notes.append(
            f"mask.extension={model.mask.extension} is unknown to Spleeter: above F its output is that of {extension}."
        )
    if model.overlap:
        notes.append(f"overlap={model.overlap}: Spleeter's windows do not overlap, so its joins will be worse.")
    if model.spectrogram.n_fft != 4 * model.spectrogram.hop:
        # Σ Hann² is 3/8 of its length.
        gain = 2 / 3 * 3 / 8 * model.spectrogram.n_fft / model.spectrogram.hop
        notes.append(f"Spleeter reckons with windows at 75 % overlap: its output will be {gain:.3g} times as loud.")
    return notes
