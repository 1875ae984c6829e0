"""Spleeter's training configurations as ours: what comes out composes, and says the same."""

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from stemwise import launch
from stemwise.data import StemData
from stemwise.errors import UserError
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import config as configuration
from stemwise.spleeter import recipe

# Of Spleeter's own configurations for MUSDB18.
MUSDB = {
    **configuration.RELEASED["4stems"],
    "train_csv": "configs/musdb_train.csv",
    "validation_csv": "configs/musdb_validation.csv",
    "model_dir": "musdb_model",
    "n_chunks_per_song": 1,
    "train_max_steps": 100_000,
}


def written(folder: Path, **changed: object) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps(MUSDB | changed), encoding="utf-8")
    return path


def composed(*overrides: str) -> DictConfig:
    launch.offer_trainer_arguments()
    with initialize_config_dir(launch.CONF, version_base="1.3"):
        return compose("train", overrides=[*overrides], return_hydra_config=True)


def both_ways(given: Path | str, folder: Path) -> list[DictConfig]:
    """What the command line and what the experiment file compose to."""
    translated = recipe.translate(given)
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / "mine.yaml").write_text(recipe.experiment(translated, "mine"), encoding="utf-8")
    return [
        composed(*recipe.overrides(translated)),
        composed("experiment=mine", f"hydra.searchpath=[file://{folder}]"),
    ]


def model_of(cfg: DictConfig) -> Separator:
    with torch.device("meta"):
        return instantiate(launch.plain(cfg.model), _convert_="all")


@pytest.mark.parametrize("name", ["2stems", "4stems", "5stems-16kHz"])
def test_the_released_configurations_train_the_same_models(name, tmp_path):
    wanted = configuration.load(name)
    for cfg in both_ways(name, tmp_path):
        assert model_of(cfg).settings == wanted.separator().settings
        data = instantiate(cfg.data, _convert_="all")
        assert isinstance(data, StemData)
        assert (data.stems, data.spectrogram, data.augmentations) == (wanted.stems, wanted.spectrogram, [])
        assert (cfg.trainer.max_steps, cfg.seed) == (wanted.raw["train_max_steps"], wanted.raw["random_seed"])


@pytest.mark.parametrize("stems", [2, 4, 5])
def test_the_experiments_are_the_released_configurations_value_for_value(stems):
    """But for paths, which are the user's."""
    own = {"data.train", "data.valid", "data.cache", "hydra.run.dir"}
    translated = recipe.translate(f"{stems}stems")
    wanted = [one for one in recipe.overrides(translated) if one.split("=")[0] not in own]
    cfg, expected = composed(f"experiment=spleeter_{stems}stems"), composed(*wanted)
    parts = [
        {key: value for key, value in OmegaConf.to_container(found).items() if key not in ("hydra", "stems", "logger")}
        for found in (cfg, expected)
    ]
    for part, whole in zip(parts, (cfg, expected), strict=True):
        part["stem_names"] = list(whole.stem_names)
    assert parts[0] == parts[1]


def test_every_key_of_a_training_has_its_place(tmp_path):
    for cfg in both_ways(written(tmp_path, learning_rate=3e-4, batch_size=7, save_summary_steps=11), tmp_path):
        data = cfg.data
        assert (data.train, data.valid) == ("configs/musdb_train.csv", "configs/musdb_validation.csv")
        assert (data.batch_size, data.examples_per_song, data.cache) == (7, 1, "training_cache")
        assert (cfg.trainer.max_steps, cfg.trainer.val_check_interval, cfg.trainer.log_every_n_steps) == (
            100_000,
            300,
            11,
        )
        assert (cfg.seed, cfg.hydra.run.dir) == (3, "musdb_model")
        optimizer = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
        assert (type(optimizer), optimizer.param_groups[0]["lr"]) == (torch.optim.Adam, 3e-4)


def test_what_is_left_out_has_spleeters_default_not_ours(tmp_path):
    path = tmp_path / "small.json"
    needed = ("instrument_list", "separation_exponent", "mask_extension", "model", *configuration.FRAMES)
    path.write_text(json.dumps({key: MUSDB[key] for key in needed}))
    for cfg in both_ways(path, tmp_path):
        assert (cfg.data.batch_size, cfg.data.examples_per_song, cfg.data.cache, cfg.seed) == (8, 2, None, 0)
    assert "set data.train and data.valid" in recipe.command(recipe.translate(path))


def test_unusual_models_are_composed(tmp_path):
    model = {
        "type": "unet.softmax_unet",
        "params": {"conv_n_filters": [4, 6, 8, 8, 8, 8], "deconv_activation": "LeakyReLU"},
    }
    odd = {
        "model": model,
        "F": 512,
        "T": 128,
        "frame_step": 512,
        "mask_extension": "average",
        "separation_exponent": 1.5,
    }
    path = written(tmp_path, **odd, sample_rate=22050, instrument_list=["gui tar", "the rest, [all]", "it's"])
    for cfg in both_ways(path, tmp_path):
        assert model_of(cfg).settings == configuration.load(path).separator().settings
        assert model_of(cfg).spectrogram == Spectrogram(22050, hop=512, bins=512, frames=128)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("SGD", torch.optim.SGD, {"lr": 1e-4}),
        ("Adadelta", torch.optim.Adadelta, {"lr": 1e-3, "rho": 0.95, "eps": 1e-8}),
        ("Nadam", torch.optim.Adam, {"lr": 1e-4}),  # Spleeter takes what it does not know for Adam
    ],
)
def test_optimizers(name, kind, expected, tmp_path):
    for cfg in both_ways(written(tmp_path, optimizer=name), tmp_path):
        optimizer = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
        assert type(optimizer) is kind
        assert {key: optimizer.param_groups[0][key] for key in expected} == expected


def test_one_stem_keeps_our_rule_for_what_it_does_not_claim(tmp_path):
    """With Spleeter's it would be given all of the mixture."""
    one = recipe.translate(written(tmp_path, instrument_list=["vocals"]))
    assert "model.mask.rest" not in one.values
    assert recipe.translate(written(tmp_path)).values["model.mask.rest"] is False


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$"), min_size=1, max_size=12)
TRAPS = (
    st.lists(st.sampled_from(list("\\'\"${}[],:=~@ #null%&*!|>-.tf01e")), min_size=1, max_size=8)
    .map("".join)
    .filter(lambda text: "${" not in text)
)


NASTY = 'it\'s $x} \\{x} \\\\ "a": [1, 2] # {b} null\\'


def test_nasty_texts_are_composed(tmp_path):
    for cfg in both_ways(
        written(tmp_path, train_csv=NASTY, instrument_list=[NASTY.replace("\\", ""), "null"]), tmp_path
    ):
        assert cfg.data.train == NASTY
        assert cfg.stem_names == [NASTY.replace("\\", ""), "null"]


@example(path="A¹", stem="²")
@example(path="0", stem=".0")
@given(path=TEXTS | TRAPS, stem=TRAPS)
@settings(max_examples=100, deadline=None)
def test_any_text_survives_the_shell_hydra_and_yaml(path, stem):
    translated = recipe.Recipe("x", {}, {"data.train": path, "stem_names": [stem, path]}, {})
    overrides = recipe.overrides(translated)
    shell = shlex.split(recipe.command(translated).replace("\\\n", ""), comments=True)
    assert shell == ["python", "-m", "train", *overrides, "data.root=/path/to/songs"]
    train, names = OverridesParser.create().parse_overrides(overrides)
    on_the_line = OmegaConf.create({"data": {"train": train.value()}, "stem_names": names.value()})
    in_a_file = OmegaConf.create(yaml.safe_load(recipe.experiment(translated, "x")))
    for found in (on_the_line, in_a_file):
        assert (found.data.train, found.stem_names) == (path, [stem, path])


def test_what_has_no_counterpart_is_a_remark_with_a_reason(tmp_path):
    path = written(tmp_path, mix_name="the mix", made_up=1, **{"evil\n  key": 2})
    translated = recipe.translate(path)
    for text in (recipe.command(translated), recipe.experiment(translated, "mine")):
        comments = [line for line in text.splitlines() if line.startswith("# ")]
        assert any("throttle_secs: " in line for line in comments)
        assert any("validation_cache: " in line for line in comments)
        assert any("rename the mix_path in both CSVs" in line for line in comments)
        assert "# made_up: not a key that Spleeter knows." in comments
        assert r"# evil\n  key: not a key that Spleeter knows." in comments
    unmentioned = {key for key in MUSDB if key not in translated.remarks} - {"instrument_list", "model"}
    told = " ".join(recipe.overrides(translated))
    for key in unmentioned & {"train_csv", "model_dir"}:
        assert str(MUSDB[key]) in told


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss_type": "weighted_L1_mask"}, "loss_type is 'weighted_L1_mask'"),
        ({"batch_size": "4"}, "batch_size is '4', not a whole number from 1 on"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"random_seed": -1}, "random_seed is -1"),
        ({"train_max_steps": 1e6}, "train_max_steps is 1000000.0"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"train_csv": ["a.csv"]}, "train_csv is .* not a path"),
        ({"T": 100}, "multiple of 64"),
        ({"train_csv": "${oc.env:HOME}/a.csv"}, "would become data.train"),
        ({"instrument_list": ["${seed}"]}, "would become stem_names"),
        ({"model": {"type": "blstm.blstm", "params": {}}}, "blstm"),
    ],
)
def test_what_cannot_be_translated_is_refused(changed, message, tmp_path):
    with pytest.raises(UserError, match=message):
        recipe.translate(written(tmp_path, **changed))


@pytest.mark.parametrize(("name", "model"), [("2stems", "unet"), ("4stems", "unet_elu"), ("5stems", "softmax_unet")])
def test_the_released_networks_have_options_of_their_own(name, model):
    translated = recipe.translate(name)
    assert translated.choices == {"data": "csv", "model": model, "optimizer": "tf_adam"}
    assert [key for key in translated.values if key.startswith("model.unet")] == ["model.unet.dropout"]


def test_another_optimizer_than_adam_is_not_made_adam(tmp_path):
    translated = recipe.translate(written(tmp_path, optimizer="SGD"))
    assert "optimizer" not in translated.choices
    assert translated.values["optimizer._target_"] == "torch.optim.SGD"
