"""Training and separation on a GPU beside what the card can do at best: `python benchmarks/gpu.py`.

Needs torch and torchaudio, and nothing else: `PYTHONPATH=src python benchmarks/gpu.py` on a bare machine. What needs
more (the whole command: av, soundfile, safetensors) is measured where it is there, and else by a program of the same
steps that reads and writes WAV by Python's own means.

- ceilings: matrix products in each precision, bandwidth of its memory, copies from the host;
- train: steps of 4 stems in each precision, eager and compiled, with CUDA graphs, as a share of the floor (`floor.py`);
- loader: whether 16 workers keep up with training from a cache;
- separate: 4 stems in process, and the whole command on a song of four minutes.

Without a GPU it says so, writes `results/gpu-not-measured.md` and ends well. `--device cpu --tiny` runs all of it at a
tiny size on the processor, to see that it works.
"""

import argparse
import contextlib
import importlib.util
import subprocess
import sys
import tempfile
import wave
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import ceilings
import floor
import gpu_tables
import plain_unet
import report
import timing
import torch
from torch import Tensor

from stemwise import masks, optimizers, spectrogram
from stemwise.cache.storage import Half
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

HERE = Path(__file__).resolve().parent
PARTS = ("train", "loader", "separate")
STEMS = ("vocals", "drums", "bass", "other")
COMPILED = ("default", "reduce-overhead")  # the second with CUDA graphs
# What the loader imports and, with a cache, does not call.
DECODERS = {
    "av": ("audio", "audio.frame", "audio.stream", "codec", "codec.context", "container", "packet"),
    "soundfile": (),
    "rich": ("console", "progress"),
}
COMMAND = ("av", "soundfile", "safetensors", "rich")


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    frames: int
    bins: int
    n_fft: int
    filters: tuple[int, ...]
    batches: tuple[int, ...]
    compiled_batch: int
    seconds: float  # of the song to separate
    songs: int  # in the loader's cache
    song_frames: int
    workers: int

    @property
    def settings(self) -> Spectrogram:
        return Spectrogram(frames=self.frames, bins=self.bins, n_fft=self.n_fft, hop=self.n_fft // 4)


FULL = Size(512, 1024, 4096, plain_unet.FULL, (4, 16, 64), 16, 240.0, 16, 5000, 16)
TINY = Size(16, 16, 64, (4, 6), (2, 4), 2, 0.2, 4, 40, 2)


@dataclass(frozen=True)
class Precision:
    """What autocast computes in (None: no autocast), whether float32 may be TF32, and the name of the ceiling."""

    autocast: torch.dtype | None
    tf32: bool
    ceiling: str

    @property
    def value(self) -> int:
        """Bytes of an activation."""
        return (self.autocast or torch.float32).itemsize


PRECISIONS = {
    "fp32": Precision(None, False, "float32"),
    "tf32": Precision(None, True, "tf32"),
    "bf16": Precision(torch.bfloat16, True, "bfloat16"),
    "fp16": Precision(torch.float16, True, "float16"),
}


def main() -> int:
    """Measures what the device can do and writes the report."""
    options = _parser().parse_args()
    if options.wav:
        separate_wav(options.device, *options.wav)
        return 0
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        _not_measured()
        return 0
    size = TINY if options.tiny else FULL
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        found = measure(options, size, Path(folder))
    _report(options, size, found)
    return 0


def measure(options: argparse.Namespace, size: Size, work: Path) -> dict[str, Any]:
    """The numbers of all parts that were asked for."""
    precisions = {name: PRECISIONS[name] for name in options.precisions}
    found: dict[str, Any] = {"ceilings": _ceilings(options.device)}
    if "train" in options.parts:
        found["train"] = train(options, size, precisions, found["ceilings"])
    if "loader" in options.parts:
        found["loader"] = loader(options, size, work)
    if "separate" in options.parts:
        found["separate"] = separate(options, size, precisions)
        found["command"] = whole_command(options, size, work)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and songs, to see that all of it runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--compiled", nargs="*", choices=COMPILED, default=COMPILED, help="modes (default: both)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--scratch", help="folder for the loader's cache, 2 GB (default: the system's)")
    parser.add_argument("--wav", nargs=2, type=Path, help=argparse.SUPPRESS)
    return parser


def _not_measured() -> None:
    """A table of the same rows that says that nothing was measured."""
    rows = [(what, "not measured", target) for what, target in gpu_tables.ROWS]
    text = "# On a GPU\n\nNo CUDA device: not measured.\n\n" + report.table(("what", "ours", "target"), rows)
    report.RESULTS.mkdir(parents=True, exist_ok=True)
    (report.RESULTS / "gpu-not-measured.md").write_text(text + "\n", encoding="utf-8")
    print(text)


# The device


def _ceilings(device: str) -> dict[str, float]:
    """Operations a second by precision, and bytes a second of its memory and of a copy from pinned host memory."""
    rates = ceilings.matrix_rates(device)
    # On the processor there is no TF32, and float16 is not used.
    rates = {name: rates.get(name, rates["float32"]) for name in {p.ceiling for p in PRECISIONS.values()}}
    return {**rates, "memory": ceilings.bandwidth(device), "copy": _copy_rate(device)}


def _copy_rate(device: str) -> float:
    host = torch.ones(2**26)
    if torch.device(device).type == "cuda":
        host = host.pin_memory()
    target = torch.empty_like(host, device=device)
    times = timing.in_turn({"": lambda: target.copy_(host, non_blocking=True)}, 10)
    return 4 * host.numel() / times[""].lowest


@contextlib.contextmanager
def _computing(precision: Precision) -> Iterator[None]:
    """With or without TF32, which are settings of the whole process."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high" if precision.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = precision.tf32
    torch.backends.cudnn.benchmark = True  # as `trainer=gpu` has it
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


# Training


def train(
    options: argparse.Namespace, size: Size, precisions: Mapping[str, Precision], rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row for each network, precision, mode and batch."""
    cases = [("plain, contiguous", "fp32", None, batch) for batch in size.batches if "fp32" in precisions]
    cases += [("stemwise", name, None, batch) for batch in size.batches for name in precisions]
    best = "bf16" if "bf16" in precisions else next(iter(precisions))
    cases += [("stemwise", best, mode, size.compiled_batch) for mode in options.compiled]
    return [_trained(options, size, rates, *case) for case in cases]


def _trained(
    options: argparse.Namespace,
    size: Size,
    rates: Mapping[str, float],
    network: str,
    name: str,
    mode: str | None,
    batch: int,
) -> dict[str, Any]:
    precision = PRECISIONS[name]
    shape = (batch, 2, size.frames, size.bins)
    layers = floor.training_step(floor.full_size(len(STEMS), size.filters), shape, precision.value)
    least = floor.floor(layers, rates[precision.ceiling], rates["memory"])
    row = {"network": network, "precision": name, "compile": mode, "batch": batch, "floor": least.seconds}
    _reset_peak(options.device)
    try:
        with _computing(precision):
            model = _plain(size) if network.startswith("plain") else _separator(size)
            step = step_of(model.to(options.device), precision, mode)
            mixture, stems = _batch(shape, options.device)
            first = timing.timed(lambda: step(mixture, stems))
            times = timing.in_turn({"": lambda: step(mixture, stems)}, options.repeats, warmup=3)[""]
    except torch.OutOfMemoryError:
        return {**row, "seconds": (), "why": "out of memory"}
    found = {"seconds": times.seconds, "share": least.seconds / times.median, "first": first}
    return {**row, **found, "examples": batch / times.median, "peak": _peak(options.device)}


def step_of(model: torch.nn.Module, precision: Precision, mode: str | None) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of training on a mixture (B, C, T, F) and its stems (B, S, C, T, F), as Lightning runs ours."""
    device = next(model.parameters()).device
    adam = optimizers.adam(model.parameters())
    scaler = torch.amp.GradScaler(device.type, enabled=precision.autocast == torch.float16 and device.type == "cuda")
    losses = plain_unet.loss_of(model)
    if mode:
        torch.compiler.reset()
        losses = torch.compile(losses, mode=mode, dynamic=False)

    def step(mixture: Tensor, stems: Tensor) -> Tensor:
        adam.zero_grad()
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device.type, precision.autocast, enabled=precision.autocast is not None):
            loss = losses(mixture, stems)
        scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        return loss.detach()

    return step


def _separator(size: Size) -> Separator:
    unet = UNetSettings(filters=size.filters, encoder_activation="elu", decoder_activation="elu")
    return Separator(STEMS, size.settings, unet, MaskRule())


def _plain(size: Size) -> torch.nn.Module:
    return plain_unet.PlainSeparator(len(STEMS), filters=size.filters)


def _batch(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    return torch.rand(*shape, device=device), torch.rand(shape[0], len(STEMS), *shape[1:], device=device)


def _reset_peak(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else 0


# Loader


def loader(options: argparse.Namespace, size: Size, work: Path) -> dict[str, Any]:
    """Examples a second of the loader alone, and steps in bf16 with its batches beside steps with one in memory."""
    batch = size.compiled_batch
    precision = PRECISIONS["bf16"]
    with _computing(precision):
        step = step_of(_separator(size).to(options.device), precision, None)
        resident = _batch((batch, 2, size.frames, size.bins), options.device)
        fed = feed(size, work, batch, options.device)
        for _ in range(3):
            step(*next(fed))
        count = max(options.repeats, 2) * 2
        alone = timing.timed(lambda: [next(fed) for _ in range(count)]) / count
        # In turn, so that both meet the same machine; the loader's queue is as full before each as it will be.
        times = timing.in_turn(
            {
                "resident": lambda: [step(*resident) for _ in range(count)],
                "fed": lambda: [step(*next(fed)) for _ in range(count)],
            },
            3,
        )
    resident_s, fed_s = (times[name].median / count for name in ("resident", "fed"))
    return {
        "workers": size.workers,
        "batch": batch,
        "loader, examples per second": batch / alone,
        "step, one batch in memory": resident_s,
        "step, batches from the loader": fed_s,
        "waiting": max(1 - resident_s / fed_s, 0.0),
    }


def feed(size: Size, work: Path, batch: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device from a cache that is made here, by the loader that training has, without end."""
    _do_without(DECODERS)
    from stemwise import examples  # its imports are why this is not above
    from stemwise.sharing import Pool

    songs, source = _cached(size, work)
    pool = Pool(examples.packed_size(batch, len(STEMS), source), size.workers)
    crops = examples.RandomCrops(songs, source, [], complete=True, seed=0, pool=pool)
    order = examples.Order(len(songs), max(4 * batch * size.workers // len(songs), 1), batch, seed=0)
    batches = torch.utils.data.DataLoader(
        crops,
        batch,
        sampler=order,
        num_workers=size.workers,
        collate_fn=_as_is,
        pin_memory=torch.device(device).type == "cuda",
        persistent_workers=True,
    )
    magnitudes = Pool(4 * batch * (1 + len(STEMS)) * 2 * size.frames * size.bins)
    while True:
        for found in batches:
            found["records"] = found["records"].to(device, non_blocking=True)
            ready = examples.unpacked(found, source, magnitudes)
            yield ready["mixture"], ready["stems"]


def _as_is(batch: Any) -> Any:
    return batch


def _do_without(packages: Mapping[str, Sequence[str]]) -> None:
    """Puts something in the place of the packages that are missing: crops from a cache call nothing of them.

    But for a checksum, which is then another one.
    """
    if importlib.util.find_spec("google_crc32c") is None:
        sys.modules["google_crc32c"] = MagicMock(extend=lambda so_far, piece: zlib.crc32(piece, so_far))
    for package, modules in packages.items():
        if importlib.util.find_spec(package) is None:
            for name in (package, *(f"{package}.{module}" for module in modules)):
                sys.modules[name] = MagicMock()


def _cached(size: Size, work: Path) -> tuple[list[Any], Any]:
    """Songs whose files hold nothing, and a cache that has spectrograms of noise for them."""
    from stemwise.cache import entries
    from stemwise.cache.store import Cache
    from stemwise.catalogue import Song
    from stemwise.index import Cell

    cache = Cache(work / "cache", size.settings, Half())
    songs = []
    for number in range(size.songs):
        signals = []
        for name in ("mixture", *STEMS):
            path = work / f"{number}-{name}"
            path.write_text(path.name)
            signal = (Cell(path),)
            spectra = torch.randn(2, size.song_frames, size.bins, dtype=torch.complex64)
            entries.create(cache.path(signal), cache.kind, [Half().encode(spectra).tobytes()])
            signals.append(signal)
        songs.append(Song(str(number), signals[0], tuple(signals[1:]), 60.0))
    return songs, cache


# Separation


def separate(options: argparse.Namespace, size: Size, precisions: Mapping[str, Precision]) -> list[dict[str, Any]]:
    """Seconds of a song from host memory to stems in host memory, and of the stages of one window."""
    samples = torch.rand(2, round(size.seconds * size.settings.sample_rate)) - 0.5
    found = []
    for name, precision in precisions.items():
        model = _separator(size).eval().to(options.device)
        model.lower(precision.autocast or torch.float32)
        with _computing(precision):
            calls = {name: lambda model=model: model.separate(samples).cpu(), **_stages(model, options.device)}
            times = timing.in_turn(calls, options.repeats)
        found.append(
            {
                "precision": name,
                "seconds": times[name].seconds,
                "real time": size.seconds / times[name].median,
                "stages": {stage: times[stage].median for stage in calls if stage != name},
            }
        )
    return found


@torch.inference_mode()
def _stages(model: Separator, device: str) -> dict[str, Callable[[], object]]:
    """What is done to a window of T frames, stage by stage."""
    settings = model.spectrogram
    samples = torch.rand(settings.channels, settings.frames * settings.hop + settings.overlap, device=device) - 0.5
    spectrum = spectrogram.spectra(samples, settings)
    magnitudes = spectrum[..., : settings.bins].abs().unsqueeze(0)
    estimates = magnitudes.unsqueeze(1).repeat(1, len(model.stems), 1, 1, 1)

    def networks() -> Tensor:
        with torch.inference_mode():
            return model(magnitudes)

    return {
        "STFT": lambda: spectrogram.spectra(samples, settings),
        "networks": networks,
        "masks": lambda: masks.ratio(estimates, magnitudes, model.mask),
        "inverse": lambda: [spectrogram.overlap_add(spectrum, settings) for _ in model.stems],
    }


def whole_command(options: argparse.Namespace, size: Size, work: Path) -> dict[str, Any]:
    """Seconds of a process that separates a WAV file into WAV files, from its start to its end."""
    song = work / "song.wav"
    _write_wav(song, torch.rand(2, round(size.seconds * size.settings.sample_rate)) - 0.5, size.settings.sample_rate)
    missing = [name for name in COMMAND if importlib.util.find_spec(name) is None]
    command = _stand_in(options, size, song, work) if missing else _command(options, size, song, work)

    def call() -> None:
        subprocess.run(command, check=True, capture_output=True)

    times = timing.in_turn({"": call}, max(options.repeats // 3, 1))[""]
    what = f"the same steps, WAV by Python's own means (missing: {', '.join(missing)})" if missing else "the command"
    return {"what": what, "seconds": times.seconds, "real time": size.seconds / times.median}


def _command(options: argparse.Namespace, size: Size, song: Path, work: Path) -> list[str | Path]:
    from stemwise import model_file

    model = work / "model.safetensors"
    model_file.save(_separator(size), model, {})
    code = "import sys; from stemwise.cli import main; sys.exit(main())"
    given = ["separate", song, "--model", model, "-o", work / "stems", "--overwrite", "--device", options.device]
    return [sys.executable, "-c", code, *given, "--precision", "bfloat16"]


def _stand_in(options: argparse.Namespace, size: Size, song: Path, work: Path) -> list[str | Path]:
    model = _separator(size)
    torch.save({"size": size.__dict__, "weights": model.state_dict()}, work / "model.pt")
    return [sys.executable, HERE / "gpu.py", "--device", options.device, "--wav", song, work / "stems"]


def separate_wav(device: str, song: Path, output: Path) -> None:
    """What the command does, with 16-bit WAV files and the model beside `song`."""
    stored = torch.load(song.parent / "model.pt", weights_only=True)
    size = Size(**stored["size"])
    model = _separator(size)
    model.load_state_dict(stored["weights"])
    model = model.eval().to(device)
    model.lower(torch.bfloat16)
    with wave.open(str(song), "rb") as file:
        samples = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
        rate = file.getframerate()
    waveform = samples.reshape(-1, 2).T.float() / 2**15
    output.mkdir(exist_ok=True)
    for stem, found in zip(model.stems, model.separate(waveform).cpu(), strict=True):
        _write_wav(output / f"{stem}.wav", found, rate)


def _write_wav(path: Path, waveform: Tensor, rate: int) -> None:
    """16 bits, from a waveform (2, N) within ±1."""
    values = (waveform.clamp(-1, 1 - 2**-15) * 2**15).round().to(torch.int16).T.contiguous()
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(values.untyped_storage()))


def _report(options: argparse.Namespace, size: Size, found: Mapping[str, Any]) -> None:
    device = report.slug(options.device)
    text = "\n\n".join([_introduction(device, options.repeats, size), *gpu_tables.tables(found)])
    if size is TINY:
        print(text)  # a check of the code is no result
    else:
        report.write("gpu", text, found, {}, summary=gpu_tables.summary(found), device=device)


def _introduction(device: str, repeats: int, size: Size) -> str:
    return (
        f"# On {device}\n\nNetworks with filters {', '.join(map(str, size.filters))} on {size.frames} frames of "
        f"{size.bins} bins; medians of {repeats}, in brackets the lowest and the highest. The floor is what arithmetic "
        "and bytes demand at the rates measured here, layer by layer the larger of the two (`floor.py`)."
        + (" A check of the code at a tiny size: no measurement." if size is TINY else "")
    )


if __name__ == "__main__":
    sys.exit(main())
