"""BSSEval v4 scores of a model over songs, as the published tables have them: museval's own, or our solver's.

Per song and stem, SDR, SIR, SAR and ISR in dB over windows of one second; a song's score is the median of
its windows, a split's the median of its songs. Each song is a JSON file in museval's format, whose key `solver` says
what computed it.
Axes: S stem, C channel, N sample.
"""

import hashlib
import json
import os
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stemwise import model_file, progress, signals, spectrogram
from stemwise.cache.fingerprints import fingerprint
from stemwise.catalogue import Song
from stemwise.errors import UserError
from stemwise.evaluation import documents, results, solvers
from stemwise.evaluation.documents import ABOVE, KEY, Scores, SongScores
from stemwise.evaluation.results import MIXTURE, MODEL, ORACLE
from stemwise.evaluation.solvers import MUSEVAL, TORCH
from stemwise.separator import Separator
from stemwise.workers import end as end_workers

BASELINES = (MIXTURE, ORACLE)
READERS = 4  # songs that are decoded ahead of a GPU: each is 0.4 GB for four minutes of 4 stems

# A song's number and the variants of it that are scored together.
Job = tuple[int, Sequence[str]]
# A song's number and the document of each variant.
Result = tuple[int, dict[str, Any]]


def evaluate(
    model_path: Path,
    songs: Sequence[Song],
    folder: Path,
    baselines: Sequence[str],
    workers: int | None = None,
    solver: str = MUSEVAL,
    device: str = "auto",
    overlap: float | None = None,
) -> Scores:
    """Scores a model file on songs, several at once, and writes `folder/<variant>/<song>.json`.

    A variant is `model`, or a baseline: `mixture` (the unprocessed mixture as the estimate of every stem) or
    `oracle` (the model's mask rule on the true magnitudes: the ceiling of such masks). Songs whose JSON is
    there, for the same model, files and solver, are not scored again. Stems that are silent throughout a song have
    no score there and are named in the result.

    `solver` is `museval` or `mir_eval`, on the processor, or `torch` (see `solvers`). With that, `device` is where
    networks and solver compute: `cpu`, `cuda`, `cuda:1`, or `auto`, the GPU if there is one. `overlap` of windows is
    in place of the model's own.
    """
    if wrong := [name for name in baselines if name not in BASELINES]:
        raise UserError(f"baselines={wrong[0]}: not one of {', '.join(BASELINES)}.")
    where = solvers.device(device, solver)
    documents.make_folder(folder)
    variants = (MODEL, *baselines)
    cores = len(os.sched_getaffinity(0)) if workers is None else workers
    jobs = _Songs(model_path, songs, folder, _jobs(songs, variants, cores), solver, where, overlap)
    solvers.check(solver, jobs.model.spectrogram.channels)
    done = _in_processes(jobs, cores) if where.type == "cpu" else _read_ahead(jobs, min(cores, READERS))
    found = [SongScores(song.name, song.seconds, {}, {}) for song in songs]
    try:
        for number, by_variant in progress.track(done, what="Scoring songs", total=len(jobs)):
            # Not the documents themselves: those of a thousand songs are gigabytes.
            found[number].medians.update((name, documents.medians(document)) for name, document in by_variant.items())
            found[number].above.update(by_variant.get(MODEL, {}).get(ABOVE, {}))
    except KeyboardInterrupt:
        end_workers()
        raise
    return _scores(found, variants, jobs.model.stems)


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


def _scores(songs: Sequence[SongScores], variants: Sequence[str], stems: Sequence[str]) -> Scores:
    """Scores in the order of the songs and variants."""
    scores = Scores({variant: {} for variant in variants})
    for song in songs:
        scores.add(replace(song, medians={variant: song.medians[variant] for variant in variants}))
        if silent := sorted(set(stems) - song.medians[MODEL].keys()):
            scores.silent[song.name] = silent
    return scores


def above_band(stems: Tensor, model: Separator) -> dict[str, float]:
    """Of each stem (S, C, N) that is not silent, the share of its energy in bins from F on, which the model drops."""
    shares = {}
    for name, stem in zip(model.stems, stems, strict=True):
        spectrum = spectrogram.stft(stem, model.spectrogram)
        energies = spectrum.abs().square().sum(dim=(0, 1), dtype=torch.float64)
        if total := float(energies.sum()):
            shares[name] = float(energies[model.spectrogram.bins :].sum()) / total
    return shares


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
        overlap: float | None = None,
    ) -> None:
        self.model = model_file.load(model_path).to(device)
        # The oracle has no windows that could overlap: its scores are those of any model with these.
        self.rule = {name: value for name, value in self.model.settings.items() if name != "overlap"}
        self.changes = [] if overlap in (None, self.model.overlap) else [f"overlap {overlap}"]
        if overlap is not None:
            self.model.overlap = overlap
        self.songs, self.folder, self.jobs, self.solver, self.device = songs, folder, jobs, solver, device
        self.digest = results.digest(model_path)
        self.paths = [documents.file_name(song.name) for song in songs]

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
        found = {variant: documents.read(self._path(variant, number), self._key(variant, song)) for variant in variants}
        if all(document and (variant != MODEL or ABOVE in document) for variant, document in found.items()):
            return _Read(number, found, None)
        try:
            return _Read(number, found, signals.stack([song.mixture, *song.stems], self.model.spectrogram))
        except UserError as error:
            raise UserError(f"{song.name}: {error}") from None

    def finish(self, read: _Read) -> Result:
        """All of a job's documents; writes those that were missing. Raises `UserError` if that cannot be."""
        song = self.songs[read.number]
        try:
            made = {} if read.waveforms is None else self._made(read.documents, read.waveforms.to(self.device))
            for variant, document in made.items():
                path, key = self._path(variant, read.number), self._key(variant, song)
                documents.write(path, {**document, KEY: key})
        except UserError as error:
            raise UserError(f"{song.name}: {error}") from None
        return read.number, {**read.documents, **made}

    def _made(self, there: Mapping[str, dict[str, Any] | None], waveforms: Tensor) -> dict[str, dict[str, Any]]:
        """The documents that are missing, or lack the share above the band, as the model's own once did."""
        mixture, stems = waveforms[0], waveforms[1:]
        make = {
            MODEL: lambda: self._separated(mixture),
            MIXTURE: lambda: mixture.expand_as(stems),
            ORACLE: lambda: self.model.oracle(mixture, stems),
        }
        rate = self.model.spectrogram.sample_rate
        missing = [variant for variant, document in there.items() if document is None]
        made = {
            variant: solvers.score(stems, make[variant](), self.model.stems, rate, self.solver) for variant in missing
        }
        if (document := made.get(MODEL) or there.get(MODEL)) and ABOVE not in document:
            made[MODEL] = {**document, ABOVE: above_band(stems, self.model)}
        return made

    def _separated(self, mixture: Tensor) -> Tensor:
        """The model's stems (S, C, N). Raises `UserError` where they are no numbers: they would count as silent."""
        estimates = self.model.separate(mixture)
        for stem, estimate in zip(self.model.stems, estimates, strict=True):
            if (odd := ~estimate.isfinite()).any():
                raise UserError(
                    f"the model's {stem} has {int(odd.sum())} NaN or infinite samples of {odd.numel()}. It diverged, "
                    "or its file is damaged: score another checkpoint."
                )
        return estimates

    def _path(self, variant: str, number: int) -> Path:
        return self.folder / variant / self.paths[number]

    def _key(self, variant: str, song: Song) -> str:
        """Names all that a variant's scores of a song depend on."""
        how = {
            MODEL: " ".join([self.digest, *self.changes]),
            MIXTURE: self.model.spectrogram.sample_rate,
            ORACLE: self.rule,
        }
        files = [[(fingerprint(c.path), c.stream, c.channel) for c in s] for s in (song.mixture, *song.stems)]
        parts = [how[variant], self.model.spectrogram.channels, list(self.model.stems), files]
        # museval's name is left out: its scores from before there was another solver are still good.
        parts += [] if self.solver == MUSEVAL else [self.solver]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


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
