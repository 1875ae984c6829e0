"""The runner of the quality benchmarks: its recipes compose, what is done is not done again, chance is no gain."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from stemwise import launch, model_file

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def ablations(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    from quality import ablations

    monkeypatch.setattr(ablations, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(ablations, "WORK", tmp_path / "work")
    return ablations


def test_every_variant_composes_and_differs_from_its_recipe(ablations):
    launch.offer_trainer_arguments()
    for recipe, variants in ablations.QUESTIONS.values():
        found = []
        for extra in variants.values():
            with initialize_config_dir(launch.CONF, version_base="1.3"):
                found.append(launch.plain(compose("train", overrides=[*recipe, *extra, "logger=[]", "seed=0"])))
        assert all(found.count(one) == 1 for one in found)


def test_runs_that_are_done_are_not_done_again(ablations, monkeypatch, capsys):
    started = []

    def trained(run, threads, work):
        started.append(run)
        return {"sdr": {"mean": float(run.seed) + len(run.overrides)}, "seconds": 60.0}

    monkeypatch.setattr(ablations, "trained", trained)
    ablations.answer("size", seeds=1, jobs=2)
    variants = ablations.QUESTIONS["size"][1]
    assert {run.variant for run in started} == set(variants)
    ablations.answer("size", seeds=2, jobs=2)
    assert len(started) == 2 * len(variants)
    assert {run.seed for run in started[len(variants) :]} == {1}
    assert len(json.loads((ablations.RESULTS / "size.json").read_text())["runs"]) == 2 * len(variants)
    text = (ablations.RESULTS / "size.md").read_text()
    assert all(f"| {name} |" in text for name in variants)
    assert "| 1.0 |" in text  # minutes
    assert "python benchmarks/quality/ablations.py size --seeds 2" in text


def test_what_was_done_outlives_a_training_that_fails(ablations, monkeypatch):
    def trained(run, threads, work):
        if run.variant == "4 8 16 16":
            raise SystemExit("no")
        return {"sdr": {"mean": 1.0}, "seconds": 60.0}

    monkeypatch.setattr(ablations, "trained", trained)
    with pytest.raises(SystemExit):
        ablations.answer("size", seeds=1, jobs=1)
    assert len(ablations.done("size")) == 1
    assert "| not run |" in (ablations.RESULTS / "size.md").read_text()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0, 4.0, 5.0], "+1.00"),  # every seed is better by as much
        ([2.5, 3.5, 3.6], "none (+0.20)"),
        ([1.1, 2.2, 3.0], "-0.90"),
        ([3.0], "one seed"),
    ],
)
def test_a_difference_that_chance_may_have_made_is_none(ablations, scores, expected):
    assert ablations.difference(scores, [2.0, 3.0, 4.0]) == expected


def test_a_training_that_fails_says_what_it_said(ablations, tmp_path):
    with pytest.raises(SystemExit, match="no_such_key"):
        ablations.trained(ablations.Run("x", ("no_such_key=1",), 0), 1, tmp_path)


def test_a_run_is_scored_and_leaves_no_folder(ablations, tmp_path):
    tiny = ("data=demo", "data.dataset.songs.train=1", "data.dataset.songs.valid=1", "data.dataset.seconds=1")
    small = ("spectrogram.sample_rate=8000", "spectrogram.channels=1", "spectrogram.n_fft=256", "spectrogram.hop=64")
    rest = ("spectrogram.bins=64", "spectrogram.frames=16", "model.unet.filters=[4,6,8]", "trainer.max_steps=1")
    found = ablations.trained(ablations.Run("x", (*tiny, *small, *rest), 0), 1, tmp_path)
    assert set(found["sdr"]) == {"vocals", "drums", "bass", "other", "mean"}
    assert found["seconds"] > 0
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_model_of_mir1k_is_that_of_its_recipe():
    path = FOLDER / "results/quality/mir1k/model.safetensors"
    assert path.stat().st_size < 20e6
    launch.offer_trainer_arguments()
    with initialize_config_dir(launch.CONF, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=mir1k"])
    settings = launch.plain(cfg.model)
    settings["mask"]["rest"] = False  # voice and accompaniment are all of the mixture
    model, facts = model_file.read(path)
    assert model.settings == instantiate(settings, _convert_="all").settings
    assert facts["step"] == cfg.trainer.max_steps
