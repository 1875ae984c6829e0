"""A SLURM of two nodes on one machine, with its own munge: it starts, and leaves nothing behind."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hosts import ADDRESSES, Hosts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
GRACE = 30  # seconds between SIGTERM and the end of a job that makes room for another
CONFIG = """\
ClusterName=stemwise
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Also how long a job that is queued again waits; a real cluster has 120.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=10
SchedulerParameters=bf_interval=2,sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str | None:
    """What to install first, or None."""
    if all(shutil.which(program, path=_path()) for program in PROGRAMS):
        return None
    return "SLURM is missing: apt-get install slurmctld slurmd slurm-client munge"


class Cluster:
    """munged, slurmctld and two slurmd as children of this process, in a folder of their own."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.folder, self.hosts = folder, hosts
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.folder.chmod(0o755)  # munge refuses a socket that others cannot come to
        for name in ("munge", "state"):
            (self.folder / name).mkdir()
        nodes = "\n".join(f"NodeName={name} NodeAddr={address} CPUs=1" for name, address in ADDRESSES.items())
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, nodes=nodes, grace=GRACE))
        self._start_munge(self.folder / "munge")
        self._daemon("node1", ["slurmctld", "-D"])
        for name in ADDRESSES:
            self._daemon(name, ["slurmd", "-D", "-N", name])
        self.wait_until_idle()

    def _start_munge(self, folder: Path) -> None:
        key = folder / "key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(128))
        # In a folder below /tmp, whose owner it may not like.
        files = [f"--{name}={folder / name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._daemon("node1", ["munged", "--foreground", "--force", f"--key-file={key}", *files])
        _wait(lambda: (folder / "socket").exists(), 10, "munged has no socket")

    def _daemon(self, host: str, command: Sequence[str]) -> None:
        log = (self.folder / f"{host}-{command[0]}.out").open("wb")
        with log:
            self._daemons.append(
                subprocess.Popen(
                    self.hosts.command(host, command),
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for this process, which ends them in order
                )
            )

    def wait_until_idle(self) -> None:
        """Returns when both nodes can take a job."""
        what = "sinfo does not show both nodes idle"
        _wait(lambda: self.output("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], 60, what)

    def output(self, *command: str, where: Path | None = None) -> str:
        """What a command of SLURM prints; its error, if it fails."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=where or self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return (done.stdout + done.stderr).strip()

    def __exit__(self, *_: object) -> None:
        if len(self._daemons) > 2:
            self.output("scancel", "--user=root", "--signal=KILL", "--full")
            self.output("scancel", "--user=root")
            deadline = time.monotonic() + 30
            while self.output("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait(ready: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"{what} after {seconds:.0f} s.")
        time.sleep(0.2)


def _path() -> str:
    """Debian keeps daemons in sbin; `python` is to be this one."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
