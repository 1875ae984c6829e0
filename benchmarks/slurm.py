"""Trains on a SLURM of its own, disturbs it, and writes down what happens: `sudo .venv/bin/python benchmarks/slurm.py`.

Two nodes with a rank each; jobs are preempted, stopped by signal, out of time, or lose a rank to `kill -9`. What goes
on afterwards must end as the undisturbed job did: last checkpoint and model bit for bit, the same values logged, in one
run folder. The same once more with torchrun. The exit code is 1 if anything differs. Needs root and SLURM's programs.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from datetime import date
from pathlib import Path

import hosts
import slurm_cluster
import slurm_jobs
from slurm_cluster import Cluster
from slurm_jobs import PATIENCE, Place, Transcript


def main() -> int:
    """Runs all scenarios, or one, and writes `results/slurm.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[scenario.__name__ for scenario in SCENARIOS], help="and write nothing")
    parser.add_argument("--keep", action="store_true", help="leave the folder with runs and SLURM's logs")
    options = parser.parse_args()
    if problem := slurm_cluster.missing():
        sys.exit(problem)
    hosts.isolate()
    # Two remarks of torch's on names and strides, on each start.
    os.environ.update(OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR", PYTHONWARNINGS="ignore:Grad strides")
    transcript = Transcript()
    ground = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with hosts.Hosts(ground) as two, Cluster(ground, two) as cluster:
            _prepare(ground)
            clean = undisturbed(ground, cluster, transcript)
            for scenario in SCENARIOS:
                if options.only in (None, scenario.__name__):
                    scenario(ground, cluster, transcript, clean)
            version = cluster.output("sinfo", "--version")
    finally:
        if options.keep:
            print(f"Kept: {ground}")
        else:
            shutil.rmtree(ground)
    if options.only is None:
        _write(transcript, version, ground)
    return 1 if transcript.wrong else 0


def _prepare(ground: Path) -> None:
    import faults_ground

    faults_ground.write_songs(ground / "songs")


# Scenarios


def undisturbed(ground: Path, cluster: Cluster, transcript: Transcript) -> Path:
    """The run to compare with."""
    transcript.open("Undisturbed", "A job of two nodes with one rank each.")
    place = Place(ground, "undisturbed", cluster, transcript)
    place.write_script()
    transcript.say("$ cat train.sh")
    transcript.text.append((place.folder / "train.sh").read_text().replace(str(ground), ".."))
    place.run("sinfo")
    job = place.submit()
    place.wait_for_the_end(job)
    place.finish(job, None)
    return place.folder / f"runs/slurm-{job}"


def preempted(ground: Path, cluster: Cluster, transcript: Transcript, clean: Path) -> None:
    """SIGTERM, and SLURM queues it again by itself."""
    transcript.open("Preempted", f"A job of a higher partition takes both nodes; GraceTime={slurm_cluster.GRACE}.")
    place = Place(ground, "preempted", cluster, transcript)
    place.write_script()
    job = place.submit()
    place.wait_until_it_trains(job)
    urgent = place.submit("--partition=high", "--nodes=2", "--output=%x-%j.out", "--wrap=srun sleep 5")
    place.wait_for_the_end(job, urgent)
    place.finish(job, clean)


def signalled(ground: Path, cluster: Cluster, transcript: Transcript, clean: Path) -> None:
    """SIGUSR1 by hand, and our own `scontrol requeue`."""
    transcript.open("Sent SIGUSR1", "The training saves, queues its job again, and ends.")
    place = Place(ground, "signalled", cluster, transcript)
    place.write_script()
    job = place.submit()
    place.wait_until_it_trains(job)
    place.run("scancel", "--signal=USR1", job)
    place.wait_for_the_end(job)
    place.finish(job, clean)


def out_of_time(ground: Path, cluster: Cluster, transcript: Transcript, clean: Path) -> None:
    """SIGUSR1 by SLURM, ahead of the time limit."""
    transcript.open("Out of time", "`--time=1 --signal=USR1@25`: SLURM sends SIGUSR1 25 s or more before the limit.")
    place = Place(ground, "out_of_time", cluster, transcript)
    # SLURM looks every 30 s, and sends it up to 30 s early: from 5 s on, when there is a Python to hear it.
    place.write_script("--time=1", notice=25)
    job = place.submit()
    place.wait_for_the_end(job)
    place.finish(job, clean)


def rank_killed(ground: Path, cluster: Cluster, transcript: Transcript, clean: Path) -> None:
    """The job ends within a minute; the same script, submitted anew, goes on."""
    transcript.open("A rank is killed", "`kill -9` of rank 1 in the middle; then the same script again.")
    place = Place(ground, "rank_killed", cluster, transcript)
    place.write_script()
    job = place.submit()
    place.wait_until_it_trains(job)
    _kill(transcript, rank=1)
    seconds = place.wait_for_the_end(job)
    printed = place.printed(job)
    transcript.show(f"`train.sh-{job}.out`:", printed)
    wrong = [] if seconds < 60 else [f"it took {seconds:.0f} s to end"]
    wrong += [] if "rank 1" in printed else ["no message names the rank"]
    again = place.submit()
    place.wait_for_the_end(again)
    place.finish(again, clean, *wrong)


def swept(ground: Path, cluster: Cluster, transcript: Transcript, clean: Path) -> None:
    """A sweep by submitit, of which one job is sent the signal that submitit asks SLURM for."""
    transcript.open("A sweep", "`hydra/launcher=slurm`: each run is a job of two ranks. The first is sent SIGUSR2.")
    if importlib.util.find_spec("submitit") is None:
        transcript.close([], "not tried: pip install 'stemwise[slurm]'")
        return
    place = Place(ground, "swept", cluster, transcript)
    launcher = {"partition": "low", "gpus_per_node": "null", "cpus_per_task": "1", "nodes": "2"}
    keys = ["hydra/launcher=slurm", *(f"hydra.launcher.{name}={value}" for name, value in launcher.items())]
    keys += ["hydra.sweep.dir=runs/sweep", "optimizer.lr=0.001,0.002"]
    transcript.say(f"$ python -m train -m {' '.join(keys)} …")
    command = ["python", "-m", "train", "-m", *place.keys(*keys)]
    with (place.folder / "sweep.out").open("wb") as file:
        launched = subprocess.Popen(command, cwd=place.folder, env=cluster.environment, stdout=file, stderr=file)
    last = place.folder / "runs/sweep/0/checkpoints/last-1.ckpt"
    place.wait("a checkpoint", lambda: last.exists() or launched.poll() is not None)
    jobs = sorted(cluster.output("squeue", "-h", "-r", "-o", "%i").split())
    if jobs:
        place.run("scancel", "--signal=USR2", jobs[0])
    place.wait("the end of the sweep", lambda: launched.poll() is not None, *jobs)
    printed = "".join(path.read_text() for path in sorted(place.folder.glob("runs/sweep/.submitit/*/*_0_log.*")))
    transcript.show("What the launcher printed:", _short(place, "sweep"))
    transcript.show("What the jobs printed:", printed.replace(str(place.folder), ".").replace(str(ground), ".."))
    wrong = [f"it ended with {launched.returncode}"] if launched.returncode else []
    wrong += [] if "is queued again" in printed else ["the job was not queued again"]
    wrong += slurm_jobs.compared(clean, place.folder / "runs/sweep/0")
    transcript.close(wrong, "the first run is bit for bit the undisturbed one")


def by_torchrun(ground: Path, cluster: Cluster, transcript: Transcript, clean: Path) -> None:
    """Without SLURM: torchrun on each host; stopped by SIGTERM, then by the death of a rank."""
    transcript.open("torchrun", "The same two hosts without SLURM: torchrun on each. Stopped, killed, and gone on.")
    place = Place(ground, "by_torchrun", cluster, transcript)
    last = place.folder / "runs/mine/checkpoints/last-1.ckpt"
    first = _torchrun(place, "first")
    place.wait("a checkpoint", last.exists)
    for process in first:
        process.terminate()
    transcript.say("SIGTERM to both")
    _ended(transcript, first)
    written = last.stat().st_mtime
    second = _torchrun(place, "second")
    place.wait("another checkpoint", lambda: last.stat().st_mtime > written)
    _kill(transcript, rank=1)
    start = time.monotonic()
    _ended(transcript, second)
    wrong = [] if time.monotonic() - start < 60 else ["it took more than a minute to end"]
    _ended(transcript, _torchrun(place, "third"))
    for name in ("first", "second", "third"):
        for host in hosts.ADDRESSES:
            transcript.show(f"{name}-{host}.out, our lines:", _ours(_short(place, f"{name}-{host}")))
    wrong += [] if "rank 1" in _short(place, "second-node1") else ["no message names the rank"]
    wrong += place.differences(clean)
    transcript.close(wrong, "bit for bit the undisturbed run; one run folder; no process left")


SCENARIOS = (preempted, signalled, out_of_time, rank_killed, swept, by_torchrun)


def _torchrun(place: Place, name: str) -> list[subprocess.Popen[bytes]]:
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=node1:29500", "--rdzv-id=mine"]
    place.transcript.say(f"$ torchrun {' '.join(meet)} -m train …  # on node1 and node2, into {name}-*.out")
    command = [sys.executable, "-m", "torch.distributed.run", *meet, "-m", "train", *place.keys()]
    started = []
    for host in hosts.ADDRESSES:
        with (place.folder / f"{name}-{host}.out").open("wb") as file:
            on_host = place.cluster.hosts.command(host, command)
            started.append(
                subprocess.Popen(on_host, cwd=place.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            )
    return started


def _ended(transcript: Transcript, processes: list[subprocess.Popen[bytes]]) -> None:
    for host, process in zip(hosts.ADDRESSES, processes, strict=True):
        try:
            transcript.say(f"torchrun of {host} ended with {process.wait(timeout=PATIENCE)}")
        except subprocess.TimeoutExpired:
            transcript.wrong.append(f"torchrun of {host} did not end")
            process.kill()


def _short(place: Place, name: str) -> str:
    text = (place.folder / f"{name}.out").read_text()
    return text.replace(str(place.folder), ".").replace(str(place.ground), "..")


def _ours(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if re.match(r"\[20|error:|SIG|Model:|Try:", line))


def _kill(transcript: Transcript, rank: int) -> None:
    process = next(process for process, found in slurm_jobs.ranks().items() if found == rank)
    transcript.say(f"$ kill -9 {process}  # rank {rank}")
    os.kill(process, signal.SIGKILL)


# The page


def _write(transcript: Transcript, version: str, ground: Path) -> None:
    import report
    import torch

    where = report.machine()
    origin = (
        f"`python benchmarks/slurm.py`, {date.today().isoformat()}, on {where['processor']} ({where['cores']} cores, "
        f"{where['memory_gib']} GiB, {where['system']}). {version}, Python {platform.python_version()}, "
        f"torch {torch.__version__}."
    )
    about = (
        "# A training on SLURM\n\nTwo nodes in name on one machine (namespaces with a host name and an address each), "
        "gloo between them. Each job after the first is disturbed and must end as the first one did."
    )
    path = report.RESULTS / "slurm.md"
    text = "\n".join([about, *transcript.text, f"\n{origin}\n"])
    # Nor has a traceback to say where this machine keeps what.
    kept = {str(ground): "..", sysconfig.get_path("purelib"): "site-packages", sysconfig.get_path("stdlib"): "python"}
    for place, name in {**kept, str(Path(__file__).parents[1]): "."}.items():
        text = text.replace(place, name)
    path.write_text(text, encoding="utf-8")
    print(f"\n{path}")


if __name__ == "__main__":
    sys.exit(main())
