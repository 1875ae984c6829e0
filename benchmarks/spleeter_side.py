"""Spleeter's part of the comparisons, run by the Python of its own environment: `spleeter_side.py JOBS.json`.

JOBS.json is a list of jobs, each `{"task": name of a function here, **its arguments}`. All numbers come from
Spleeter's own code: its graph, its separation, its loss and its optimiser; waveforms are float32 .npy files (N, 2).
Knows nothing of stemwise; runs on Python 3.8 to 3.11.
"""

from __future__ import annotations

import functools
import json
import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf
from spleeter.audio.adapter import AudioAdapter
from spleeter.dataset import get_training_dataset
from spleeter.model import EstimatorSpecBuilder, model_fn
from spleeter.model.functions import unet
from spleeter.separator import Separator
from spleeter.utils.configuration import load_configuration

v1 = tf.compat.v1


def make(folder: str, config: dict, waveform: str, seed: int) -> None:
    """Writes a model folder: `config.json` and a checkpoint with random weights.

    The normalisation's statistics are those of the layers' inputs for `waveform`, changed at random: so nothing
    saturates, and every weight has a say in the output.
    """
    rng = np.random.default_rng(seed)
    with v1.Graph().as_default(), _layers(momentum=0.0) as norms, v1.Session() as session:
        v1.train.get_or_create_global_step()  # without it, Spleeter loads no checkpoint
        builder = EstimatorSpecBuilder({"waveform": tf.constant(np.load(waveform))}, config)
        assert builder.model_outputs
        session.run(v1.global_variables_initializer())
        weights = {variable: session.run(variable) for variable in v1.trainable_variables()}
        _assign(session, {variable: _random(variable.name, value, rng) for variable, value in weights.items()})
        session.run([norm.updates for norm in norms], {_learning_phase(): True})
        _assign(session, _shifted_statistics(session, norms, rng))
        _save(session, Path(folder))
    (Path(folder) / "config.json").write_text(json.dumps(config, indent=1))


def separate(folder: str, waveform: str, output: str, mwf: bool) -> None:
    """Spleeter's stems of `waveform`, as OUTPUT/<stem>.npy, from the model in `folder`."""
    separator = Separator(str(Path(folder) / "config.json"), MWF=mwf, multiprocess=False)
    # Absolute, so that Spleeter does not look for the model on the net.
    separator._params["model_dir"] = str(Path(folder).resolve())
    Path(output).mkdir(parents=True, exist_ok=True)
    for stem, samples in separator.separate(np.load(waveform)).items():
        np.save(Path(output) / f"{stem}.npy", samples)


def step(folder: str, batch: str, training: bool, output: str) -> None:
    """One step of training from the model in `folder` on the magnitudes in `batch` (.npz, each (B, T, F, 2)).

    `training` is Keras's learning phase; Spleeter's own training leaves it at its default, false. Dropout is off.
    Writes OUTPUT/loss.json, and as model folders OUTPUT/gradients and OUTPUT/after.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    with v1.Graph().as_default(), _layers(dropout=0.0) as norms, v1.Session() as session:
        v1.train.get_or_create_global_step()
        spec = model_fn(*_inputs(batch, config), tf.estimator.ModeKeys.TRAIN, config)
        feed = {_learning_phase(): training}
        session.run(v1.global_variables_initializer())
        _restore(session, Path(folder))
        loss, gradients = session.run([spec.loss, _gradients(spec.loss)], feed)
        session.run([norm.updates for norm in norms], feed)
        session.run(spec.train_op, feed)
        _save(session, Path(output) / "after")
        # The gradients take the weights' places, so that whatever reads a model reads them too.
        by_name = {variable.name: variable for variable in v1.trainable_variables()}
        _assign(session, {by_name[name]: value for name, value in gradients.items()})
        _save(session, Path(output) / "gradients")
    (Path(output) / "loss.json").write_text(json.dumps(float(loss)))


def train(folder: str, batch: str, steps: int, output: str) -> None:
    """Goes on training with Spleeter's estimator from the checkpoint in `folder`, which it changes.

    Writes OUTPUT.json: the global step before and after, and the loss of the batch before and after.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    config["model_dir"] = folder
    estimator = tf.estimator.Estimator(model_fn=model_fn, model_dir=folder, params=config)
    data = functools.partial(_dataset, batch, config)
    before = estimator.evaluate(data, steps=1)
    estimator.train(data, steps=steps)
    after = estimator.evaluate(data, steps=1)
    found = {"before": before, "after": after}
    facts = {when: {"step": int(f["global_step"]), "loss": float(f["loss"])} for when, f in found.items()}
    Path(output).write_text(json.dumps(facts))


def timed(csv: str, root: str, folder: str, settings: dict) -> None:
    """Trains as `spleeter train` does, its own input pipeline included, step by step as it is asked on standard input.

    See `steered.py` for questions and answers. `csv` names files below `root`; the run's files go to `folder`.
    `settings` change Spleeter's own for 4 stems.
    """
    params, data = _training(csv, root, folder, settings)
    _estimator(params).train(data, hooks=[_Steps()], max_steps=params["train_max_steps"])


def within(csv: str, root: str, folder: str, settings: dict, deadline: float) -> None:
    """Trains as `spleeter train` does until the deadline (seconds of the epoch), and saves.

    Leaves a model folder, FOLDER/run, and in FOLDER/steps.json the count of steps. `csv`, `root` and `settings` are
    those of `timed`. The evaluations that `spleeter train` makes in between choose nothing, and are left out.
    """
    params, data = _training(csv, root, folder, settings)
    estimator = _estimator(params)
    estimator.train(data, hooks=[_Deadline(deadline)], max_steps=params["train_max_steps"])
    Path(params["model_dir"], "config.json").write_text(json.dumps(params, indent=1))
    Path(folder, "steps.json").write_text(json.dumps(int(estimator.get_variable_value("global_step"))))


def _training(csv: str, root: str, folder: str, settings: dict) -> tuple[dict, functools.partial]:
    """Spleeter's own settings for 4 stems but for `settings`, and its input pipeline."""
    places = {"train_csv": csv, "model_dir": str(Path(folder) / "run"), "training_cache": str(Path(folder) / "cache")}
    params = {**load_configuration("spleeter:4stems"), **places, **settings}
    return params, functools.partial(get_training_dataset, params, AudioAdapter.default(), root)


def _estimator(params: dict) -> tf.estimator.Estimator:
    run = tf.estimator.RunConfig(
        save_checkpoints_steps=params["save_checkpoints_steps"],
        tf_random_seed=params["random_seed"],
        save_summary_steps=params["save_summary_steps"],
        log_step_count_steps=10,
        keep_checkpoint_max=2,
    )
    return tf.estimator.Estimator(model_fn=model_fn, model_dir=params["model_dir"], params=params, config=run)


class _Deadline(tf.estimator.SessionRunHook):
    """Ends a training after the step in which its time is over."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: v1.train.SessionRunValues) -> None:
        if time.time() >= self.deadline:
            run_context.request_stop()


class _Steps(tf.estimator.SessionRunHook):
    """After the steps that were asked for, answers and waits for the next question."""

    def __init__(self) -> None:
        self.left, self.seconds = 1, []

    def after_create_session(self, session: v1.Session, coord: tf.train.Coordinator) -> None:
        self.began = time.perf_counter()

    def after_run(self, run_context: v1.train.SessionRunContext, run_values: v1.train.SessionRunValues) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        self.left -= 1
        if self.left == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
            print("\nSTEERED " + json.dumps({"seconds": self.seconds, "peak": peak}), flush=True)
            question = sys.stdin.readline().strip()
            if not question:
                run_context.request_stop()
                return
            self.left, self.seconds = int(question), []
        self.began = time.perf_counter()


def _inputs(batch: str, config: dict) -> tuple[dict, dict]:
    """Features and labels as Spleeter's input pipeline names them."""
    magnitudes = {name: tf.constant(value) for name, value in np.load(batch).items()}
    mixture = f"{config['mix_name']}_spectrogram"
    return {mixture: magnitudes.pop(mixture)}, magnitudes


def _dataset(batch: str, config: dict) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(_inputs(batch, config)).repeat()


@contextmanager
def _layers(momentum: float = 0.99, dropout: float = 0.5):
    """Builds Spleeter's networks with these values in its layers; gives the list of its normalisations."""
    norms = []
    names = ("BatchNormalization", "Dropout")
    original = {name: getattr(unet, name) for name in names}

    def norm(**options):
        norms.append(original["BatchNormalization"](momentum=momentum, **options))
        return norms[-1]

    unet.BatchNormalization = norm
    unet.Dropout = lambda rate: original["Dropout"](dropout)
    try:
        yield norms
    finally:
        for name in names:
            setattr(unet, name, original[name])


def _learning_phase() -> tf.Tensor:
    return v1.get_default_graph().get_tensor_by_name("keras_learning_phase:0")


def _random(name: str, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kind = name.split("/")[-1].split(":")[0]
    if kind == "kernel":
        # The last layer's kernel is the only one of 4x4. Kept small, so that its sigmoid keeps away from 0 and 1.
        return value * rng.uniform(0.5, 1.5, value.shape) * (0.2 if value.shape[0] == 4 else 1)
    return rng.normal(1.0 if kind == "gamma" else 0.0, 0.2, value.shape)


def _shifted_statistics(session: v1.Session, norms: list, rng: np.random.Generator) -> dict:
    changed = {}
    for norm in norms:
        mean, variance = session.run([norm.moving_mean, norm.moving_variance])
        changed[norm.moving_mean] = mean + np.sqrt(variance) * rng.normal(0, 0.1, mean.shape)
        changed[norm.moving_variance] = variance * rng.uniform(0.7, 1.4, variance.shape)
    return changed


def _gradients(loss: tf.Tensor) -> dict:
    """By name. Variables that do not take part in the loss have none."""
    variables = v1.trainable_variables()
    found = zip(variables, v1.gradients(loss, variables))  # noqa: B905 (Python 3.8)
    return {variable.name: gradient for variable, gradient in found if gradient is not None}


def _assign(session: v1.Session, values: dict) -> None:
    for variable, value in values.items():
        variable.load(value.astype(np.float32), session)


def _saver() -> v1.train.Saver:
    optimiser = ("Adam", "beta1_power", "beta2_power")
    return v1.train.Saver([v for v in v1.global_variables() if not any(name in v.name for name in optimiser)])


def _save(session: v1.Session, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _saver().save(session, str(folder / "model"), write_meta_graph=False)


def _restore(session: v1.Session, folder: Path) -> None:
    _saver().restore(session, tf.train.latest_checkpoint(str(folder)))


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    for job in json.loads(Path(sys.argv[1]).read_text()):
        tasks = (make, separate, step, train, timed, within)
        {task.__name__: task for task in tasks}[job.pop("task")](**job)
