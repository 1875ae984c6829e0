"""BSSEval v4 scores of a model over songs, as the published tables have them: museval's own, or our solver's.

Per song and stem, SDR, SIR, SAR and ISR in dB over windows of one second; a song's score is the median of
its windows, a split's the median of its songs. Each song is a JSON file in museval's format, whose key `solver` says
what computed it.
Axes: S stem, C channel, N sample.
"""

import hashlib
import json
import math
import os
import re
import signal
import statistics
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stemwise import bss_eval, masks, model_file, progress, signals, spectrogram
from stemwise.cache.store import fingerprint
from stemwise.errors import UserError
from stemwise.examples import Song
from stemwise.separator import Separator
from stemwise.workers import end as end_workers

METRICS = ("SDR", "SIR", "SAR", "ISR")
MODEL = "model"
BASELINES = ("mixture", "oracle")
KEY = "stemwise"  # beside museval's own keys: what the scores depend on
MUSEVAL, TORCH = "museval", "torch"
SOLVERS = (MUSEVAL, TORCH)
READERS = 4  # songs that are decoded ahead of a GPU: each is 0.4 GB for four minutes of 4 stems

# A song's number and the variants of it that are scored together.
Job = tuple[int, Sequence[str]]
# A song's number and the document of each variant.
Result = tuple[int, dict[str, Any]]


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
    solver: str = MUSEVAL,
    device: str = "auto",
) -> Scores:
    """Scores a model file on songs, several at once, and writes `folder/<variant>/<song>.json`.

    A variant is `model`, or a baseline: `mixture` (the unprocessed mixture as the estimate of every stem) or
    `oracle` (the model's mask rule on the true magnitudes: the ceiling of such masks). Songs whose JSON is
    there, for the same model, files and solver, are not scored again. Stems that are silent throughout a song have
    no score there and are named in the result.

    `solver` is `museval`, on the processor, or `torch` (see `bss_eval`). With that, `device` is where networks and
    solver compute: `cpu`, `cuda`, `cuda:1`, or `auto`, the GPU if there is one.
    """
    if wrong := [name for name in baselines if name not in BASELINES]:
        raise UserError(f"baselines={wrong[0]}: not one of {', '.join(BASELINES)}.")
    where = _device(device, solver)
    if solver == MUSEVAL:
        _check_museval()
    _make(folder)
    variants = (MODEL, *baselines)
    cores = len(os.sched_getaffinity(0)) if workers is None else workers
    jobs = _Songs(model_path, songs, folder, _jobs(songs, variants, cores), solver, where)
    results = _in_processes(jobs, cores) if where.type == "cpu" else _read_ahead(jobs, min(cores, READERS))
    found: list[dict[str, Any]] = [{} for _ in songs]
    try:
        for number, documents in progress.track(results, what="Scoring songs", total=len(jobs)):
            found[number] |= documents
    except KeyboardInterrupt:
        end_workers()
        raise
    return _scores(songs, found, variants, jobs.model.stems)


def _jobs(songs: Sequence[Song], variants: Sequence[str], cores: int) -> list[Job]:
    """The longest songs first, so that none is left to one core in the end; a song in parts if there are few."""
    parts = [variants] if len(songs) >= cores else [(variant,) for variant in variants]
    order = sorted(range(len(songs)), key=lambda number: -songs[number].seconds)
    return [(number, part) for number in order for part in parts]


def _in_processes(jobs: "_Songs", cores: int) -> Iterator[Result]:
    """The results of all jobs, as they come, each from a process with its share of the cores."""
    # A single song for torch is best left to all threads of this process; those of another would be torch's own, which
    # do not survive a fork.
    workers = 0 if len(jobs) == 1 and jobs.solver == TORCH else min(cores, len(jobs))
    loader = DataLoader(
        jobs,
        batch_size=None,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=partial(_start_worker, jobs.solver),
        # Whoever is done takes the next song.
        in_order=False,
        prefetch_factor=1 if workers else None,
    )
    for result in loader:
        if isinstance(result, str):
            raise UserError(result)
        yield result


def _read_ahead(jobs: "_Songs", readers: int) -> Iterator[Result]:
    """The results of all jobs, one after the other on one device, while threads decode the next songs."""
    numbers = iter(range(len(jobs)))
    with ThreadPoolExecutor(max(readers, 1)) as pool:
        ahead = deque(pool.submit(jobs.read, number) for number in islice(numbers, max(readers, 1)))
        while ahead:
            read = ahead.popleft().result()
            ahead.extend(pool.submit(jobs.read, number) for number in islice(numbers, 1))
            yield jobs.finish(read)


def _scores(
    songs: Sequence[Song], found: Sequence[Mapping[str, Any]], variants: Sequence[str], stems: Sequence[str]
) -> Scores:
    """Scores in the order of the songs, from the documents of each."""
    scores = Scores({variant: {} for variant in variants})
    for song, documents in zip(songs, found, strict=True):
        for variant in variants:
            _add(scores.values[variant], documents[variant])
        if silent := sorted(set(stems) - {target["name"] for target in documents[MODEL]["targets"]}):
            scores.silent[song.name] = silent
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


def score(
    references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int, solver: str = MUSEVAL
) -> dict[str, Any]:
    """museval's JSON document for the stems (S, C, N) that are not silent, in references and estimates."""
    heard = [i for i in range(len(stems)) if _is_heard(references[i]) and _is_heard(estimates[i])]
    solve = _by_museval if solver == MUSEVAL else _by_torch
    document = solve(references[heard], estimates[heard], [stems[i] for i in heard], sample_rate)
    return {**document, "solver": solver}


def _by_museval(references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int) -> dict[str, Any]:
    import museval

    store = museval.TrackStore(track_name="", win=1.0, hop=1.0)
    if stems:
        values = museval.evaluate(
            references.transpose(1, 2).double().numpy(),
            estimates.transpose(1, 2).double().numpy(),
            win=sample_rate,
            hop=sample_rate,
        )
        for row, stem in enumerate(stems):
            by_metric = dict(zip(("SDR", "ISR", "SIR", "SAR"), (value[row].tolist() for value in values), strict=True))
            store.add_target(stem, by_metric)
    return json.loads(store.json)


def _by_torch(references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int) -> dict[str, Any]:
    if not stems:
        return {"targets": []}
    with torch.inference_mode():
        values = bss_eval.evaluate(references, estimates, sample_rate)
    by_metric = {metric: values[metric].tolist() for metric in ("SDR", "SIR", "SAR", "ISR")}
    return {
        "targets": [
            {
                "name": stem,
                "frames": [
                    # museval's digits.
                    {
                        "time": float(at),
                        "duration": 1.0,
                        "metrics": {m: round(v[row][at], 5) for m, v in by_metric.items()},
                    }
                    for at in range(values["SDR"].shape[-1])
                ],
            }
            for row, stem in enumerate(stems)
        ]
    }


@dataclass(frozen=True)
class _Read:
    """A job's documents, None where there are none yet; if some are missing, the song's (1+S, C, N) to make them of."""

    number: int
    documents: dict[str, dict[str, Any] | None]
    waveforms: Tensor | None


class _Songs(Dataset[Result | str]):
    """Item i does job i, or reads its scores: work for a loader's processes."""

    def __init__(
        self,
        model_path: Path,
        songs: Sequence[Song],
        folder: Path,
        jobs: Sequence[Job],
        solver: str,
        device: torch.device,
    ) -> None:
        self.model = model_file.load(model_path).to(device)
        self.songs, self.folder, self.jobs, self.solver, self.device = songs, folder, jobs, solver, device
        self.digest = hashlib.blake2b(model_path.read_bytes(), digest_size=16).hexdigest()
        self.paths = [_file_name(song.name) for song in songs]

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, job: int) -> Result | str:
        """The job's result; the message if a `UserError` ends it, which no process could hand on with its type."""
        try:
            return self.finish(self.read(job))
        except UserError as error:
            return str(error)

    def read(self, job: int) -> _Read:
        """What is there of a job. Raises `UserError` if the song cannot be read."""
        number, variants = self.jobs[job]
        song = self.songs[number]
        found = {variant: _read(self._path(variant, number), self._key(variant, song)) for variant in variants}
        if all(found.values()):
            return _Read(number, found, None)
        try:
            return _Read(number, found, signals.stack([song.mixture, *song.stems], self.model.spectrogram))
        except UserError as error:
            raise UserError(f"{song.name}: {error}") from None

    def finish(self, read: _Read) -> Result:
        """All of a job's documents; writes those that were missing. Raises `UserError` if that cannot be."""
        song, documents = self.songs[read.number], dict(read.documents)
        missing = [variant for variant, document in documents.items() if document is None]
        if read.waveforms is not None:
            documents |= self._score(read.waveforms, missing)
        try:
            for variant in missing:
                _write(self._path(variant, read.number), {**documents[variant], KEY: self._key(variant, song)})  # type: ignore[dict-item]
        except UserError as error:
            raise UserError(f"{song.name}: {error}") from None
        return read.number, documents

    def _score(self, waveforms: Tensor, variants: Sequence[str]) -> dict[str, Any]:
        mixture, *parts = waveforms.to(self.device)
        stems = torch.stack(parts)
        make = {
            MODEL: lambda: self.model.separate(mixture),
            "mixture": lambda: mixture.expand_as(stems),
            "oracle": lambda: oracle(mixture, stems, self.model),
        }
        rate = self.model.spectrogram.sample_rate
        return {variant: score(stems, make[variant](), self.model.stems, rate, self.solver) for variant in variants}

    def _path(self, variant: str, number: int) -> Path:
        return self.folder / variant / self.paths[number]

    def _key(self, variant: str, song: Song) -> str:
        """Names all that a variant's scores of a song depend on."""
        how = {
            MODEL: self.digest,
            "mixture": self.model.spectrogram.sample_rate,
            "oracle": self.model.settings,
        }
        files = [[(fingerprint(c.path), c.stream, c.channel) for c in s] for s in (song.mixture, *song.stems)]
        parts = [how[variant], self.model.spectrogram.channels, list(self.model.stems), files]
        # museval's name is left out: its scores from before there was another solver are still good.
        parts += [] if self.solver == MUSEVAL else [self.solver]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


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


def _device(name: str, solver: str) -> torch.device:
    """Where networks and solver compute. Raises `UserError` for what is not there, or no solver can use."""
    if solver not in SOLVERS:
        raise UserError(f"solver={solver}: not one of {', '.join(SOLVERS)}.")
    if solver == MUSEVAL and name not in ("auto", "cpu"):
        raise UserError(f"device={name}: museval computes on the processor only. Set solver=torch, or device=cpu.")
    if solver == MUSEVAL or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    there = ["auto", "cpu", "cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name not in there or (name == "cuda" and not torch.cuda.is_available()):
        there.remove("cuda")
        raise UserError(f"device={name}: this machine has no such device. Choose one of {', '.join(there)}.")
    return torch.device("cuda" if name == "auto" else name)


def _check_museval() -> None:
    try:
        import museval  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"evaluation needs museval ({error}). pip install 'stemwise[eval]'") from None
    except RuntimeError as error:
        # stempeg, which museval imports, looks for both programs.
        raise UserError(f"evaluation needs ffmpeg and ffprobe on the PATH ({error}). apt-get install ffmpeg") from None


def _start_worker(solver: str, _: int) -> None:
    """One thread for a song, because songs run side by side; Ctrl-C is the main process's business.

    museval's scores depend on the number of threads where a reference is ill-conditioned; one is also the fastest.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if solver == MUSEVAL:
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)


def _same(item: Any) -> Any:
    return item
