"""museval scores of a model over songs: BSSEval v4 as the published tables have it.

Per song and stem, SDR, SIR, SAR and ISR in dB over windows of one second; a song's score is the median of
its windows, a split's the median of its songs. Each song is a JSON file in museval's format.
Axes: S stem, C channel, N sample.
"""

import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stemwise import masks, model_file, progress, signals, spectrogram
from stemwise.cache import fingerprint
from stemwise.errors import UserError
from stemwise.examples import Song
from stemwise.separator import Separator

METRICS = ("SDR", "SIR", "SAR", "ISR")
MODEL = "model"
BASELINES = ("mixture", "oracle")
KEY = "stemwise"  # beside museval's own keys: what the scores depend on


@dataclass
class Scores:
    """dB per song: `values[variant][stem][metric]`, and the stems that could not be scored, per song."""

    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    silent: dict[str, list[str]] = field(default_factory=dict)

    def median(self, variant: str, stem: str, metric: str) -> float:
        """Median over songs; nan if no song has the stem."""
        found = [v for v in self.values.get(variant, {}).get(stem, {}).get(metric, []) if not math.isnan(v)]
        return statistics.median(found) if found else math.nan

    def table(self, stems: Sequence[str]) -> str:
        """Markdown: a row per stem and variant, a column per metric."""
        lines = [f"| stem | what | {' | '.join(METRICS)} |", "|---|---|" + "---:|" * len(METRICS)]
        for stem in stems:
            for variant in self.values:
                cells = " | ".join(f"{self.median(variant, stem, metric):.2f}" for metric in METRICS)
                lines.append(f"| {stem} | {variant} | {cells} |")
        return "\n".join(lines)


def evaluate(
    model_path: Path,
    songs: Sequence[Song],
    folder: Path,
    baselines: Sequence[str],
    workers: int | None = None,
) -> Scores:
    """Scores a model file on songs, several at once, and writes `folder/<variant>/<song>.json`.

    A variant is `model`, or a baseline: `mixture` (the unprocessed mixture as the estimate of every stem) or
    `oracle` (the model's mask rule on the true magnitudes: the ceiling of such masks). Songs whose JSON is
    there, for the same model and files, are not scored again. Stems that are silent throughout a song have
    no score there and are named in the result.
    """
    if wrong := [name for name in baselines if name not in BASELINES]:
        raise UserError(f"baselines={wrong[0]}: not one of {', '.join(BASELINES)}.")
    _check_museval()
    _make(folder)
    jobs = _Songs(model_path, songs, folder, (MODEL, *baselines))
    cores = len(os.sched_getaffinity(0)) if workers is None else workers
    loader = DataLoader(
        jobs,
        batch_size=None,
        num_workers=min(cores, len(songs)),
        collate_fn=_same,
        worker_init_fn=_start_worker,
    )
    scores = Scores({variant: {} for variant in (MODEL, *baselines)})
    try:
        for number, found in progress.track(loader, what="Scoring songs", total=len(songs)):
            if isinstance(found, str):
                raise UserError(found)
            for variant, document in found.items():
                _add(scores.values[variant], document)
            if silent := sorted(set(jobs.stems) - {target["name"] for target in found[MODEL]["targets"]}):
                scores.silent[songs[number].name] = silent
    except KeyboardInterrupt:
        _end_workers()
        raise
    return scores


def oracle(mixture: Tensor, stems: Tensor, model: Separator) -> Tensor:
    """Estimates (S, C, N) by `model`'s mask rule from the true magnitudes of the stems (S, C, N)."""
    settings, rule = model.spectrogram, model.mask
    spectrum = spectrogram.stft(mixture, settings)
    truths = torch.stack([spectrogram.stft(stem, settings)[..., : settings.bins].abs() for stem in stems])
    found = masks.ratio(truths.unsqueeze(0), spectrum[..., : settings.bins].abs().unsqueeze(0), rule)[0]
    return torch.stack(
        [
            spectrogram.istft(
                masks.extend(mask, settings.full_bins, rule.extension) * spectrum, mixture.shape[-1], settings
            )
            for mask in found
        ]
    )


def bss_eval(references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int) -> dict[str, Any]:
    """museval's JSON document for the stems (S, C, N) that are not silent, in references and estimates."""
    import museval

    heard = [i for i in range(len(stems)) if _is_heard(references[i]) and _is_heard(estimates[i])]
    store = museval.TrackStore(track_name="", win=1.0, hop=1.0)
    if heard:
        values = museval.evaluate(
            references[heard].transpose(1, 2).double().numpy(),
            estimates[heard].transpose(1, 2).double().numpy(),
            win=sample_rate,
            hop=sample_rate,
        )
        for row, i in enumerate(heard):
            by_metric = dict(zip(("SDR", "ISR", "SIR", "SAR"), (value[row].tolist() for value in values), strict=True))
            store.add_target(stems[i], by_metric)
    return json.loads(store.json)


class _Songs(Dataset[tuple[int, dict[str, Any] | str]]):
    """Item i scores song i, or reads its scores: work for a loader's processes."""

    def __init__(self, model_path: Path, songs: Sequence[Song], folder: Path, variants: Sequence[str]) -> None:
        self.model = model_file.load(model_path)
        self.songs, self.folder, self.variants = songs, folder, variants
        self.digest = hashlib.blake2b(model_path.read_bytes(), digest_size=16).hexdigest()
        self.stems = self.model.stems
        self.paths = [_file_name(song.name) for song in songs]

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, number: int) -> tuple[int, dict[str, Any] | str]:
        keys = {variant: self._key(variant, self.songs[number]) for variant in self.variants}
        paths = {variant: self.folder / variant / self.paths[number] for variant in self.variants}
        found = {variant: _read(paths[variant], key) for variant, key in keys.items()}
        try:
            if missing := [variant for variant, document in found.items() if document is None]:
                found |= self._score(self.songs[number], missing)
                for variant in missing:
                    _write(paths[variant], {**found[variant], KEY: keys[variant]})  # type: ignore[dict-item]
        except UserError as error:
            return number, f"{self.songs[number].name}: {error}"
        return number, found

    def _score(self, song: Song, variants: Sequence[str]) -> dict[str, Any]:
        waveforms = signals.stack([song.mixture, *song.stems], self.model.spectrogram)
        mixture, stems = waveforms[0], waveforms[1:]
        make = {
            MODEL: lambda: self.model.separate(mixture),
            "mixture": lambda: mixture.expand_as(stems),
            "oracle": lambda: oracle(mixture, stems, self.model),
        }
        rate = self.model.spectrogram.sample_rate
        return {variant: bss_eval(stems, make[variant](), self.stems, rate) for variant in variants}

    def _key(self, variant: str, song: Song) -> str:
        """Names all that a variant's scores of a song depend on."""
        how = {
            MODEL: self.digest,
            "mixture": self.model.spectrogram.sample_rate,
            "oracle": self.model.settings,
        }
        files = [[(fingerprint(c.path), c.stream, c.channel) for c in s] for s in (song.mixture, *song.stems)]
        parts = json.dumps([how[variant], self.model.spectrogram.channels, list(self.stems), files])
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _add(values: dict[str, dict[str, list[float]]], document: Mapping[str, Any]) -> None:
    """Adds a song's medians over its windows."""
    for target in document["targets"]:
        stem = values.setdefault(target["name"], {metric: [] for metric in METRICS})
        for metric in METRICS:
            # museval writes windows in which a stem is silent as nan.
            frames = [frame["metrics"][metric] for frame in target["frames"]]
            known = [value for value in frames if value is not None and not math.isnan(value)]
            stem[metric].append(statistics.median(known) if known else math.nan)


def _is_heard(waveform: Tensor) -> bool:
    # museval calls silent what sums to zero over the channels at every sample.
    return bool((waveform.double().sum(dim=0) != 0).any())


def _read(path: Path, key: str) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get(KEY) == key else None


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """The file appears complete or not at all."""
    _make(path.parent)
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
            try:
                json.dump(document, file, indent=1)
                file.flush()
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(path.parent, error) from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from None


def _not_written(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: the scores cannot be written there ({error.strerror}). Set output to another folder, or make room."
    )


def _file_name(song: str) -> str:
    """A file name of its own for each song: without slashes or a dot in front, and at most 255 bytes."""
    name = re.sub(r"[/\\\0]", "_", song).lstrip(".")
    if name and name == song and len(os.fsencode(name)) <= 250 and not re.search(r"-[0-9a-f]{12}$", name):
        return f"{name}.json"
    # What was changed or cut may now be called as another song: a digest of the full name tells them apart.
    digest = hashlib.blake2b(os.fsencode(song), digest_size=6).hexdigest()
    return f"{os.fsencode(name)[:237].decode('utf-8', 'ignore')}-{digest}.json"


def _check_museval() -> None:
    try:
        import museval  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"evaluation needs museval ({error}). pip install 'stemwise[eval]'") from None
    except RuntimeError as error:
        # stempeg, which museval imports, looks for both programs.
        raise UserError(f"evaluation needs ffmpeg and ffprobe on the PATH ({error}). apt-get install ffmpeg") from None


def _start_worker(_: int) -> None:
    """One thread per song, because songs run side by side; Ctrl-C is the main process's business."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threadpool_limits(1)


def _end_workers() -> None:
    """Ends the songs that are being scored; their loader would wait five seconds for each."""
    # torch's handler takes a worker that was ended for one that crashed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.terminate()


def _same(item: Any) -> Any:
    return item
