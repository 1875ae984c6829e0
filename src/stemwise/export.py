"""A separator for programs without stemwise: its networks as an ONNX file, or as a `torch.export` program.

Both take the magnitudes of a mixture (B, C, T, F) and give those of the stems (B, S, C, T, F), as `Separator.forward`
does; B is free, C, T and F are those of the settings. STFT, masks and the bins above F are the reader's, who finds
all that is needed for them in the file: `{"format": 1, "stems": …, "spectrogram": …, "mask": …}` as JSON, the same
as in a model file.

| file  | input, output          | settings                             | read with                                  |
|-------|------------------------|--------------------------------------|--------------------------------------------|
| .onnx | `mixture`, `estimates` | metadata property `stemwise`         | any runtime that knows opset 18 (2022)     |
| .pt2  | by position            | extra file `stemwise`                | `torch.export.load(path).module()`         |

A file appears under its name only when it is complete and computes what PyTorch does.
"""

import copy
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from stemwise import model_file
from stemwise.errors import UserError
from stemwise.separator import Separator

OPSET = 18
TOLERANCE = 1e-3
# What a protocol buffer, and so a single ONNX file, can hold; some of it is the graph.
LARGEST_ONNX = 2**31 - 2**24
FREE = ({0: torch.export.Dim("batch")},)

Network = Callable[[Tensor], Tensor]


def onnx(model: Separator, path: Path) -> float:
    """Writes an ONNX file and runs it on the CPU: the largest difference from PyTorch, relative to the largest value.

    Needs the packages of the extra `export`. Raises `UserError` without them, for a model beyond 2 GB and for a file
    that cannot be written; `RuntimeError` for a difference of more than 1e-3.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    size = 4 * sum(value.numel() for value in model.state_dict().values())
    if size > LARGEST_ONNX:
        raise UserError(
            f"{path}: {size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB. Export for torch instead."
        )
    return _write(model, path, _onnx_bytes, _onnx_network)


def program(model: Separator, path: Path) -> float:
    """Writes a `torch.export` program, and returns and raises the same as `onnx`; needs no further package."""
    return _write(model, path, _program_bytes, _program_network)


def _write(
    model: Separator, path: Path, encode: Callable[[Separator], bytes], load: Callable[[Path], Network]
) -> float:
    # A copy, because the given one may be in training, on a GPU, or in use by another thread.
    plain = copy.deepcopy(model).cpu().float().eval()
    # A file has its kernels in the order of their axes.
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".stemwise-export-") as folder, _quiet():
            part = Path(folder) / path.name
            part.write_bytes(encode(plain))
            difference = _difference(plain, load(part))
            os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}). Choose another place.") from None
    return difference


def _exported(model: Separator) -> torch.export.ExportedProgram:
    settings = model.spectrogram
    # Not one example: a batch of 1 would be taken for a constant.
    example = torch.rand(2, settings.channels, settings.frames, settings.bins)
    exported = torch.export.export(model, (example,), dynamic_shapes=FREE)
    for node in exported.graph.nodes:
        # Lines of our source with the paths of this machine: nobody else's business.
        node.meta.pop("stack_trace", None)
    return exported


def _onnx_bytes(model: Separator) -> bytes:
    found = torch.onnx.export(
        _exported(model),
        input_names=["mixture"],
        output_names=["estimates"],
        dynamic_shapes=FREE,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert found is not None
    found.model.metadata_props[model_file.METADATA_KEY] = _settings(model)
    return found.model_proto.SerializeToString()


def _onnx_network(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda mixture: torch.from_numpy(session.run(["estimates"], {"mixture": mixture.numpy()})[0])


def _program_bytes(model: Separator) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_exported(model), buffer, extra_files={model_file.METADATA_KEY: _settings(model)})
    return buffer.getvalue()


def _program_network(path: Path) -> Network:
    return torch.export.load(path).module()


def _settings(model: Separator) -> str:
    return json.dumps({"format": model_file.FORMAT, **model.settings})


@torch.inference_mode()
def _difference(model: Separator, network: Network) -> float:
    """Largest difference, relative to the largest value, over batches of 1 and 3."""
    settings = model.spectrogram
    generator = torch.Generator().manual_seed(0)
    largest = difference = torch.zeros(())
    for batch in (1, 3):
        shape = (batch, settings.channels, settings.frames, settings.bins)
        mixture = 10 * torch.rand(shape, generator=generator)
        expected = model(mixture)
        largest = torch.maximum(largest, expected.abs().max())
        difference = torch.maximum(difference, (network(mixture) - expected).abs().max())
    relative = float(difference / largest.clamp(min=torch.finfo(torch.float32).tiny))
    # Written so that NaN fails.
    if not relative <= TOLERANCE:
        raise RuntimeError(f"the exported model differs from PyTorch by {relative:.1e} of the largest value")
    return relative


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the exporters say: that torchvision is missing, that they use old functions, what they did to
    each node."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
