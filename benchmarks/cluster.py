"""What one H100, eight, and four nodes of eight would do in training: `python benchmarks/cluster.py`. Arithmetic only.

Nothing here was measured on a GPU. Rates of devices are those of their makers' data sheets; operations and bytes of the
networks are counted (`floor.py`); a loader's examples per second and core are what `input_pipeline.py` measured.
"""

import json
import sys
from dataclasses import dataclass

import floor
import report

SHARE = 0.4  # of the floor's speed: what `gpu.py` holds a GPU to
ARITHMETIC, MEMORY = 989e12, 3.35e12  # H100 SXM: dense bfloat16 operations, and bytes, a second
INSIDE, OUTSIDE = 450e9, 50e9  # bytes a second and GPU, one way: NVLink; a 400 Gb/s adapter per GPU
DISK, SHARED = 7e9, 2e9  # bytes a second and node: one NVMe disk (PCIe 4 x 4); a shared file system, say
STEMS, CHANNELS, FRAMES, BINS = 4, 2, 512, 1024
RATE, HOP = 44100, 1024
STORAGES = {"half": 2, "decibel": 1}  # bytes of a number
RECIPE = 200_000 * 4  # examples of Spleeter's: steps times batch
COPIES = 6  # in the host's memory: from the page cache, into the workers' batch, into pinned memory; read and written


@dataclass(frozen=True)
class Cluster:
    """Nodes of as many GPUs, each with its batch."""

    nodes: int
    devices: int
    batch: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices

    @property
    def step(self) -> float:
        """Seconds of a step at `SHARE` of the floor, without gradients on their way."""
        layers = floor.training_step(floor.full_size(STEMS), (self.batch, CHANNELS, FRAMES, BINS), 2)
        return floor.floor(layers, ARITHMETIC, MEMORY).seconds / SHARE

    @property
    def exchange(self) -> float:
        """Seconds that the float32 gradients take around the ring of all ranks."""
        sent = 2 * (self.ranks - 1) / self.ranks * weights() * 4
        return sent / (INSIDE if self.nodes == 1 else OUTSIDE)

    @property
    def examples(self) -> float:
        """Examples a second of a node, if gradients travel while the rest of the backward pass goes on."""
        return self.devices * self.batch / max(self.step, self.exchange)


def main() -> int:
    """Prints the page and writes `results/cluster.md`."""
    per_core = _handed_over()
    shapes = [Cluster(nodes, devices, batch) for nodes, devices in ((1, 1), (1, 8), (4, 8)) for batch in (4, 32)]
    text = f"""# Training on H100s, worked out

Not measured: arithmetic from data sheets, counted operations, and what `input_pipeline.py` found on CPU cores
(`benchmarks/cluster.py` says which). GPUs at {SHARE:.0%} of their floor; a core hands over {per_core:.0f} examples a
second from memory. With networks that are slower, everything to the right of the step is less.

{report.table(_COLUMNS, [_row(cluster, per_core) for cluster in shapes])}

## What storage can feed

{report.table(["storage", "MB per example", *_WHERE, "GB per hour of music"], map(_fed, STORAGES))}
"""
    (report.RESULTS / "cluster.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


_COLUMNS = (
    "nodes x GPUs",
    "batch per GPU",
    "step, ms",
    "gradients, ms",
    "examples/s and node",
    "GB/s and node",
    "GB/s in the host's memory",
    "cores for loaders",
    "minutes for 800 000 examples",
)


def _row(one: Cluster, per_core: float) -> list[object]:
    data = one.examples * example_bytes("half")
    minutes = RECIPE / (one.examples * one.nodes) / 60
    times = [f"{1e3 * one.step:.1f}", f"{1e3 * one.exchange:.1f}", f"{one.examples:,.0f}"]
    demands = [f"{data / 1e9:.0f}", f"{COPIES * data / 1e9:.0f}", f"{one.examples / per_core:.0f}"]
    return [f"{one.nodes} x {one.devices}", one.batch, *times, *demands, f"{minutes:.1f}"]


_WHERE = ("examples/s from one disk (7 GB/s)", "examples/s from shared storage (2 GB/s)")


def _fed(storage: str) -> list[object]:
    size = example_bytes(storage)
    hour = 3600 * RATE / HOP * (1 + STEMS) * CHANNELS * BINS * STORAGES[storage]
    return [storage, f"{size / 1e6:.1f}", f"{DISK / size:,.0f}", f"{SHARED / size:,.0f}", f"{hour / 1e9:.1f}"]


def example_bytes(storage: str) -> int:
    """Bytes of an example in the cache: mixture and stems."""
    return (1 + STEMS) * CHANNELS * FRAMES * BINS * STORAGES[storage]


def weights() -> int:
    """How many numbers all networks have."""
    return sum(weight.numel() for weight in floor.full_size(STEMS).parameters())


def _handed_over() -> float:
    """Examples a second and worker out of a warm cache (`half`, two workers), as `input_pipeline.py` found them."""
    path = report.RESULTS / "xeon-2-cores/input_pipeline.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["examples"]
    wanted = {"storage": "half", "augment": "none", "workers": 2, "state": "warm"}
    (run,) = [run for run in runs if wanted.items() <= run.items()]
    return run["handed_over"] / run["workers"]


if __name__ == "__main__":
    sys.exit(main())
