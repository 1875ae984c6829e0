"""A run that is stopped anywhere and goes on is the run that was never stopped."""

import csv
import errno
import fcntl
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from stemwise import checks, model_file
from stemwise.data import StemData
from stemwise.errors import UserError
from stemwise.running import checkpoints, folders, interrupts
from stemwise.running.callbacks import RunFolder
from stemwise.running.checkpoints import CheckpointFiles
from stemwise.running.meters import CLOCKED
from stemwise.spectrogram import Spectrogram
from stemwise.training import SeparatorTraining
from tiny import TINY

# Epochs of six steps, with everything that draws or remembers: dropout, remix, a schedule, averaged weights.
KEYS = ["data.batch_size=2", "data.examples_per_song=3", "augment=remix", "scheduler=cosine", "scheduler.T_max=9"]
KEYS += ["ema=0.9", "trainer.val_check_interval=4", "optimizer.lr=0.001", "trainer.max_steps=9"]


def at_step(monkeypatch, step, act, method="training_step"):
    """Calls `act` in the middle of the step after `step` whole ones, once."""
    original, done = getattr(SeparatorTraining, method), []

    def acts(self, *arguments):
        if self.global_step == step and not done:
            done.append(step)
            act()
        return original(self, *arguments)

    monkeypatch.setattr(SeparatorTraining, method, acts)


def send(*numbers):
    def act():
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def rows(run):
    """What was logged: the last value of each column at each step, whichever start of the run logged it.

    Without what a clock says.
    """
    found = {}
    for path in sorted(Path(run).glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                values = {k: v for k, v in row.items() if v and not k.startswith(("epoch", *CLOCKED))}
                found.setdefault(row["step"], {}).update(values)
    return found


def assert_equal(one, other):
    """Checkpoint, model and logs of two runs, bit for bit."""
    states = [torch.load(Path(run) / checkpoints.LAST, weights_only=True) for run in (one, other)]
    assert states[0]["global_step"] == states[1]["global_step"] == 9
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "StemData"):
        torch.testing.assert_close(states[0].get(part), states[1].get(part), rtol=0, atol=0)
    kept = [state["callbacks"] for state in states]
    assert kept[0].keys() == kept[1].keys()
    for name in ("RunFolder", "Checkpoints"):
        torch.testing.assert_close(kept[0][name], kept[1][name], rtol=0, atol=0)
    models = [model_file.read(Path(run) / "model.safetensors") for run in (one, other)]
    assert models[0][1] == models[1][1]
    torch.testing.assert_close(models[0][0].state_dict(), models[1][0].state_dict(), rtol=0, atol=0)
    assert rows(one) == rows(other)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def whole(train, kept):
    """The run that was never stopped: made once for all tests that compare with it."""
    if not (kept / "done").exists():
        done = train(f"hydra.run.dir={kept}/whole", *KEYS)
        assert done.code == 0, done.output
        (kept / "done").touch()
    return kept / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_stopped_at_any_step_by_any_signal(train, whole, monkeypatch, number):
    """In the middle of an epoch, before and after a validation (4, 8), at the end of an epoch (6)."""
    for step in (0, 3, 4, 5, 7) if number == signal.SIGTERM else (2,):
        with monkeypatch.context() as patch:
            at_step(patch, step, send(number))
            stopped = train(f"hydra.run.dir=parts{step}", *KEYS)
        assert stopped.code == 128 + number
        assert f"Stopped at step {step + 1}." in stopped.output
        assert "Traceback" not in stopped.output
        resumed = train(f"hydra.run.dir=parts{step}", "resume=auto", *KEYS)
        assert resumed.code == 0, resumed.output
        assert_equal(whole, f"parts{step}")


def test_stopped_in_a_validation(train, whole, monkeypatch):
    """It is done again, whole, before the next step."""
    at_step(monkeypatch, 4, send(signal.SIGTERM), "validation_step")
    assert train("hydra.run.dir=parts", *KEYS).code == 128 + signal.SIGTERM
    assert train("hydra.run.dir=parts", "resume=auto", *KEYS).code == 0
    assert_equal(whole, "parts")


def test_stopped_in_a_validation_at_the_end_of_an_epoch(train, monkeypatch):
    """From the checkpoint before it as from one behind it, the next epoch begins."""
    keys = [*KEYS, "trainer.val_check_interval=6"]
    assert train("hydra.run.dir=whole", *keys).code == 0
    at_step(monkeypatch, 6, send(signal.SIGTERM), "validation_step")
    assert train("hydra.run.dir=parts", *keys).code == 128 + signal.SIGTERM
    assert train("hydra.run.dir=parts", "resume=auto", *keys).code == 0
    assert_equal("whole", "parts")
    best = torch.load("whole/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 6
    assert train("hydra.run.dir=again", "ckpt_path=whole/checkpoints/best.ckpt", *keys).code == 0
    one, other = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "again"))
    torch.testing.assert_close(one["optimizer_states"], other["optimizer_states"], rtol=0, atol=0)


def test_stopped_behind_a_validation(train, whole, monkeypatch):
    """While the model is written, and by the end of a run that then gets more steps: the next step is the next."""
    with monkeypatch.context() as patch:
        write = RunFolder.write_model
        patch.setattr(RunFolder, "write_model", lambda *given: (write(*given), send(signal.SIGTERM)()))
        assert train("hydra.run.dir=parts", *KEYS).code == 128 + signal.SIGTERM
    assert torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert train("hydra.run.dir=parts", "resume=auto", *KEYS).code == 0
    assert_equal(whole, "parts")


@pytest.mark.parametrize("steps", [6, 8])
def test_a_run_that_is_done_gets_more_steps(train, whole, steps):
    """By the end of an epoch, and right behind a validation."""
    assert train("hydra.run.dir=more", *KEYS, f"trainer.max_steps={steps}").code == 0
    assert train("hydra.run.dir=more", "resume=auto", *KEYS).code == 0
    states = [torch.load(Path(run) / checkpoints.LAST, weights_only=True) for run in (whole, "more")]
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    logged = [
        {step: row["train/loss"] for step, row in rows(run).items() if "train/loss" in row} for run in (whole, "more")
    ]
    assert logged[0] == logged[1]


def test_stopped_three_times_with_other_numbers_of_workers(train, whole, monkeypatch):
    for step, workers in ((1, 2), (2, 0), (6, 1)):
        with monkeypatch.context() as patch:
            at_step(patch, step, send(signal.SIGTERM))
            stopped = train("hydra.run.dir=parts", "resume=auto", f"data.num_workers={workers}", *KEYS)
        assert stopped.code == 128 + signal.SIGTERM, stopped.output
    assert train("hydra.run.dir=parts", "resume=auto", "data.num_workers=2", *KEYS).code == 0
    assert_equal(whole, "parts")


def test_half_a_step_of_accumulated_gradients_is_not_saved(train, monkeypatch):
    keys = ["data.batch_size=1", "data.examples_per_song=4", "trainer.accumulate_grad_batches=3", "ema=0.9"]
    keys += ["trainer.max_steps=9", "augment=remix"]  # epochs of 16 batches: the last step has one
    assert train("hydra.run.dir=whole", *keys).code == 0
    for step in (1, 5):
        with monkeypatch.context() as patch:
            at_step(patch, step, send(signal.SIGTERM))
            assert train("hydra.run.dir=parts", "resume=auto", *keys).code == 128 + signal.SIGTERM
    assert train("hydra.run.dir=parts", "resume=auto", *keys).code == 0
    assert_equal("whole", "parts")


def test_a_second_ctrl_c_ends_it_at_once(train, monkeypatch):
    at_step(monkeypatch, 5, send(signal.SIGINT, signal.SIGINT))
    stopped = train("hydra.run.dir=parts", *KEYS)
    assert stopped.code == 130
    assert "Stopped at once. Go on: hydra.run.dir=" in stopped.output
    assert "Traceback" not in stopped.output
    assert torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_ctrl_c_in_the_judgement_of_the_last_steps_loses_nothing(train, whole, monkeypatch):
    """There is nothing left to save."""
    at_step(monkeypatch, 9, send(signal.SIGINT), "validation_step")
    assert train("hydra.run.dir=parts", *KEYS).code == 130
    assert train("hydra.run.dir=parts", "resume=auto", *KEYS).code == 0
    assert_equal(whole, "parts")


def test_in_a_job_of_slurm_sigusr1_queues_it_again(train, monkeypatch, tmp_path):
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(
        f'#!/bin/sh\nls {tmp_path}/parts/checkpoints > {tmp_path}/there\necho "$@" > {tmp_path}/asked\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    at_step(monkeypatch, 1, send(signal.SIGUSR1))
    stopped = train("hydra.run.dir=parts", *KEYS)
    assert "SLURM job 4711 is queued again." in stopped.output
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert "last.ckpt" in (tmp_path / "there").read_text()  # saved before
    # SLURM sends SIGTERM to what it queues again, which may come when Python is about to leave.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_sigusr1_before_the_training_queues_the_job_again_too(train, monkeypatch, tmp_path):
    """As while the cache is built."""
    monkeypatch.setattr(interrupts, "requeue", lambda: print("queued again"))
    monkeypatch.setattr(StemData, "prepare_data", lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    stopped = train("hydra.run.dir=parts", *KEYS)
    assert stopped.code == 128 + signal.SIGUSR1
    assert stopped.output.count("queued again") == 1
    monkeypatch.setenv("SLURM_PROCID", "1")
    stopped = train("hydra.run.dir=parts", *KEYS)
    assert stopped.code == 0  # another than 0 would make SLURM end the first before it has asked
    assert "queued again" not in stopped.output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_all_processes_as_slurm_sends_it(songs, tmp_path, number):
    """The workers of the loader must outlive it: the step at hand, and the checkpoint, need them."""
    keys = [f"data.{split}={songs}/{split}.csv" for split in ("train", "valid")]
    keys += ["data=csv", f"data.root={songs}", *TINY, *KEYS, "trainer.max_steps=100000", "checkpoints.every=5"]
    keys = [key for key in keys if not key.startswith("data.num_workers")]
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *keys, "data.num_workers=2", "hydra.run.dir=run"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints/last-1.ckpt").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    printed = process.communicate(timeout=100)[0]
    assert process.returncode == 128 + number, printed
    assert "Stopped at step" in printed
    assert printed.count(f"{signal.Signals(number).name}: the run ends") == 1


@pytest.mark.parametrize(
    ("when", "again"), [("2026-11-23T07:08:37", True), ("None", False), ("2026-11-23T06:00:00", False)]
)
def test_a_preemption_queues_the_job_again_and_another_sigterm_does_not(monkeypatch, tmp_path, when, again):
    """An earlier preemption is not one of this start of the job."""
    scontrol = tmp_path / "scontrol"
    facts = f"JobId=4711 JobName=a b StartTime=2026-11-23T07:08:32 SuspendTime=None PreemptTime={when}"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "{facts}"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.raises(interrupts.Stopped):
        interrupts.Interrupts().act(signal.SIGTERM, leading=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["show job -o 4711", *(["requeue 4711"] if again else [])]


# Which run


def test_auto_begins_a_run_and_goes_on_with_that_of_the_same_overrides(train, monkeypatch, tmp_path):
    keys = ["resume=auto", "hydra.run.dir='${run_folder:${resume},${hydra.overrides.task},runs,${now:%H%M%S%f}}'"]
    at_step(monkeypatch, 2, send(signal.SIGTERM))
    first = train(*keys)
    assert "so the run begins" in first.output
    (run,) = (tmp_path / "runs").iterdir()
    again = train(*keys)
    assert again.code == 0, again.output
    assert f"Going on from {run}/checkpoints/last.ckpt" in again.output
    assert list((tmp_path / "runs").iterdir()) == [run]
    assert train(*keys, "optimizer.lr=0.5").code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


HOLDS = """
import sys
from pathlib import Path
from stemwise.running import folders
with folders.claimed(Path(sys.argv[1]), sys.argv[2:]):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_one_run_at_a_time_trains_in_a_folder(train, tmp_path):
    """As two jobs with the same keys and `resume=auto` would. A process that is killed holds nothing."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path / "run"], text=True, **pipes) as other:
        assert other.stdout.readline() == "claimed\n"
        refused = train("resume=auto")
        assert refused.code == 2
        assert f"process {other.pid} on" in refused.output
        assert "hydra.run.dir=runs/NAME" in refused.output
        assert not (tmp_path / "run/checkpoints").exists()
        other.kill()
    assert train("resume=auto").code == 0
    assert train("resume=auto", "trainer.max_steps=5").code == 0  # by the same process again


def test_a_folder_where_files_cannot_be_locked_is_no_reason_to_stop(monkeypatch, tmp_path):
    def refuses(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuses)
    with folders.claimed(tmp_path, []):
        pass


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / folders.LOCK).symlink_to("/dev/full")
    (tmp_path / "full" / f"{folders.OVERRIDES}.new").symlink_to("/dev/full")
    for run in ("file/run", "full"):
        with (
            pytest.raises(UserError, match=rf"{run}: cannot be written .*hydra.run.dir"),
            folders.claimed(tmp_path / run, ["lr=1"]),
        ):
            pass


def test_a_run_that_is_refused_does_not_become_the_one_that_goes_on(train, tmp_path):
    """Hydra has written its own files by then."""
    auto = ["resume=auto", "hydra.run.dir='${run_folder:${resume},${hydra.overrides.task},runs,${now:%H%M%S%f}}'"]
    assert train(*auto).code == 0
    (run,) = (tmp_path / "runs").iterdir()
    own = yaml.safe_load((run / folders.OVERRIDES).read_text())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDS, run, *own], text=True, **pipes) as other:
        assert other.stdout.readline() == "claimed\n"
        assert train(f"hydra.run.dir={run}", "optimizer.lr=0.5").code == 2
        other.kill()
    assert train(*auto).code == 0
    assert list((tmp_path / "runs").iterdir()) == [run]


def test_the_processes_of_a_job_have_one_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert folders.choose(None, [], "runs", "now") == "runs/now"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"hydra.run.dir=runs/NAME"):
        folders.choose(None, [], "runs", "now")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert folders.choose(None, [], "runs", "now") == "runs/mine"
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert folders.choose(None, [], "runs", "now") == "runs/slurm-12"
    monkeypatch.setenv("SLURM_STEP_ID", "1")  # the second srun of a job
    assert folders.choose(None, [], "runs", "now") == "runs/slurm-12-1"
    monkeypatch.setenv("SLURM_NTASKS", "1")  # one task, which is torchrun
    assert folders.choose(None, [], "runs", "now") == "runs/slurm-12-1"


def test_torchrun_in_a_job_of_slurm_numbers_the_ranks(monkeypatch):
    import train

    cfg = OmegaConf.create({"trainer": {"plugins": None, "sync_batchnorm": False, "devices": "auto", "num_nodes": 1}})
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert [type(plugin).__name__ for plugin in train._plugins(cfg)] == ["SLURMEnvironment"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert train._plugins(cfg) == []


def test_tasks_of_slurm_that_are_not_the_ranks(monkeypatch):
    """They would wait for each other for ever."""
    cfg = OmegaConf.create({"trainer": {"devices": 2, "num_nodes": 2}})
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(UserError, match="srun python -m train"):
        checks.slurm(cfg)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(UserError, match="--ntasks-per-node"):
        checks.slurm(cfg)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setenv("SLURM_NNODES", "2")
    checks.slurm(cfg)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    with pytest.raises(UserError, match=r"Set trainer\.devices=4"):
        checks.slurm(cfg)


def test_resume_is_null_or_auto(train):
    assert "resume=yes" in train("resume=yes").output


# Where examples go on


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_another_number_of_ranks_goes_on_behind_the_same_examples(songs, ranks):
    """Batch times ranks stay 4: what the ranks show together is what one would have shown."""

    def shown(ranks, state, batches, upto):
        found = {}
        for rank in range(ranks):
            data = StemData(
                ["vocals"], Spectrogram(), train=songs / "train.csv", batch_size=4 // ranks, examples_per_song=4,
                num_workers=0, cache=None,
            )  # fmt: skip
            progress = SimpleNamespace(total=SimpleNamespace(processed=batches))
            loops = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
            data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, fit_loop=loops)
            if state:
                data.load_state_dict(state)
            order = data.train_dataloader().sampler
            order.set_epoch(0)
            found |= {place.position: place.song for place in list(order)[: upto * 4 // ranks]}
            progress.total.processed += upto
            state_after = data.state_dict()
        return [song for _, song in sorted(found.items())], state_after

    everything, _ = shown(1, None, 0, 4)
    first, state = shown(2, None, 0, 1)
    rest, after = shown(ranks, state, 1, 3)
    assert first + rest == everything
    assert after == {"shown": 16}


@pytest.mark.parametrize(("before", "after", "shown"), [(1, 4, 24), (4, 1, 25), (2, 3, 24)])
def test_another_batch_size_goes_on_at_the_last_whole_step(train, monkeypatch, before, after, shown):
    """Of epochs of 12 examples, stopped behind 5 batches, in which there may be more of them than there are now."""
    keys = ["data.examples_per_song=3", "trainer.max_steps=10", "trainer.val_check_interval=5"]
    at_step(monkeypatch, 5, send(signal.SIGTERM), "validation_step")
    assert train("hydra.run.dir=parts", f"data.batch_size={before}", *keys).code == 128 + signal.SIGTERM
    assert train("hydra.run.dir=parts", f"data.batch_size={after}", "ckpt_path=last", *keys).code == 0
    last = torch.load("parts/checkpoints/last.ckpt", weights_only=True)
    assert last["StemData"] == {"shown": shown}
    assert last["global_step"] == 10
    with Path("parts/csv/version_1/metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)][-1] == str((shown - 1) // 12)


# The files


def test_the_last_and_the_best_are_kept(train):
    keys = ["trainer.val_check_interval=2", "checkpoints.last=3", "checkpoints.best=2", "checkpoints.every=3"]
    assert train("trainer.max_steps=8", *keys).code == 0
    steps = {
        path.name: torch.load(path, weights_only=True)["global_step"] for path in Path("run/checkpoints").iterdir()
    }
    assert {name: step for name, step in steps.items() if "last" in name} == {
        "last.ckpt": 8,
        "last-1.ckpt": 6,
        "last-2.ckpt": 4,
    }
    best = sorted(name for name in steps if "last" not in name)
    assert len(best) == 2
    assert all(name == f"best-step={steps[name]}.ckpt" for name in best)


@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize("problem", [None, "the disk is full"])
def test_every_rank_saves_at_the_same_steps(tmp_path, leading, problem):
    """To save is to wait for the others, who know neither who leads nor how its disk is."""
    files = CheckpointFiles()
    files.problem = problem
    ours = checkpoints.Checkpoints(tmp_path, files, interrupts.Interrupts(), every=5)
    saved: list[Path] = []
    trainer = SimpleNamespace(
        is_global_zero=leading, loggers=[], global_step=5, world_size=1, save_checkpoint=saved.append
    )
    ours.save(trainer, validation_due=True)
    ours.on_train_batch_start(trainer, None)  # the first batch behind a validation at a step that is due itself
    assert len(saved) == 1


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[::64] = (byte ^ 1 for byte in content[::64])
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(train, whole, monkeypatch):
    at_step(monkeypatch, 6, send(signal.SIGTERM))
    train("hydra.run.dir=parts", *KEYS)
    damage(Path("parts/checkpoints/last.ckpt"))
    resumed = train("hydra.run.dir=parts", "resume=auto", *KEYS)
    assert "last.ckpt: a damaged checkpoint (" in resumed.output
    assert "Going on from " in resumed.output
    assert_equal(whole, "parts")


def test_where_all_are_damaged_the_run_does_not_begin_again(train):
    assert train("trainer.max_steps=2", "trainer.val_check_interval=1").code == 0
    for path in Path("run/checkpoints").glob("last*.ckpt"):
        damage(path)
    refused = train("resume=auto")
    assert refused.code == 2
    assert "checkpoints are damaged. Begin anew" in refused.output
    damage(Path("run/checkpoints/best.ckpt"))
    refused = train("ckpt_path=run/checkpoints/best.ckpt")
    assert refused.code == 2, refused.output


def test_every_bit_of_a_checkpoint_is_watched(tmp_path):
    path = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint({"weights": torch.arange(1000.0), "step": 3}, path)
    assert checkpoints.fault(path) is None
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        if checkpoints.fault(path) is None:  # a bit of no meaning: a date, or padding
            loaded = torch.load(path, weights_only=True)
            assert loaded["step"] == 3
            assert torch.equal(loaded["weights"], torch.arange(1000.0))
        path.write_bytes(whole[:place])
        assert checkpoints.fault(path)


def saves_for_ever(run: Path, said: Connection) -> None:
    files = CheckpointFiles()
    ours = checkpoints.Checkpoints(run, files, interrupts.Interrupts())
    trainer = SimpleNamespace(is_global_zero=True, loggers=[])
    for step in itertools.count():
        trainer.global_step = step
        checkpoint = {"step": step, "weights": torch.full((300_000,), step)}
        trainer.save_checkpoint = partial(files.save_checkpoint, checkpoint)
        ours.save(trainer, validation_due=False)
        said.send(step)


def test_a_kill_while_saving_leaves_the_one_before(tmp_path):
    """At random moments; what was said to be saved is there, or a later one."""
    draw, fork = random.Random(1), get_context("fork")
    for _ in range(10):
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=saves_for_ever, args=(tmp_path, theirs))
        process.start()
        theirs.close()
        said = [ours.recv()]
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        with suppress(EOFError):
            while True:
                said.append(ours.recv())
        process.join()
        found = checkpoints.newest(tmp_path)
        assert found
        loaded = torch.load(found, weights_only=True)
        assert loaded["step"] >= said[-1]
        assert torch.equal(loaded["weights"], torch.full((300_000,), loaded["step"]))


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(train, monkeypatch):
    write, times = checkpoints._write, []

    def full(checkpoint, path):
        times.append(path)
        if len(times) in failing:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(checkpoint, path)

    monkeypatch.setattr(checkpoints, "_write", full)
    failing = {1}
    done = train("trainer.max_steps=4", "trainer.val_check_interval=2", "checkpoints.best=0")
    assert done.code == 0, done.output
    assert "new.ckpt: not written (No space left on device)" in done.output
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"last.ckpt"}
    times.clear()
    failing = set(range(10))
    done = train("trainer.max_steps=6", "resume=auto")
    assert done.code == 2
    assert "the last checkpoint could not be written" in done.output
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_checkpoint_from_a_stranger_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    torch.save({"state_dict": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_a_job_that_cannot_be_queued_again_is_said_so(monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", "")
    interrupts.requeue()
    assert "SLURM job 1 was not queued again" in caplog.text
