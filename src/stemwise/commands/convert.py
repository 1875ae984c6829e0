"""`stemwise convert`: models and configurations from Spleeter and back, and to other programs' formats.

What is heavy (torch, Hydra's configs) is imported when a conversion runs, so that `--help` is instant.
"""

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stemwise.errors import UserError

if TYPE_CHECKING:
    from stemwise.separator import Separator

Convert = Callable[[argparse.Namespace], int]

EXAMPLES = """examples:
  stemwise convert spleeter pretrained_models/2stems -o 2stems.safetensors
  stemwise convert tensorflow runs/RUN/model.safetensors -o mine
  stemwise convert config musdb_config.json -o conf/experiment/musdb.yaml
  stemwise convert half runs/RUN/model.safetensors -o small.safetensors
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers `convert` with its kinds of conversion."""
    parser = commands.add_parser(
        "convert",
        help="take over Spleeter's models and configurations, or write models for other programs",
        description="Converts models and configurations.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    _add_spleeter(kinds)
    _add_tensorflow(kinds)
    _add_config(kinds)
    _add_half(kinds)
    _add_export(kinds, "onnx", "model.onnx", "ONNX: magnitudes of a mixture to magnitudes of the stems", _onnx)
    _add_export(kinds, "torch", "model.pt2", "torch.export: the same as a PyTorch program", _torch)


def _add_spleeter(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "spleeter",
        help="a model folder of Spleeter -> a model file",
        description="Reads a model that Spleeter released or trained: `checkpoint`, `*.index`, `*.data-*`. No "
        "TensorFlow is needed.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the model's folder")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="a .safetensors file")
    parser.add_argument(
        "--config",
        metavar="C",
        help="the JSON that the model was trained with, or 2stems, 4stems, 5stems, also with -16kHz (default: "
        "config.json in DIR, or what DIR is called)",
    )
    parser.set_defaults(run=_spleeter)


def _spleeter(options: argparse.Namespace) -> int:
    from stemwise import model_file
    from stemwise.spleeter import model as spleeter

    _check_suffix(options.output, ".safetensors")
    model = spleeter.read(options.folder, options.config)
    facts = spleeter.facts(options.folder, options.config)
    model_file.save(model, options.output, facts)
    print(f"{options.output}: {_summary(model)}")
    return 0


def _add_tensorflow(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "tensorflow",
        help="a model -> a model folder of Spleeter",
        description="Writes a TensorFlow checkpoint and a config.json that Spleeter itself can use.",
    )
    _add_model(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--adam", action="store_true", help="with the optimiser's state, so that `spleeter train` can go on from it"
    )
    parser.set_defaults(run=_tensorflow)


def _tensorflow(options: argparse.Namespace) -> int:
    from stemwise.spleeter import model as spleeter

    model = _model(options.model)
    write = spleeter.write_for_training if options.adam else spleeter.write
    notes = write(model, options.output)
    print(f"{options.output}: {_summary(model)}")
    for note in notes:
        print(f"  note: {note}")
    folder = options.output.absolute()
    where, config = shlex.quote(str(folder.parent)), shlex.quote(str(folder / "config.json"))
    print(f"Try: MODEL_PATH={where} spleeter separate -p {config} -o out SONG.mp3")
    return 0


def _add_config(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "config",
        help="a training configuration of Spleeter -> a training command or experiment file",
        description="Translates Spleeter's JSON into our keys. What has no counterpart is listed with the reason.",
    )
    parser.add_argument("config", metavar="JSON", help="Spleeter's configuration, or 2stems, 4stems, 5stems…")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="an experiment file, such as conf/experiment/mine.yaml"
    )
    parser.set_defaults(run=_config)


def _config(options: argparse.Namespace) -> int:
    from stemwise.spleeter import recipe

    translated = recipe.translate(options.config)
    if options.output is None:
        print(recipe.command(translated))
        return 0
    _check_suffix(options.output, ".yaml")
    text = recipe.experiment(translated, options.output.stem)
    _write_text(options.output, text)
    print(f"{options.output}: python -m train experiment={options.output.stem} data.root=/path/to/songs")
    return 0


def _add_half(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "half",
        help="a model file -> one of half the size",
        description="Writes a model file whose kernels have half precision. It separates as fast as before.",
    )
    _add_model(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="a .safetensors file")
    parser.set_defaults(run=_half)


def _half(options: argparse.Namespace) -> int:
    import torch

    from stemwise import model_file, pretrained

    _check_suffix(options.output, ".safetensors")
    model, facts = model_file.read(pretrained.path(options.model))
    largest = max(float(value.detach().abs().max()) for value in model.parameters())
    if not largest <= torch.finfo(torch.float16).max:
        raise UserError(
            f"{options.model}: has weights of up to {largest:g}, which half precision cannot hold. Keep it."
        )
    model_file.save(model, options.output, facts, kernels=torch.float16)
    print(f"{options.output}: {_summary(model)}; {options.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _add_export(
    kinds: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, example: str, title: str, run: Convert
) -> None:
    parser = kinds.add_parser(name, help=title, description=f"{title}. STFT and masks are not part of it.")
    _add_model(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help=f"such as {example}")
    parser.set_defaults(run=run)


def _onnx(options: argparse.Namespace) -> int:
    from stemwise import export

    _check_suffix(options.output, ".onnx")
    return _export(options, export.onnx)


def _torch(options: argparse.Namespace) -> int:
    from stemwise import export

    _check_suffix(options.output, ".pt2")
    return _export(options, export.program)


def _export(options: argparse.Namespace, write: "Callable[[Separator, Path], float]") -> int:
    model = _model(options.model)
    difference = write(model, options.output)
    print(f"{options.output}: {_summary(model)}")
    print(f"  largest difference from PyTorch in a check: {difference:.1e}")
    return 0


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="M", help="a model.safetensors, a .ckpt, or a name such as spleeter:2stems")


def _model(text: str) -> "Separator":
    from stemwise import model_file, pretrained

    return model_file.load(pretrained.path(text))


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise UserError(f"-o {path}: write {path.with_suffix(suffix).name}: what is written is a {suffix} file.")


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"-o {path}: cannot be written ({error.strerror}). Choose another place.") from None


def _summary(model: "Separator") -> str:
    """The model in a line."""
    settings, unet = model.spectrogram, model.unet
    weights = sum(value.numel() for value in model.parameters())
    top = settings.bins * settings.sample_rate / settings.n_fft / 1000
    return (
        f"{', '.join(model.stems)}; {settings.sample_rate} Hz, frames of {settings.n_fft} every {settings.hop}, "
        f"up to {top:.3g} kHz in windows of {settings.frames}; filters {'-'.join(map(str, unet.filters))}, "
        f"{unet.encoder_activation} and {unet.decoder_activation}, {model.output}; {weights:,} weights"
    )
