"""Just enough of TensorFlow's checkpoint format to load Spleeter's reference models in a test.

`model.index` is a LevelDB table whose footer points to an index block and that to data blocks; a block holds
prefix-compressed keys (variable names) with protocol buffers that say where a variable lies in the data file.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

ACTIVATIONS = {None: None, "ELU": "elu", "ReLU": "relu", "LeakyReLU": "leaky_relu"}


def load(folder: Path) -> Separator:
    """The model that Spleeter's config.json and checkpoint in `folder` describe, ready for inference."""
    config = json.loads((folder / "config.json").read_text())
    shape = {"n_fft": "frame_length", "hop": "frame_step", "bins": "F", "frames": "T", "channels": "n_channels"}
    params = config["model"]["params"]
    chosen = {
        "encoder_activation": ACTIVATIONS[params.get("conv_activation")],
        "decoder_activation": ACTIVATIONS[params.get("deconv_activation")],
    }
    model = Separator(
        config["instrument_list"],
        Spectrogram(config["sample_rate"], **{ours: config[theirs] for ours, theirs in shape.items()}),
        UNetSettings(params["conv_n_filters"], **{name: value for name, value in chosen.items() if value}),
        MaskRule(config["separation_exponent"], config["mask_extension"]),
        "softmax" if config["model"]["type"] == "unet.softmax_unet" else "sigmoid",
    )
    model.load_state_dict(_state(_variables(folder / "model"), len(model.stems), len(model.unet.filters)), strict=False)
    return model.eval()


def _state(variables: dict[str, np.ndarray], stems: int, layers: int) -> dict[str, torch.Tensor]:
    """Weights under our names. Numbers count on from stem to stem; the first has none."""
    state = {}

    def put(kind: str, number: int, variable: str, name: str) -> None:
        value = torch.from_numpy(variables[f"{kind}{f'_{number}' if number else ''}/{variable}"])
        # (h, w, in, out) -> (out, in, h, w), and transposed (h, w, out, in) -> (in, out, h, w).
        state[name] = value.permute(3, 2, 0, 1) if value.ndim == 4 else value

    def norm(number: int, name: str) -> None:
        pairs = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        for theirs, ours in pairs.items():
            put("batch_normalization", number, theirs, f"{name}.{ours}")

    for stem in range(stems):
        for theirs, ours in (("kernel", "weight"), ("bias", "bias")):
            for layer in range(layers):
                put("conv2d", stem * (layers + 1) + layer, theirs, f"unets.{stem}.encoder.{layer}.{ours}")
                decoder = f"unets.{stem}.decoder.{layer}"
                put("conv2d_transpose", stem * layers + layer, theirs, f"{decoder}.convolution.{ours}")
            put("conv2d", stem * (layers + 1) + layers, theirs, f"unets.{stem}.last.{ours}")
        for layer in range(layers):
            if layer < layers - 1:  # the encoder's last normalisation has no effect, and no place in our network
                norm(stem * 2 * layers + layer, f"unets.{stem}.encoder_norms.{layer}")
            norm((stem * 2 + 1) * layers + layer, f"unets.{stem}.decoder.{layer}.norm")
    return state


def _variables(prefix: Path) -> dict[str, np.ndarray]:
    index = prefix.with_suffix(".index").read_bytes()
    data = prefix.with_suffix(".data-00000-of-00001").read_bytes()
    found = {}
    at, handle = len(index) - 48, []
    for _ in range(4):  # where the meta-index block lies, then the index block
        value, at = _varint(index, at)
        handle.append(value)
    for _, where in _block(index, *handle[2:]):
        offset, at = _varint(where, 0)
        for key, entry in _block(index, offset, _varint(where, at)[0]):
            fields = _fields(entry)
            if key and fields[1] == [1]:  # float32; the empty key is the header
                start, size = fields.get(4, [0])[0], fields[5][0]
                shape = [_fields(dim)[1][0] for dim in _fields(fields[2][0]).get(2, [])] if fields[2][0] else []
                found[key.decode()] = np.frombuffer(data[start : start + size], "<f4").reshape(shape).copy()
    return found


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    assert data[offset + size] == 0, "compressed block"
    block = data[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        at += own + length
        yield key, block[at - length : at]


def _fields(message: bytes) -> dict[int, list]:
    """Protocol buffer: field number -> its values, integers or bytes."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if tag & 7 == 2 else (8 if tag & 7 == 1 else 4, at)
            value, at = message[at : at + length], at + length
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
