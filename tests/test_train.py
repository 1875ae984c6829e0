"""The training command from the first key to the model file."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from stemwise import model_file
from stemwise.training import SeparatorTraining
from tiny import TINY

RUN = Path("run")


def losses(run: Path = RUN) -> list[float]:
    with (run / "csv/version_0/metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_a_run_has_one_folder_with_all_in_it(train, songs):
    done = train()
    assert done.code == 0, done.output
    assert {path.name for path in RUN.iterdir()} == {
        ".hydra",
        ".lock",
        ".overrides.yaml",
        "config.yaml",
        "train.log",
        "csv",
        "index",
        "checkpoints",
        "model.safetensors",
        "provenance.json",
    }
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["stem_names"] == ["vocals", "drums", "bass", "other"]
    assert config["data"]["stems"] == config["stem_names"]  # resolved
    assert len((RUN / "index/train.csv").read_text().splitlines()) == 5
    model, facts = model_file.read(RUN / "model.safetensors")
    assert facts["step"] == 4
    assert set(facts["sdr"]) == {"mean", "vocals", "drums", "bass", "other"}
    assert model.spectrogram.sample_rate == 8000
    assert "stemwise separate SONG.mp3 --model" in done.output
    assert str(RUN / "model.safetensors") in done.output
    checkpoint = model_file.load(RUN / "checkpoints/last.ckpt")
    torch.testing.assert_close(checkpoint.state_dict(), model.state_dict())


def test_the_model_file_is_the_best_of_the_run_not_the_last(train):
    """With a learning rate that ruins the weights, an early validation stays the best."""
    done = train("trainer.max_steps=6", "trainer.val_check_interval=1", "optimizer.lr=1.0")
    assert done.code == 0, done.output
    with (RUN / "csv/version_0/metrics.csv").open() as file:
        scores = {int(row["step"]) + 1: float(row["sdr/mean"]) for row in csv.DictReader(file) if row["sdr/mean"]}
    facts = model_file.read(RUN / "model.safetensors")[1]
    assert facts["sdr"]["mean"] == pytest.approx(max(scores.values()), abs=1e-3)
    assert facts["step"] == max(scores, key=lambda step: scores[step])


def test_the_same_seed_gives_the_same_run(train):
    first = [train("hydra.run.dir=one").code, losses(Path("one"))]
    second = [train("hydra.run.dir=two").code, losses(Path("two"))]
    third = [train("hydra.run.dir=three", "seed=1").code, losses(Path("three"))]
    assert first == second != third
    one, two = (model_file.load(Path(name) / "model.safetensors").state_dict() for name in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ema", ["null", "0.9"])
def test_resumed_equals_uninterrupted(train, workers, ema):
    """Stopped in the middle of an epoch, with dropout, remix, a schedule and averaged weights: bit for bit."""
    keys = ["data.batch_size=2", "data.examples_per_song=3", "augment=remix", "scheduler=cosine", f"ema={ema}"]
    keys += [f"data.num_workers={workers}", "trainer.val_check_interval=4", "scheduler.T_max=9", "optimizer.lr=0.001"]
    whole = train("hydra.run.dir=whole", "trainer.max_steps=9", *keys)  # epochs of six steps
    train("hydra.run.dir=parts", "trainer.max_steps=2", *keys)
    train("hydra.run.dir=parts", "trainer.max_steps=7", "ckpt_path=last", *keys)
    resumed = train("hydra.run.dir=parts", "trainer.max_steps=9", "ckpt_path=last", *keys)
    assert (whole.code, resumed.code) == (0, 0), resumed.output
    one, other = (torch.load(Path(name) / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "parts"))
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        if part in one:
            torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


def test_a_resumed_run_accumulates_as_an_uninterrupted_one(train):
    """Two batches a step, epochs of four, a schedule that counts steps: stopped in the middle of an epoch."""
    keys = ["data.batch_size=1", "trainer.accumulate_grad_batches=2", "augment=remix", "scheduler=cosine", "ema=0.9"]
    keys += ["scheduler.T_max=7", "optimizer.lr=0.001", "trainer.val_check_interval=4"]
    whole = train("hydra.run.dir=whole", "trainer.max_steps=7", *keys)
    train("hydra.run.dir=parts", "trainer.max_steps=3", *keys)
    resumed = train("hydra.run.dir=parts", "trainer.max_steps=7", "ckpt_path=last", *keys)
    assert (whole.code, resumed.code) == (0, 0), resumed.output
    one, other = (torch.load(Path(name) / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert one["global_step"] == 7
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_runs_resume_and_leave_the_same_files(train):
    """As a plain run leaves them. The weights are not held against it: compiled, they are not to the last digit."""
    keys = ["stem_names=[vocals]", "ema=0.9", "data.batch_size=2", "trainer.val_check_interval=4"]
    keys += ["model.unet.filters=[4,6]"]
    plain = train("hydra.run.dir=plain", "trainer.max_steps=5", *keys)
    parts = train("hydra.run.dir=parts", "trainer.max_steps=2", "compile=default", *keys)
    resumed = train("hydra.run.dir=parts", "trainer.max_steps=5", "ckpt_path=last", "compile=default", *keys)
    assert (plain.code, parts.code, resumed.code) == (0, 0, 0), resumed.output
    assert "compile=default: compiling the networks" in parts.output
    assert "The first pass took " in parts.output
    one, other = (torch.load(Path(name) / "checkpoints/last.ckpt", weights_only=True) for name in ("plain", "parts"))
    assert one["global_step"] == other["global_step"] == 5
    for part in ("state_dict", "current_model_state"):
        assert one[part].keys() == other[part].keys()
    assert model_file.load(Path("parts/model.safetensors")).stems == ("vocals",)
    further = train("hydra.run.dir=parts", "trainer.max_steps=6", "ckpt_path=last", *keys)
    assert further.code == 0, further.output


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(train, monkeypatch):
    """The checkpoint of a validation in the middle of an epoch: what came after it is done once more."""
    keys = ["data.batch_size=2", "data.examples_per_song=3", "trainer.val_check_interval=4"]
    whole = train("hydra.run.dir=whole", "trainer.max_steps=9", *keys)
    step = SeparatorTraining.training_step

    def dies(self, batch, number):
        if self.global_step == 5:
            raise MemoryError
        return step(self, batch, number)

    monkeypatch.setattr(SeparatorTraining, "training_step", dies)
    assert train("hydra.run.dir=parts", "trainer.max_steps=9", *keys).code == 1
    monkeypatch.setattr(SeparatorTraining, "training_step", step)
    resumed = train("hydra.run.dir=parts", "trainer.max_steps=9", "ckpt_path=last", *keys)
    assert (whole.code, resumed.code) == (0, 0), resumed.output
    states = [model_file.load(Path(name) / "checkpoints/last.ckpt").state_dict() for name in ("whole", "parts")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_checkpoint_of_another_kind_of_run_is_refused(train):
    assert train("trainer.max_steps=1").code == 0
    for override, expected in (
        ("ckpt_path=run/model.safetensors", "use init_from=run/model.safetensors"),
        ("stem_names=[vocals,drums]", "that run had stems="),
        ("model.unet.filters=[4,6,10]", "that run had unet="),
    ):
        keys = [override] if "ckpt" in override else ["ckpt_path=run/checkpoints/last.ckpt", override]
        done = train("hydra.run.dir=other", *keys)
        assert done.code == 2, done.output
        assert expected in done.output
        assert "Traceback" not in done.output


def test_a_better_model_is_not_replaced_after_a_resume(train):
    """The last validation comes after the last checkpoint, which therefore does not know the best score."""
    assert train("trainer.max_steps=2").code == 0
    best = model_file.read(RUN / "model.safetensors")[1]
    done = train("trainer.max_steps=6", "ckpt_path=last", "trainer.val_check_interval=2", "optimizer.lr=1.0")
    assert done.code == 0, done.output
    after = model_file.read(RUN / "model.safetensors")[1]
    assert after["sdr"]["mean"] >= best["sdr"]["mean"]


def test_a_loss_that_is_not_finite_stops_the_run(train):
    done = train("optimizer.lr=1e30", "trainer.max_steps=20")
    assert done.code == 2
    assert "Lower optimizer.lr" in done.output
    assert "Traceback" not in done.output


def test_silent_validation_songs_do_not_hide_a_later_score(train, songs, tmp_path):
    header, _ = (songs / "valid.csv").read_text().splitlines()
    soundfile.write(tmp_path / "silence.wav", torch.zeros(8000, 2).numpy(), 8000)
    (tmp_path / "silent.csv").write_text(f"{header}\n{','.join(['silence.wav'] * 4)}\n")
    (tmp_path / "train.csv").write_text((songs / "train.csv").read_text().replace("Song ", f"{songs}/Song "))
    keys = [f"data.root={tmp_path}", f"data.train={tmp_path}/train.csv", f"data.valid={tmp_path}/silent.csv"]
    done = train(*keys)
    assert done.code == 0, done.output
    assert "silent" in done.output
    assert (RUN / "model.safetensors").is_file()


def test_a_run_without_validation_or_loggers_still_leaves_a_model(train):
    done = train("trainer.limit_val_batches=0", "logger=[]", "trainer.max_steps=1")
    assert done.code == 0, done.output
    assert (RUN / "model.safetensors").is_file()


def test_last_without_a_run_says_how_to_name_it(train):
    done = train("ckpt_path=last")
    assert done.code == 2
    assert "hydra.run.dir=RUN ckpt_path=last" in done.output


def test_init_from_starts_with_another_models_weights(train):
    assert train("hydra.run.dir=first", "trainer.max_steps=2").code == 0
    done = train("init_from=first/model.safetensors", "stems=1", "trainer.max_steps=1", "optimizer.lr=0")
    assert done.code == 0, done.output
    assert "took over vocals" in done.output
    first, second = (model_file.load(Path(name) / "model.safetensors") for name in ("first", "run"))
    torch.testing.assert_close(second.unets[0].last.weight, first.unets[0].last.weight)


def test_init_from_goes_on_as_the_model_was_trained(train):
    assert train("hydra.run.dir=first", "trainer.max_steps=2", "normalization=stored").code == 0
    done = train("init_from=first/model.safetensors", "trainer.max_steps=1")
    assert "normalization=stored: as the model of init_from was trained" in done.output
    models = [model_file.load(Path(name) / "model.safetensors") for name in ("first", "run")]
    for model in models:
        norm = model.unets[0].encoder_norms[0]
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()
    done = train("init_from=first/model.safetensors", "normalization=batch", "hydra.run.dir=second")
    assert done.code == 0, done.output
    assert model_file.load(Path("second/model.safetensors")).unets[0].encoder_norms[0].running_mean.any()


@pytest.mark.parametrize(
    ("stems", "names", "rest"),
    [
        ("stems=1", ["vocals"], True),
        ("stems=2", ["vocals", "accompaniment"], False),
        ("stem_names=[drums,bass]", ["drums", "bass"], True),
    ],
)
def test_stems_can_be_sums_and_parts_of_the_columns(train, stems, names, rest):
    done = train(stems, "trainer.max_steps=1")
    assert done.code == 0, done.output
    model = model_file.load(RUN / "model.safetensors")
    assert list(model.stems) == names
    # Stems that are not all of the mixture must leave some of it unclaimed.
    assert model.mask.rest is rest


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.cache=null"],
        ["data.storage=decibel"],
        ["augment=remix"],
        ["augment=stretch"],
        ["model=softmax_unet"],
        ["scheduler=cosine"],
        ["optimizer=adamw"],
        ["logger=[csv,tensorboard]"],
        ["trainer.accumulate_grad_batches=2"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1"],
        ["matmul_precision=high"],
        ["trainer.enable_progress_bar=true"],
        ["data.num_workers=2"],
    ],
    ids=" ".join,
)
def test_the_choices_train(train, overrides):
    done = train("trainer.max_steps=2", *overrides)
    assert done.code == 0, done.output
    assert (RUN / "model.safetensors").is_file()


def test_averaged_weights_are_what_is_validated_and_shipped(train):
    """After two steps of a decay of 0.5 the average is neither the last weights nor the first."""
    assert train("trainer.max_steps=3", "trainer.val_check_interval=3", "ema=0.5", "optimizer.lr=0.01").code == 0
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    name = "separator.unets.0.last.weight"
    shipped = model_file.load(RUN / "model.safetensors").unets[0].last.weight
    torch.testing.assert_close(shipped, checkpoint["state_dict"][name])
    assert not torch.equal(shipped, checkpoint["current_model_state"][name])


def test_python_m_train_and_stemwise_train_are_the_same_command(stemwise, songs, tmp_path):
    """The one in a process of its own, as users start it."""
    keys = ["data=csv", f"data.root={songs}", f"data.train={songs}/train.csv", f"data.valid={songs}/valid.csv", *TINY]
    keys.append("trainer.max_steps=2")
    assert stemwise("train", *keys, "hydra.run.dir=one").code == 0
    command = [sys.executable, "-m", "train", *keys, "hydra.run.dir=two"]
    subprocess.run(command, check=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    one, two = (model_file.read(tmp_path / name / "model.safetensors")[1] for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_two_devices_start_from_the_console_script_too(songs, tmp_path):
    """Lightning starts the second process itself, from what it finds in sys.argv."""
    keys = ["data=csv", f"data.root={songs}", f"data.train={songs}/train.csv", f"data.valid={songs}/train.csv", *TINY]
    script = Path(sys.executable).with_name("stemwise")
    arguments = [*keys, "hydra.run.dir=run", "trainer.max_steps=2", "trainer.devices=2", "data.batch_size=2"]
    subprocess.run([script, "train", *arguments], check=True, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=300)
    assert (tmp_path / "run/model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["run"]


def test_a_sweep_makes_a_folder_per_run(train):
    done = train("hydra.mode=MULTIRUN", "seed=0,1", "trainer.max_steps=1", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.output
    assert sorted(path.parent.name for path in Path("sweep").rglob("model.safetensors")) == ["0", "1"]


def bad(overrides: list[str], *expected: str) -> object:
    return pytest.param(overrides, expected, id=" ".join(overrides)[:60])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        bad(["stems=3"], "stems=3", "1, 2, 4, 5", "stem_names=["),
        bad(["data.batch_sise=4"], "data.batch_sise", "not in struct"),
        bad(["batch=4"], "batch"),
        bad(["trainer.max_stepz=4"], "max_stepz"),
        bad(["data=musdb"], "musdb", "musdb18"),
        bad(["stems=5"], "piano_path", "stem_names=[vocals,drums,bass,other]"),
        bad(["data.train=none.csv"], "none.csv", "no such index CSV"),
        bad(["data.valid=null"], "data.valid", "Set data.valid=PATH.csv"),
        bad(["data.root=nowhere"], "nowhere", "Set data.root"),
        bad(["data.batch_size=0"], "data.batch_size=0"),
        bad(["data.batch_size=many"], "batch_size"),
        bad(["data.storage=mp3"], "data.storage='mp3'", "half, complex, decibel"),
        bad(["spectrogram.bins=3000"], "spectrogram.bins=3000", "n_fft/2+1"),
        bad(["spectrogram.frames=20"], "spectrogram.frames=20", "multiple of 8"),
        bad(["init_from=none.safetensors"], "none.safetensors", "no such model file"),
        bad(["ckpt_path=none.ckpt"], "none.ckpt", "no checkpoint"),
        bad(["augment=remix", "data.storage=half"], "data.storage=complex"),
        bad(["trainer.precision=3"], "precision"),
        bad(["seed=-1"], "seed=-1"),
        bad(["seed=abc"], "seed=abc"),
        bad(["ema=2"], "ema=2", "0.999"),
        bad(["media.every=0"], "media.every=0", "from 1 on"),
        bad(["media.songs=null"], "media.songs=None", "from 0 on"),
        bad(["media.seconds=0"], "media.seconds=0", "up to 60"),
        bad(["optimizer.lr=abc"], "optimizer"),
        bad(["optimizer.lr=-1"], "optimizer"),
        bad(["stem_names=vocals"], "stem_names=vocals is not a list of names"),
        bad(["stem_names=[1,2]"], "is not a list of names"),
        bad(["+stem_sums.rhythm=3", "stem_names=[rhythm,vocals]"], "stem_sums.rhythm=3"),
        bad(["+stem_sums.rhythm=[]", "stem_names=[rhythm,vocals]"], "stem_sums.rhythm=[]"),
        bad(["+stem_sums.rhythm=[drums,drums]", "stem_names=[rhythm]"], "has no column, or one twice"),
        bad(["+stem_sums.a=rest", "+stem_sums.b=rest", "stem_names=[a,b,vocals]"], "a and b are both 'rest'"),
        bad(["+stem_sums.mean=[drums]", "stem_names=[mean,vocals]"], "'mean' is no name for a stem"),
        bad(["+stem_sums={../x: [drums]}", "stem_names=[../x,vocals]"], "no slashes"),
        bad(["model.mask.rest=abc"], "mask.rest='abc'"),
        bad(["model.unet.filters=5"], "unet.filters=5 is not a list"),
        bad(["init_from=5"], "init_from=5 is not a path"),
        bad(["trainer.accelerator=abacus"], "abacus"),
        bad(["compile=fast"], "compile=fast is not one of default, reduce-overhead"),
        bad(["compile=true"], "compile=True is not one of default"),
        bad(["compile=max-autotune", "trainer.accumulate_grad_batches=2"], "CUDA graphs", "Set compile=default"),
        bad(["matmul_precision=32"], "matmul_precision=32 is not one of highest, high, medium"),
        pytest.param(
            ["trainer=gpu", "trainer.accelerator=gpu"],
            ("trainer.accelerator=gpu: PyTorch", "nvidia-smi", "trainer=default"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(train, overrides, expected):
    done = train(*overrides)
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    for part in expected:
        assert part in done.output


def test_piano_on_musdb18_is_refused(stemwise, shared_data):
    done = stemwise("train", "stems=5", "data=musdb18", f"data.root={shared_data}/musdb18-7s", "logger=csv")
    assert done.code == 2
    assert "piano_path" in done.output
    assert "Traceback" not in done.output


def test_a_cache_that_cannot_be_written_is_refused(train, tmp_path):
    (tmp_path / "file").touch()
    done = train("data.cache=file/cache")
    assert done.code == 2
    assert "data.cache=file/cache" in done.output
    assert "Traceback" not in done.output


def test_a_disk_that_is_too_full_is_refused(train, monkeypatch):
    import shutil

    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    done = train()
    assert done.code == 2
    assert "are free" in done.output
    assert "Traceback" not in done.output


def broken_song(songs: Path, root: Path) -> Path:
    """The songs again, and among them a FLAC that breaks off in the middle after a good header and end."""
    for split in ("train", "valid"):
        (root / f"{split}.csv").write_text((songs / f"{split}.csv").read_text().replace("Song ", f"{songs}/Song "))
    noise = 0.1 * torch.randn(16000, 2).numpy()
    soundfile.write(root / "bad.flac", noise, 8000)
    data = bytearray((root / "bad.flac").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    (root / "bad.flac").write_bytes(data)
    with (root / "train.csv").open("a") as file:
        file.write(",".join(["bad.flac"] * 4) + "\n")
    return root


def test_a_song_that_breaks_while_caching_stops_or_is_skipped_by_name(train, songs, tmp_path):
    root = broken_song(songs, tmp_path)
    keys = [f"data.root={root}", f"data.train={root}/train.csv", f"data.valid={root}/valid.csv"]
    done = train(*keys)
    assert done.code == 2
    assert "bad.flac" in done.output
    assert "on_error=skip" in done.output
    assert "Traceback" not in done.output
    done = train(*keys, "data.on_error=skip", "trainer.max_steps=1")
    assert done.code == 0, done.output
    assert "1 of 5 songs left out, broken: bad" in done.output


def test_a_file_that_breaks_in_the_middle_of_training_is_one_message(train, songs, tmp_path):
    """Without a cache, a loader's worker is the first to decode it."""
    root = broken_song(songs, tmp_path)
    keys = [f"data.root={root}", f"data.train={root}/train.csv", f"data.valid={root}/valid.csv"]
    done = train(*keys, "data.cache=null", "data.num_workers=1", "trainer.max_steps=20")
    assert done.code == 2, done.output
    assert "bad.flac" in done.output
    assert "Traceback" not in done.output


def test_songs_shorter_than_an_example_are_padded_and_said_so_once(train):
    done = train("spectrogram.frames=256", "trainer.max_steps=1")
    assert done.code == 0, done.output
    assert done.output.count("shorter than an example") == 1


def test_it_learns(train):
    """Pure tones at frequencies of their own are an easy task: far above the unprocessed mixture."""
    done = train("trainer.max_steps=120", "optimizer.lr=0.01", "augment=remix")
    assert done.code == 0, done.output
    found = losses()
    assert sum(found[-10:]) < 0.5 * sum(found[:10])
    facts = model_file.read(RUN / "model.safetensors")[1]
    # Four equal tones: the mixture itself is at -4.8 dB.
    assert facts["sdr"]["mean"] > 1.0
    assert json.dumps(facts)


def test_examples_fit_the_network(train):
    found = train("data.frames=20")
    assert found.code == 2
    assert "data.frames=20 is not a multiple of 8" in found.output
    assert "Take 16." in found.output
    assert train("data.frames=8", "spectrogram.frames=32").code == 0
    assert model_file.load(RUN / "model.safetensors").spectrogram.frames == 32
