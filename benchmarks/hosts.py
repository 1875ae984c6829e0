"""Two hosts in name on one machine: each has its own host name and network address, and both see the same files.

They are Linux namespaces, which only root may make. All that runs in them ends with the process that made them, however
that one ends.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
_INSIDE = "STEMWISE_HOSTS"
_NEEDS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}


def isolate() -> None:
    """Starts this program again, alone with its processes, its mounts and its network; returns only there."""
    if os.environ.get(_INSIDE) == "1":
        _reap()
        return
    if os.geteuid() != 0:
        sys.exit("Only root may make hosts: run it with sudo.")
    for program, package in _NEEDS.items():
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install {package}")
    apart = ["--mount", "--mount-proc", "--pid", "--fork", "--kill-child", "--net", "--uts"]
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", ["unshare", *apart, "--", sys.executable, *sys.argv])


def _reap() -> None:
    """Goes on in a child. The first process of a namespace takes in all orphans and must wait for each."""
    child = os.fork()
    if child == 0:
        return
    while True:
        try:
            ended, status = os.wait()
        except KeyboardInterrupt:
            continue  # the child has it as well, and tidies up
        if ended == child:
            os._exit(os.waitstatus_to_exitcode(status) % 256)


class Hosts:
    """node1, which is where this process is, and node2; a cable between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Hosts":
        first, second = ADDRESSES.values()
        socket.sethostname("node1")
        self._other = subprocess.Popen(["unshare", "--net", "--uts", "sleep", "infinity"])
        self._wait_until_apart()
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(self._other.pid))
        _run(*_up(first))
        _run(*self.command("node2", ["hostname", "node2"]))
        _run(*self.command("node2", ["ip", "link", "set", "lo", "up"]))
        _run(*self.command("node2", _up(second)))
        names = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        _run("mount", "--bind", str(self.folder / "hosts"), "/etc/hosts")
        return self

    def __exit__(self, *_: object) -> None:
        _run("umount", "/etc/hosts")
        self._other.kill()
        self._other.wait()

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """The command that runs another one on a host."""
        if host == "node1":
            return [*command]
        return ["nsenter", "--target", str(self._other.pid), "--net", "--uts", "--", *command]

    def _wait_until_apart(self) -> None:
        here = os.readlink("/proc/self/ns/uts")
        while os.readlink(f"/proc/{self._other.pid}/ns/uts") == here:
            if self._other.poll() is not None:
                sys.exit("No second host could be made: unshare failed.")
            time.sleep(0.01)


def _up(address: str) -> list[str]:
    return ["sh", "-c", f"ip address add {address}/24 dev cable && ip link set cable up"]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
