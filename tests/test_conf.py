"""Every file below conf/ composes, and every `_target_` in it can be built from what it says."""

from pathlib import Path

import lightning
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from stemwise import launch, losses
from stemwise.data import StemData
from stemwise.errors import UserError
from stemwise.separator import Separator

CONF = Path(launch.CONF)
OPTIONS = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.rglob("*.yaml") if path.parent != CONF)


def composed(*overrides: str, command: str = "train") -> DictConfig:
    launch.offer_trainer_arguments()
    with initialize_config_dir(launch.CONF, version_base="1.3"):
        cfg = compose(command, overrides=[*overrides], return_hydra_config=True)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra.runtime.output_dir = "run"
    HydraConfig.instance().set_config(cfg)
    return cfg


def override(option: str) -> str:
    group, name = option.split("=")
    return f"{group}=[{name}]" if group == "logger" else option


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(option, tmp_path, monkeypatch):
    if option == "hydra/launcher=slurm":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="stemwise[slurm] is not installed")
    monkeypatch.chdir(tmp_path)
    cfg = composed(override(option))
    OmegaConf.resolve(cfg.data)
    loss = instantiate(cfg.loss, _convert_="all")
    assert losses.from_config(launch.plain(cfg.loss)) == loss
    data = instantiate(cfg.data, _convert_="all", phase=loss.needs_phase)
    assert isinstance(data, StemData)
    settings = launch.plain(cfg.model)
    settings["mask"]["rest"] = False
    with torch.device("meta"):
        model = instantiate(settings, _convert_="all")
    assert isinstance(model, Separator)
    assert model.stems == tuple(cfg.stem_names)
    optimizer = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    instantiate(cfg.scheduler)(optimizer)
    assert cfg.logger
    for logger in cfg.logger.values():
        assert get_method(logger._target_) if "wandb" in logger._target_ else instantiate(logger)
    if cfg.trainer.accelerator == "gpu":
        cfg.trainer.accelerator = "cpu"
    trainer = instantiate(cfg.trainer, _convert_="all", logger=False, enable_progress_bar=False)
    assert isinstance(trainer, lightning.Trainer)


@pytest.mark.parametrize("name", [option for option in OPTIONS if option.startswith("data=")])
def test_every_data_set_serves_evaluation(name):
    cfg = composed(name, "checkpoint=x", command="evaluate")
    model = Separator(**_two_stems())
    own = {"stems": list(model.stems), "spectrogram": model.spectrogram, "sums": {"accompaniment": "rest"}}
    data = instantiate(cfg.data, **own, augment={}, _convert_="all")
    assert data.stems == model.stems


def _two_stems() -> dict:
    from stemwise.masks import MaskRule
    from stemwise.spectrogram import Spectrogram
    from stemwise.unet import UNetSettings

    return {
        "stems": ["vocals", "accompaniment"],
        "spectrogram": Spectrogram(bins=64, frames=64),
        "unet": UNetSettings(filters=(1, 1)),
        "mask": MaskRule(),
    }


@pytest.mark.parametrize(
    ("stems", "names"),
    [
        ("1", ["vocals"]),
        ("2", ["vocals", "accompaniment"]),
        ("4", ["vocals", "drums", "bass", "other"]),
        ("5", ["vocals", "piano", "drums", "bass", "other"]),
    ],
)
def test_stems_chooses_the_set(stems, names):
    assert composed(f"stems={stems}").stem_names == names


def test_stem_names_is_a_set_of_ones_own():
    assert composed("stem_names=[guitar,rest]").stem_names == ["guitar", "rest"]


def test_the_default_recipe_is_spleeters():
    cfg = composed("data=musdb18")
    optimizer = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam  # in one pass; the step is the same
    assert optimizer.param_groups[0]["lr"] == 1e-4
    assert (cfg.data.batch_size, cfg.augment, cfg.ema, cfg.trainer.max_steps) == (4, {}, None, 200_000)
    with torch.device("meta"):
        model = instantiate(launch.plain(cfg.model) | {"mask": None}, _convert_="all")
    assert model.spectrogram == type(model.spectrogram)()
    assert model.unet == type(model.unet)()
    assert model.output == "sigmoid"


def test_every_argument_of_lightnings_trainer_is_a_key():
    cfg = composed("trainer.accumulate_grad_batches=3", "trainer.devices=2", "trainer.strategy=ddp")
    assert (cfg.trainer.accumulate_grad_batches, cfg.trainer.devices, cfg.trainer.strategy) == (3, 2, "ddp")


def test_the_default_trainer_is_exact():
    cfg = composed()
    assert (cfg.matmul_precision, cfg.compile, cfg.trainer.precision, cfg.trainer.benchmark) == (
        "highest",
        None,
        None,
        None,
    )


@pytest.mark.parametrize(("name", "matmul"), [("gpu", "high"), ("ddp", "high"), ("cpu_bf16", "highest")])
def test_a_device_has_a_trainer_of_its_own_that_keys_still_change(name, matmul):
    cfg = composed(f"trainer={name}")
    assert (cfg.matmul_precision, cfg.compile, cfg.trainer.precision) == (matmul, None, "bf16-mixed")
    assert (cfg.trainer.accelerator, cfg.trainer.devices) == ("cpu" if name == "cpu_bf16" else "gpu", "auto")
    assert cfg.trainer.max_steps == 200_000
    assert cfg.trainer.strategy == ("ddp" if name == "ddp" else "auto")
    other = composed(f"trainer={name}", "compile=max-autotune", "trainer.precision=16-mixed", "trainer.devices=2")
    assert (other.compile, other.trainer.precision, other.trainer.devices) == ("max-autotune", "16-mixed", 2)
    assert composed(f"trainer={name}", "experiment=demo").trainer.max_steps == 300


def test_several_loggers_at_once():
    assert set(composed("logger=[csv,tensorboard]").logger) == {"csv", "tensorboard"}
    assert set(composed("logger=csv").logger) == {"csv"}


def test_mir1k_brings_its_own_rate_and_stems():
    cfg = composed("data=mir1k")
    assert cfg.stem_names == ["vocals", "accompaniment"]
    assert (cfg.spectrogram.sample_rate, cfg.spectrogram.channels) == (16000, 1)
    assert composed("data=mir1k", "spectrogram.frames=64").spectrogram.frames == 64


def test_musdb18_reads_its_root_from_the_environment(monkeypatch):
    monkeypatch.setenv("MUSDB18_PATH", "/songs")
    assert composed("data=musdb18").data.root == "/songs"
    monkeypatch.delenv("MUSDB18_PATH")
    data = instantiate(composed("data=musdb18").data, _convert_="all")
    with pytest.raises(UserError, match="MUSDB18_PATH"):
        data.catalogue.checked("train")


def test_values_have_one_home():
    """No file repeats a default of the data module that `data/csv.yaml` sets, or sets a key that nothing reads."""
    import inspect

    arguments = set(inspect.signature(StemData.__init__).parameters) - {"self", "phase"}  # the loss says
    assert set(composed().data) - {"_target_"} == arguments
