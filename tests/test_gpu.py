"""What only a GPU can show: it trains as the CPU does within its precision, and its models serve the CPU."""

from pathlib import Path

import pytest
import torch

from stemwise import model_file, optimizers
from test_training_equality import STEPS, batches, distance, separator, trained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(autouse=True)
def exact():
    """float32 in float32, as `matmul_precision=highest` sets it, and as it was afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("precision", "matmul", "tolerance"),
    [("32-true", "highest", 1e-3), ("32-true", "high", 0.01), ("bf16-mixed", "high", 0.02), ("16-mixed", "high", 0.01)],
)
def test_a_hundred_steps_have_the_losses_of_the_cpu(precision, matmul, tolerance):
    model, examples = separator(), batches(STEPS)
    expected = trained(model, examples)[0].losses
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = matmul != "highest"
    options = {"accelerator": "gpu", "devices": 1, "precision": precision, "benchmark": True}
    found = trained(model, examples, gradient_clip_val=100.0, **options)[0].losses
    assert distance(found, expected) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_has_the_losses_of_training(mode):
    model, examples = separator(), batches(STEPS)
    options = {"accelerator": "gpu", "devices": 1}
    expected = trained(model, examples, **options)[0].losses
    found = trained(model, examples, compile=mode, **options)[0].losses
    assert distance(found, expected) < 1e-3


def test_accumulation_clipping_and_a_scaler_go_together():
    found, module = trained(
        separator(),
        batches(8),
        optimizer=optimizers.adam,
        accelerator="gpu",
        devices=1,
        precision="16-mixed",
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
    )
    assert module.trainer.global_step == 4
    assert torch.tensor(found.losses).isfinite().all()


def test_separation_is_that_of_the_cpu(small_separator):
    song = torch.randn(1, 8000)
    expected = small_separator.separate(song)
    found = small_separator.cuda().separate(song.cuda()).cpu()
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_a_model_trained_there_separates_anywhere(train):
    done = train("trainer=gpu", "trainer.accelerator=gpu", "trainer.devices=1", "trainer.precision=bf16-mixed")
    assert done.code == 0, done.output
    for path in ("run/model.safetensors", "run/checkpoints/last.ckpt"):
        model = model_file.load(Path(path))
        assert {weight.device.type for weight in model.parameters()} == {"cpu"}
        assert model.separate(torch.randn(1, 4000)).isfinite().all()
    resumed = train("trainer.max_steps=5", "ckpt_path=last")  # on the CPU
    assert resumed.code == 0, resumed.output
