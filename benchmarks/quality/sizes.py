"""What a model's size costs: its weights, and how many seconds of a song it separates in a second of one core."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from quality.questions import Question

from stemwise import launch
from stemwise.separator import Separator

SECONDS = 50.0  # of the song
TIMES = 3


def measured(question: Question, known: Mapping[str, Any]) -> dict[str, Any]:
    """Size and speed of the models of a question that asks for it, by their overrides; `known` are not timed again."""
    if not question.full_size:
        return {}
    models = [(*question.recipe, *extra) for extra in question.variants.values()] + list(question.full_size.values())
    keys = {" ".join(overrides): overrides for overrides in models}
    return {key: known.get(key) or of(overrides) for key, overrides in keys.items()}


def of(overrides: Sequence[str], seconds: float = SECONDS) -> dict[str, Any]:
    """Weights and speed of the model that a training with these overrides makes; its values are random.

    Speed is by CPU time, of one thread, in float32: other work on the machine changes it little.
    """
    model = made(overrides)
    settings = model.spectrogram
    song = torch.randn(settings.channels, round(seconds * settings.sample_rate), generator=torch.Generator())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spent = min(_seconds(model, song) for _ in range(TIMES))
    finally:
        torch.set_num_threads(threads)
    return {"weights": sum(weight.numel() for weight in model.parameters()), "speed": round(seconds / spent, 2)}


def made(overrides: Sequence[str]) -> Separator:
    """The model of a training with these overrides."""
    launch.offer_trainer_arguments()
    with initialize_config_dir(launch.CONF, version_base="1.3"):
        settings = launch.plain(compose("train", overrides=[*overrides, "logger=[]"]).model)
    settings["mask"]["rest"] = False
    return instantiate(settings, _convert_="all").eval()


def _seconds(model: Separator, song: torch.Tensor) -> float:
    start = time.process_time()
    model.separate(song)
    return time.process_time() - start
