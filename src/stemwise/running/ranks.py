"""Says which rank is gone where several train together, and ends the others, which would wait for it for ever.

Each rank says every second that it is there, in the store through which they met. What a library says of a lost peer
is an address and a port, or, on GPUs, nothing for many minutes.
"""

import logging
import os
import socket
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from stemwise.errors import UserError

log = logging.getLogger(__name__)

TICK = 1.0  # seconds
SILENT = 45  # ticks without a word after which a rank is taken for dead
SUSPECT = 5  # and after which it is named where a connection broke
_ENDED = b"ended: "


class Ranks(Callback):
    """Ends this process with a message if another rank is silent for `silent` seconds, not counting its own pauses."""

    def __init__(self, silent: int = SILENT) -> None:
        self.silent = silent
        self._watch: Watch | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        names: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(names, f"{socket.gethostname()}, process {os.getpid()}")
        self._watch = Watch(_own_connection(), trainer.global_rank, dict(enumerate(names)), self.silent)
        self._watch.start()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if self._watch is not None and not is_lost(exception):
            self._watch.stop(str(exception).partition("\n")[0] or type(exception).__name__)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        # Where a connection broke, it goes on until `lost` has asked it.
        if self._watch is not None and trainer.state.status != "interrupted":
            self._watch.stop("done")

    def lost(self, error: BaseException) -> UserError | None:
        """The error of a broken connection as a message that names the rank; None if it is another error."""
        if self._watch is None or not is_lost(error):
            return None
        return UserError(self._watch.culprit())


def begun_together() -> bool:
    """Whether this process was begun as one of several ranks: by SLURM, by torchrun, or by the first rank."""
    launched = SLURMEnvironment.detect() or TorchElasticEnvironment.detect()
    return launched or "LOCAL_RANK" in os.environ


def is_lost(error: BaseException) -> bool:
    """Whether this is what torch raises where a peer is gone."""
    known = isinstance(error, torch.distributed.DistError)
    return known or (isinstance(error, RuntimeError) and "gloo" in str(error))


class Watch:
    """The threads that say and hear who is there: one talks with the store, which may not answer; one counts."""

    def __init__(self, store: Any, rank: int, names: Mapping[int, str], silent: int = SILENT) -> None:
        self.store, self.rank, self.names, self.silent = store, rank, names, silent
        self.others = [other for other in names if other != rank]
        self._said: dict[int, bytes] = {}
        self._silence = dict.fromkeys(self.others, 0)
        self._store_gone = False
        self._end = threading.Event()

    def start(self) -> None:
        self._say(b"0")
        for work in (self._talk, self._count):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def stop(self, reason: str) -> None:
        """Ends the threads; the others learn why this rank is silent from now on."""
        if not self._end.is_set():
            self._end.set()
            # Not waited for: where the store is gone as well, that would be for long.
            threading.Thread(target=self._say, args=(_ENDED + reason.encode(),), daemon=True).start()

    def culprit(self) -> str:
        """Who is gone, after a connection broke; it takes some seconds to see."""
        for _ in range(3 * SUSPECT):
            gone = [rank for rank in self.others if self._silence[rank] >= SUSPECT]
            ended = [rank for rank in self.others if self._said.get(rank, b"").startswith(_ENDED)]
            if gone or ended or self._store_gone:
                return self._message([*ended, *gone] or [0])
            self._end.wait(TICK)
        return f"rank {self.rank} ({self.names[self.rank]}): a connection to another rank broke; all still run."

    def _say(self, what: bytes) -> None:
        try:
            self.store.set(_key(self.rank), what)
        except RuntimeError:  # of torch: the store is gone, and with it the process that has it
            self._store_gone = True

    def _talk(self) -> None:
        number = 0
        while not self._end.wait(TICK) and not self._store_gone:
            number += 1
            self._say(str(number).encode())
            try:
                heard = self.store.multi_get([_key(other) for other in self.others])
            except RuntimeError:
                self._store_gone = True
                return
            for other, said in zip(self.others, heard, strict=True):
                if self._said.get(other) != said:
                    self._said[other], self._silence[other] = said, 0

    def _count(self) -> None:
        while not self._end.wait(TICK):
            for other in self.others:
                self._silence[other] += 1
            if gone := [other for other in self.others if self._silence[other] >= self.silent]:
                os.write(2, f"error: {self._message(gone)}\n".encode())
                os._exit(1)

    def _message(self, gone: list[int]) -> str:
        said = self._said.get(gone[0], b"")
        named = ", ".join(f"rank {rank} ({self.names[rank]})" for rank in gone)
        what = f"{named} gives no sign of life: killed, or its machine is gone."
        if said.startswith(_ENDED):
            what = f"rank {gone[0]} ({self.names[gone[0]]}) {said.decode()}."
        return f"{what} Rank {self.rank} ({self.names[self.rank]}) ends as well. Go on: the same command, resume=auto."


def _key(rank: int) -> str:
    return f"stemwise/{rank}"


def _own_connection() -> Any:
    """Another connection to the store, since an answer that is waited for blocks the first."""
    store = torch.distributed.distributed_c10d._get_default_store()
    while isinstance(store, torch.distributed.PrefixStore):
        store = store.underlying_store
    assert isinstance(store, torch.distributed.TCPStore)
    return torch.distributed.TCPStore(
        store.host, store.port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False
    )
