"""A job of SLURM that trains, and the transcript of what happens to it."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from slurm_cluster import Cluster

STEPS = 600
RANKS = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp"]
HEADER = """\
#!/bin/bash
#SBATCH --partition=low --nodes=2 --ntasks-per-node=1
#SBATCH --requeue --signal=USR1@{notice} {time}
#SBATCH --output=%x-%j.out --open-mode=append
srun --kill-on-bad-exit=1 """
# States after which a job does not run again.
ENDS = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL"}
PATIENCE = 300.0


class Transcript:
    """What happened, as Markdown that grows; each line is shown at once as well."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.start = time.monotonic()
        self.wrong: list[str] = []

    def open(self, heading: str, about: str) -> None:
        self.text += [f"\n## {heading}\n", f"{about}\n", "```"]
        self.start = time.monotonic()
        print(f"\n## {heading}", flush=True)

    def say(self, line: str) -> None:
        self.text.append(f"{time.monotonic() - self.start:6.1f} s  {line}")
        print(self.text[-1], flush=True)

    def show(self, what: str, content: str) -> None:
        self.text += ["```", f"\n{what}\n", "```", content.strip()]
        print(content, flush=True)

    def close(self, wrong: list[str], held: str) -> None:
        verdict = "; ".join(f"**{problem}**" for problem in wrong) or held
        self.text += ["```", f"\nResult: {verdict}."]
        self.wrong += wrong
        print(f"Result: {verdict}", flush=True)


class Place:
    """Where one scenario runs: a folder with its job script and its `runs/`."""

    def __init__(self, ground: Path, name: str, cluster: Cluster, transcript: Transcript) -> None:
        self.ground, self.cluster, self.transcript = ground, cluster, transcript
        self.folder = ground / name
        self.folder.mkdir()
        self._states: dict[str, str] = {}

    # What is run

    def keys(self, *overrides: str) -> list[str]:
        import faults_ground

        songs = self.ground / "songs"
        own = [f"data.root={songs}", *(f"data.{split}={songs}/{split}.csv" for split in ("train", "valid"))]
        own += [
            f"data.cache={self.ground}/cache",
            "trainer.val_check_interval=150",
            f"trainer.max_steps={STEPS}",
            f"scheduler.T_max={STEPS}",
        ]
        own += [*RANKS, *overrides]
        given = {override.split("=")[0] for override in own}
        return [*(key for key in faults_ground.KEYS if key.split("=")[0] not in given), *own]

    def write_script(self, limit: str = "", notice: int = 120) -> None:
        command = " ".join(["python -m train", *(self._quoted(key) for key in self.keys())])
        (self.folder / "train.sh").write_text(HEADER.format(time=limit, notice=notice) + _wrapped(command) + "\n")

    @staticmethod
    def _quoted(key: str) -> str:
        return f"'{key}'" if re.search(r"[\[\]$]", key) else key

    def run(self, *command: str) -> str:
        self.transcript.say(f"$ {' '.join(command)}")
        printed = self.cluster.output(*command, where=self.folder)
        for line in printed.splitlines():
            self.transcript.say(line)
        return printed

    def submit(self, *arguments: str) -> str:
        printed = self.run("sbatch", *(arguments or ("train.sh",)))
        found = re.search(r"Submitted batch job (\d+)", printed)
        if not found:
            sys.exit("sbatch refused the job.")
        return found[1]

    # What happens

    def look(self, *jobs: str) -> bool:
        """Says which states are new; whether all jobs have ended."""
        if not jobs:
            return True
        shown = self.cluster.output("squeue", "-h", "-t", "all", "-o", "%i|%T|%r|%N", "-j", ",".join(jobs))
        states = dict(line.split("|", 1) for line in shown.splitlines() if line.count("|") == 3)
        for job, state in states.items():
            if self._states.get(job) != state:
                self._states[job] = state
                name, reason, nodes = state.split("|")
                self.transcript.say(f"squeue: job {job} {' '.join([name, nodes, '' if reason == 'None' else reason])}")
        return all(states.get(job, "").split("|")[0] in ENDS for job in jobs)

    def wait(self, what: str, ready: Callable[[], bool], *jobs: str) -> float:
        """Looks until something is so, and returns the seconds that it took."""
        start = time.monotonic()
        while not ready():
            self.look(*jobs)
            if time.monotonic() - start > PATIENCE:
                self.transcript.wrong.append(f"{what}: not within {PATIENCE:.0f} s")
                break
            time.sleep(0.2)
        self.look(*jobs)
        return time.monotonic() - start

    def wait_for_the_end(self, *jobs: str) -> float:
        return self.wait("the end", lambda: self.look(*jobs), *jobs)

    def wait_until_it_trains(self, job: str) -> None:
        """Some steps in, with more than half of them to come."""
        last = self.folder / f"runs/slurm-{job}/checkpoints/last-1.ckpt"
        self.wait("a checkpoint", last.exists, job)

    def printed(self, job: str) -> str:
        """What a job printed, with places that mean something to others."""
        text = "".join(path.read_text() for path in self.folder.glob(f"*-{job}.out"))
        return text.replace(str(self.folder), ".").replace(str(self.ground), "..")

    def finish(self, job: str, clean: Path | None, *more: str) -> None:
        """Shows what the job printed, and compares its run with the undisturbed one."""
        wrong = list(more)
        self.transcript.show(f"`train.sh-{job}.out`:", self.printed(job))
        wrong += self.differences(clean)
        held = "one run folder; no process left"
        self.transcript.close(wrong, held if clean is None else f"bit for bit the undisturbed run; {held}")

    def differences(self, clean: Path | None) -> list[str]:
        found = sorted(path.name for path in (self.folder / "runs").iterdir())
        wrong = [f"{len(found)} run folders: {', '.join(found)}"] if len(found) != 1 else []
        if clean is not None and not wrong:
            wrong = compared(clean, self.folder / "runs" / found[0])
        if left := ranks():
            wrong.append(f"processes left: {left}")
        return wrong


def compared(clean: Path, run: Path) -> list[str]:
    """In what a run is not the undisturbed one."""
    import faults_ground

    if not (run / "model.safetensors").exists():
        return ["it did not end"]
    return [f"{what} differs" for what in faults_ground.differences(clean, run)]


def ranks() -> dict[int, int]:
    """Rank by process id, of all trainings here, without their workers."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            variables = dict(v.split(b"=", 1) for v in (folder / "environ").read_bytes().split(b"\0") if b"=" in v)
            parent = Path("/proc", re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())[1], "cmdline")  # type: ignore[index]
            is_worker = parent.read_bytes().split(b"\0") == command
        except (OSError, TypeError):
            continue  # it has ended meanwhile
        rank = variables.get(b"RANK", variables.get(b"SLURM_PROCID"))
        trains = b" -m train " in b" ".join(command[:5]) and b"torch.distributed.run" not in command
        if trains and rank is not None and not is_worker:
            found[int(folder.name)] = int(rank)
    return found


def _wrapped(command: str) -> str:
    lines, line = [], ""
    for word in command.split(" "):
        if line and len(line) + len(word) > 105:
            lines.append(line)
            line = "   "
        line = f"{line} {word}" if line else word
    return " \\\n".join([*lines, line])
