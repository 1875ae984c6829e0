"""Which of Spleeter's variables is which of our weights.

Keras numbers its layers over all stems, in the order in which they are made: a stem has seven `conv2d` (six encoder
layers and the last), six `conv2d_transpose` and twelve `batch_normalization`; the first of a kind has no number.
The encoder's sixth normalisation is computed and not used (spleeter.model.functions.unet). It has no place in our
network; it is not read, and written as the identity.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemwise.separator import Separator

_CONVOLUTION = {"kernel": "weight", "bias": "bias"}
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_IDENTITY = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}
_KERNEL = re.compile(r"conv2d(_\d+)?/kernel")

# (height, width, in, out) <-> (out, in, height, width); transposed kernels have in and out the other way in both.
_TO_OURS, _TO_KERAS = (3, 2, 0, 1), (2, 3, 1, 0)


def names(model: Separator) -> dict[str, str]:
    """Spleeter's name of a variable -> ours of the weight, for all that the model has."""
    layers = len(model.unet.filters)
    pairs: dict[str, str] = {}
    for stem in range(len(model.stems)):
        unet = f"unets.{stem}"
        for layer in range(layers):
            decoder = f"{unet}.decoder.{layer}"
            pairs |= _layer("conv2d", stem * (layers + 1) + layer, f"{unet}.encoder.{layer}", _CONVOLUTION)
            pairs |= _layer("conv2d_transpose", stem * layers + layer, f"{decoder}.convolution", _CONVOLUTION)
            if layer < layers - 1:
                pairs |= _layer(
                    "batch_normalization", stem * 2 * layers + layer, f"{unet}.encoder_norms.{layer}", _NORM
                )
            pairs |= _layer("batch_normalization", (stem * 2 + 1) * layers + layer, f"{decoder}.norm", _NORM)
        pairs |= _layer("conv2d", stem * (layers + 1) + layers, f"{unet}.last", _CONVOLUTION)
    return pairs


def _layer(kind: str, number: int, ours: str, parts: Mapping[str, str]) -> dict[str, str]:
    layer = f"{kind}_{number}" if number else kind
    return {f"{layer}/{theirs}": f"{ours}.{name}" for theirs, name in parts.items()}


def stems(variables: Mapping[str, Any], layers: int) -> int:
    """How many U-Nets these variables are of."""
    return sum(_KERNEL.fullmatch(name) is not None for name in variables) // (layers + 1)


def shape(weight: Tensor) -> tuple[int, ...]:
    """The shape of Spleeter's variable for a weight of ours."""
    return tuple(weight.shape[axis] for axis in _TO_KERAS) if weight.ndim == 4 else tuple(weight.shape)


def to_ours(value: np.ndarray) -> Tensor:
    """A variable's values in our layout, float32, in memory of their own."""
    return torch.from_numpy(np.array(value.transpose(_TO_OURS) if value.ndim == 4 else value, np.float32, order="C"))


def to_keras(weight: Tensor) -> np.ndarray:
    """A weight's values in Spleeter's layout, float32."""
    value = weight.detach().float().cpu().numpy()
    return value.transpose(_TO_KERAS) if value.ndim == 4 else value


def variables(model: Separator) -> dict[str, np.ndarray]:
    """All the variables of Spleeter's network for a model."""
    state = model.state_dict()
    found = {theirs: to_keras(state[ours]) for theirs, ours in names(model).items()}
    return found | _unused(model)


def _unused(model: Separator) -> dict[str, np.ndarray]:
    layers, width = len(model.unet.filters), model.unet.filters[-1]
    found = {}
    for stem in range(len(model.stems)):
        layer = _layer("batch_normalization", (2 * stem + 1) * layers - 1, "", _NORM)
        for name in layer:
            found[name] = np.full(width, _IDENTITY[name.rpartition("/")[2]], np.float32)
    return found


def trained(model: Separator) -> dict[str, np.ndarray]:
    """Those of `variables` that Spleeter's optimiser changes: all but moving statistics and what is not used."""
    unused = _unused(model)
    every = variables(model).items()
    return {name: value for name, value in every if "/moving_" not in name and name not in unused}
