"""The runner of the quality benchmarks: its recipes compose, what is done is not done again, chance is no gain."""

import dataclasses
import json
import sys
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
    monkeypatch.setattr(ablations.runs, "WORK", tmp_path / "work")
    monkeypatch.setattr(ablations.sizes, "of", lambda overrides: {"weights": 1_000_000 * len(overrides), "speed": 9.5})
    return ablations


@pytest.fixture
def asked(ablations, monkeypatch):
    """A question of two variants, each trained for two splits."""
    splits = {"left": ("data.dataset.seed=1",), "right": ("data.dataset.seed=2",)}
    question = type(ablations.QUESTIONS["size"])(("stems=2",), {"as it is": (), "other": ("ema=0.9",)}, splits)
    monkeypatch.setitem(ablations.QUESTIONS, "asked", question)
    return question


def result(mean: float) -> dict:
    return {"sdr": {"mean": mean}, "improvement": mean + 5, "cpu_seconds": 60.0, "curve": [[10, mean, 1.0]]}


def cells(text: str, variant: str) -> list[str]:
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {variant} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_every_variant_composes_and_differs_from_its_recipe(ablations):
    launch.offer_trainer_arguments()
    for question in ablations.QUESTIONS.values():
        found = []
        for run in ablations.runs.needed(question, seeds=1):
            with initialize_config_dir(launch.CONF, version_base="1.3"):
                found.append(launch.plain(compose("train", overrides=[*run.overrides, "logger=[]", "seed=0"])))
        assert len(found) == len(question.variants) * len(question.splits)
        assert all(found.count(one) == 1 for one in found)
        assert next(iter(question.variants.values())) == ()


def test_the_singer_that_is_scored_is_not_heard(ablations, shared_data):
    launch.offer_trainer_arguments()
    for split in ablations.QUESTIONS["mir1k"].splits.values():
        with initialize_config_dir(launch.CONF, version_base="1.3"):
            cfg = compose("train", overrides=["experiment=mir1k", *split])
        found = instantiate(cfg.data.dataset)(shared_data / "mir1k")
        heard, scored = ({track.name.partition("_")[0] for track in found[name].tracks} for name in ("train", "valid"))
        assert len(heard) == len(scored) == 1
        assert heard != scored


def test_runs_that_are_done_are_not_done_again(ablations, monkeypatch, capsys):
    started = []

    def trained(run, threads, work, root):
        started.append(run)
        assert root == work / "songs"
        return result(float(run.seed) + len(run.overrides))

    monkeypatch.setattr(ablations.runs, "trained", trained)
    ablations.answer("size", seeds=1, jobs=2)
    variants = ablations.QUESTIONS["size"].variants
    assert {run.variant for run in started} == set(variants)
    ablations.answer("size", seeds=2, jobs=2)
    assert len(started) == 2 * len(variants)
    assert {run.seed for run in started[len(variants) :]} == {1}
    assert len(json.loads((ablations.RESULTS / "size.json").read_text())["runs"]) == 2 * len(variants)
    text = (ablations.RESULTS / "size.md").read_text()
    assert all(f"| {name} |" in text for name in variants)
    assert "| 1.0 |" in text  # minutes
    assert "](size.svg)" in text
    assert (ablations.RESULTS / "size.svg").read_text().startswith("<svg ")
    assert "python benchmarks/quality/ablations.py size --seeds 2" in text


def test_sizes_stand_beside_the_scores_and_are_not_measured_again(ablations, monkeypatch):
    monkeypatch.setattr(ablations.runs, "trained", lambda run, threads, work, root: result(1.0))
    ablations.answer("size", seeds=1, jobs=1)
    text, question = (ablations.RESULTS / "size.md").read_text(), ablations.QUESTIONS["size"]
    assert cells(text, "8 16 32 32")[-2:] == [f"{len(question.recipe)}.00", "9.5"]
    assert cells(text, "4 8 16 16")[-2:] == [f"{len(question.recipe) + 1}.00", "9.5"]
    assert {name: cells(text, f"`{name}`") for name in question.full_size} == {
        name: [f"`{name}`", "2.00", "9.5"] for name in ("unet_small", "unet", "unet_large")
    }
    monkeypatch.delattr(ablations.sizes, "of")
    ablations.answer("size", seeds=2, jobs=1)
    assert (ablations.RESULTS / "size.md").read_text().count("9.5") == text.count("9.5")
    ablations.answer("loss", seeds=1, jobs=1)
    assert "real time" not in (ablations.RESULTS / "loss.md").read_text()


def test_the_size_and_speed_of_a_model(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from quality import sizes

    small = ["stems=1", "spectrogram.sample_rate=8000", "model.unet.filters=[4,8]", "spectrogram.frames=16"]
    found = sizes.of(small, seconds=4)
    encoder, decoder, last = (2 * 25 + 1) * 4 + 2 * 4 + (4 * 25 + 1) * 8, (8 * 25 + 1) * 4 + 2 * 4, 2 * 16 + 2
    assert found["weights"] == encoder + decoder + (8 * 25 + 1) * 1 + 2 * 1 + last
    assert found["speed"] > 1
    wide = sizes.of([*small, "model.unet.filters=[64,128]"], seconds=4)
    assert wide["speed"] < found["speed"]


@pytest.mark.parametrize(("draw", "expected"), [("kaiming_normal_", (2 / 800) ** 0.5), ("xavier_uniform_", 900**-0.5)])
def test_other_kernels_are_drawn_and_nothing_else_differs(ablations, draw, expected):
    settings = ("stems=1", "model.unet.filters=[32,40]", "spectrogram.frames=16")
    plain = ablations.sizes.made(settings)
    other = ablations.sizes.made((*settings, "model._target_=quality.initial.separator", f"+model.draw={draw}"))
    assert type(other) is type(plain)
    assert other.settings == plain.settings
    kernel, before = (model.unets[0].encoder[1].weight.detach() for model in (other, plain))  # 800 values in, 1000 out
    assert float(kernel.std()) == pytest.approx(expected, rel=0.02)
    assert (kernel.abs().max() > before.abs().max() * 1.2) == (draw == "kaiming_normal_")


def test_what_was_done_outlives_a_training_that_fails(ablations, monkeypatch):
    def trained(run, threads, work, root):
        if run.variant == "4 8 16 16":
            raise SystemExit("no")
        return result(1.0)

    monkeypatch.setattr(ablations.runs, "trained", trained)
    with pytest.raises(SystemExit):
        ablations.answer("size", seeds=1, jobs=1)
    assert len(ablations.done("size")) == 1
    assert "| not run |" in (ablations.RESULTS / "size.md").read_text()


def test_a_score_is_the_mean_over_splits_and_its_spread_that_over_seeds(ablations, asked):
    values = {
        "as it is": [[1.0, 3.0], [2.0, 4.0], [1.5, 3.5]],  # split by split, of each seed
        "other": [[2.0, 4.1], [3.0, 5.1], [2.5, 4.6]],
    }
    found = {
        run.key: result(values[run.variant][run.seed]["data.dataset.seed=2" in run.overrides])
        for run in ablations.runs.needed(asked, seeds=3)
    }
    text = ablations.pages.page("asked", asked, found, 3, {})
    assert cells(text, "as it is") == ["as it is", "2.50 ± 0.50", "7.50", "2.00 3.00 2.50", "", "1.0"]
    # Six differences, 1.0 and 1.1: what seeds and splits have in common is not in their interval.
    assert cells(text, "other")[4] == "+1.05 ± 0.06"
    assert "over the splits left, right" in text


def test_a_seed_counts_once_all_its_splits_are_there(ablations, asked):
    done = ablations.runs.needed(asked, seeds=2)
    found = {run.key: result(float(run.seed)) for run in done if run.seed == 0 or run.overrides[1][-1] == "1"}
    text = ablations.pages.page("asked", asked, found, 2, {})
    assert cells(text, "as it is")[1:4] == ["0.00", "5.00", "0.00"]
    assert cells(text, "other")[4] == "none (+0.00 ± 0.00)"
    del found[done[-1].key.replace("seed=1", "seed=0")]
    assert cells(ablations.pages.page("asked", asked, found, 2, {}), "other")[1] == "not run"


def test_pairs_are_of_the_same_seed(ablations, asked):
    found = {run.key: result(float(run.seed)) for run in ablations.runs.needed(asked, seeds=3)}
    for run in ablations.runs.needed(asked, seeds=1)[:2]:
        del found[run.key]  # the first seed of the recipe
    assert cells(ablations.pages.page("asked", asked, found, 3, {}), "other")[4] == "none (+0.00 ± 0.00)"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0, 4.0, 5.0], "+1.00 ± 0.00"),  # every seed is better by as much
        ([2.5, 3.5, 3.6], "none (+0.20 ± 1.29)"),  # 4.30 times 0.52 / √3
        ([1.1, 2.2, 3.0], "-0.90 ± 0.25"),
    ],
)
def test_a_difference_that_chance_may_have_made_is_none(ablations, scores, expected):
    assert ablations.pages.difference(scores, [2.0, 3.0, 4.0]) == expected


def test_of_one_run_nothing_is_said(ablations):
    assert ablations.pages.difference([3.0], [2.0]) == "one run"


def test_a_training_that_fails_says_what_it_said(ablations, tmp_path):
    with pytest.raises(SystemExit, match="no_such_key"):
        ablations.runs.trained(ablations.Run("x", ("no_such_key=1",), 0), 1, tmp_path, tmp_path)


TINY = (
    *("data=demo", "data.dataset.songs.train=1", "data.dataset.songs.valid=1", "data.dataset.seconds=1"),
    *("spectrogram.sample_rate=8000", "spectrogram.channels=1", "spectrogram.n_fft=256", "spectrogram.hop=64"),
    *("spectrogram.bins=64", "spectrogram.frames=16", "model.unet.filters=[4,6,8]", "trainer.max_steps=3"),
    *("trainer.val_check_interval=1",),
)


def test_a_run_is_scored_by_its_last_step_and_leaves_no_folder(ablations, tmp_path):
    found = ablations.runs.trained(ablations.Run("x", TINY, 0), 1, tmp_path, tmp_path / "songs")
    assert set(found["sdr"]) == {"vocals", "drums", "bass", "other", "mean"}
    assert [point[0] for point in found["curve"]] == [1, 2, 3]
    assert found["curve"][-1][1] == pytest.approx(found["sdr"]["mean"], abs=1e-3)
    assert found["improvement"] > found["sdr"]["mean"]  # a mixture of four stems is below 0 dB of each
    assert found["cpu_seconds"] > 1
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_a_run_cost_is_cpu_time(ablations):
    idle = [sys.executable, "-c", "import time; time.sleep(1)"]
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"]
    assert ablations.runs.spent(idle, 1) < 0.5
    assert 1 <= ablations.runs.spent(busy, 1) < 1.5


METRICS = """\
step,sdr/mean,sdr/vocals,sdr/oracle/vocals,sdr/improvement/mean,val/loss
9,1,1,9,6,3
19,2,2,9,7,2
29,,,,,
"""


def test_a_run_that_was_interrupted_is_done_anew(ablations, tmp_path, monkeypatch):
    run, left = ablations.Run("x", (), 0), []

    def spent(command, threads):
        folder = Path(command[-1].partition("=")[2])
        assert not folder.exists()
        left.append(folder)
        (folder / "csv/version_0").mkdir(parents=True)
        (folder / "csv/version_0/metrics.csv").write_text(METRICS)
        if len(left) == 1:
            raise KeyboardInterrupt
        return 5.0

    monkeypatch.setattr(ablations.runs, "spent", spent)
    with pytest.raises(KeyboardInterrupt):
        ablations.runs.trained(run, 1, tmp_path, tmp_path)
    assert ablations.runs.trained(run, 1, tmp_path, tmp_path) == {
        "cpu_seconds": 5.0,
        "sdr": {"mean": 2.0, "vocals": 2.0},
        "improvement": 7.0,
        "curve": [[10, 1.0, 3.0], [20, 2.0, 2.0]],
    }


def test_recordings_that_are_not_there_are_asked_for(ablations, monkeypatch, tmp_path):
    monkeypatch.setattr(ablations.runs, "RECORDINGS", tmp_path)
    with pytest.raises(SystemExit, match=r"mir1k: no such folder.*--root FOLDER"):
        ablations.answer("mir1k", seeds=1, jobs=1)
    (tmp_path / "mir1k").mkdir()
    assert ablations.runs.songs(ablations.QUESTIONS["mir1k"], None) == tmp_path / "mir1k"
    assert ablations.runs.songs(ablations.QUESTIONS["mir1k"], tmp_path) == tmp_path


def museval(*songs: tuple[float, ...]) -> dict:
    return {f"{number}": dict(zip(("vocals", "bass"), song, strict=False)) for number, song in enumerate(songs)}


def test_musevals_scores_are_medians_over_the_songs_of_all_splits(ablations, asked):
    asked = dataclasses.replace(asked, museval="data=musdb18")
    done = ablations.runs.needed(asked, seeds=2)
    assert {run.museval for run in done} == {("data=musdb18", *split) for split in asked.splits.values()}
    songs = {"1": museval((1.0, 0.0), (9.0, 0.0)), "2": museval((2.0, 5.0), (3.0,), (4.0, 6.0))}  # one without bass
    found = {run.key: {**result(1.0), "museval": songs[run.overrides[1][-1]]} for run in done if run.seed == 0}
    text = ablations.pages.page("asked", asked, found, 2, {})
    table = text[text.index("museval's SDR") :]
    assert cells(table, "variant") == ["variant", "vocals", "bass", "mean"]
    assert cells(table, "as it is") == ["as it is", "3.00", "2.50", "2.75"]
    more = {key.replace("seed=0", "seed=1"): one | {"museval": museval((5.0, 0.5))} for key, one in found.items()}
    table = ablations.pages.page("asked", asked, found | more, 2, {}).partition("museval's SDR")[2]
    assert cells(table, "other") == ["other", "4.00 ± 1.41", "1.50 ± 1.41", "2.75 ± 0.00"]
    asked = dataclasses.replace(asked, museval=None)
    assert "museval" not in ablations.pages.page("asked", asked, found, 2, {})
    assert {run.museval for run in ablations.runs.needed(asked, seeds=1)} == {()}


def test_a_page_says_what_each_split_is(ablations, asked):
    text = ablations.pages.page("asked", asked, {}, 1, {})
    assert "    python -m train stems=2\n" in text
    assert "- left: `data.dataset.seed=1`\n- right: `data.dataset.seed=2`\n" in text
    assert "    PYTHONPATH=benchmarks python -m train experiment=musdb18 " in ablations.pages.page(
        "musdb18", ablations.QUESTIONS["musdb18"], {}, 1, {}
    )
    assert text.startswith("# Asked\n")
    assert ablations.pages.page("mir1k", ablations.QUESTIONS["mir1k"], {}, 1, {}).startswith("# MIR-1K\n")


@pytest.mark.parametrize("arguments", [["size"], ["mir1k", "size"], []])
def test_a_root_is_for_one_question_about_recordings(ablations, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["ablations.py", *arguments, "--root", "songs"])
    with pytest.raises(SystemExit):
        ablations.main()
    assert "Name that question alone" in capsys.readouterr().err


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
