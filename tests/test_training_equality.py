"""Every fast way to train against the plain one: the same gradients, and the same losses for 100 steps from one seed.

The plain way is written out here: contiguous float32, a loop over the stems, a function of torch per layer, Adam tensor
by tensor. It shares the names of the weights with the model and nothing else. Tolerances are ten to fifty times what
was measured. Axes: B batch, S stem, C channel, T frame, F bin.
"""

import copy
from collections.abc import Iterable
from functools import partial

import lightning
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stemwise import optimizers
from stemwise.masks import MaskRule
from stemwise.running.callbacks import EMA
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.training import SeparatorTraining
from stemwise.unet import UNetSettings

STEPS = 100
RATE = 3e-4
FRAMES, BINS = 16, 64
ACTIVATIONS = {"leaky_relu": partial(functional.leaky_relu, negative_slope=0.2), "elu": functional.elu}
ACTIVATIONS["relu"] = functional.relu

# Both of Spleeter's networks, and both ways to normalise.
CASES = [("sigmoid", "leaky_relu", "relu", "batch"), ("softmax", "elu", "elu", "stored")]


def separator(output: str = "sigmoid", encoder: str = "leaky_relu", decoder: str = "relu") -> Separator:
    """Three stems, stereo, no dropout: its draws are each implementation's own."""
    torch.manual_seed(0)
    settings = Spectrogram(sample_rate=8000, channels=2, n_fft=256, hop=64, bins=BINS, frames=FRAMES)
    unet = UNetSettings((4, 6, 8, 136), encoder, decoder, dropout=0.0)
    model = Separator(["vocals", "drums", "other"], settings, unet, MaskRule(), output)
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        for tensor, mean in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
            with torch.no_grad():
                tensor.copy_(mean + 0.2 * torch.rand_like(tensor))
    return model


def batches(count: int, size: int = 2) -> list[dict[str, Tensor]]:
    """Mixtures (B, C, T, F), and stems (B, S, C, T, F) that a network can learn: a band of the bins each."""
    torch.manual_seed(1)
    bands = torch.stack([((torch.arange(BINS) * 3 // BINS) == stem).float() for stem in range(3)])
    mixtures = [torch.rand(size, 2, FRAMES, BINS) * torch.linspace(2, 0.1, BINS) for _ in range(count)]
    return [{"mixture": x, "stems": x.unsqueeze(1) * bands[:, None, None]} for x in mixtures]


Weights = dict[str, Tensor]


def plain_losses(weights: Weights, model: Separator, batch: dict[str, Tensor], normalization: str) -> Tensor:
    """Loss of each stem (S,), step by step; moves the statistics in `weights` if it normalises by the batch."""
    stems = range(len(model.stems))
    values = [plain_unet(weights, f"unets.{stem}", model.unet, batch["mixture"], normalization) for stem in stems]
    if model.output == "softmax":
        whole = sum(value.exp() for value in values)
        shares = [value.exp() / whole for value in values]
    else:
        shares = [1 / (1 + (-value).exp()) for value in values]
    errors = [(shares[s] * batch["mixture"] - batch["stems"][:, s]).abs() for s in stems]
    return torch.stack([error.mean() for error in errors])


def plain_unet(weights: Weights, name: str, settings: UNetSettings, x: Tensor, normalization: str) -> Tensor:
    depth = len(settings.filters)
    encode, decode = ACTIVATIONS[settings.encoder_activation], ACTIVATIONS[settings.decoder_activation]
    norm = partial(plain_norm, weights, training=normalization == "batch")
    of = partial(layer, weights)
    skips = []
    for i in range(depth):
        x = functional.conv2d(functional.pad(x, (1, 2, 1, 2)), *of(f"{name}.encoder.{i}"), stride=2)
        skips.append(x)
        if i < depth - 1:
            x = encode(norm(f"{name}.encoder_norms.{i}", x))
    for i in range(depth):
        x = functional.conv_transpose2d(x, *of(f"{name}.decoder.{i}.convolution"), stride=2)[..., 1:-2, 1:-2]
        x = norm(f"{name}.decoder.{i}.norm", decode(x))
        if i < depth - 1:
            x = torch.cat([skips[depth - 2 - i], x], dim=1)
    return functional.conv2d(x, *of(f"{name}.last"), padding=3, dilation=2)


def layer(weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"].contiguous(), weights[f"{name}.bias"]


def plain_norm(weights: Weights, name: str, x: Tensor, training: bool) -> Tensor:
    statistics = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    affine = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return functional.batch_norm(x, *statistics, *affine, training=training, momentum=0.01, eps=1e-3)


def copied(model: Separator) -> Weights:
    """The model's weights and statistics on their own; weights can have gradients."""
    trained = {name for name, _ in model.named_parameters()}
    state = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    return {name: value.requires_grad_(name in trained) for name, value in state.items()}


def plain_curve(model: Separator, examples: Iterable[dict[str, Tensor]], normalization: str) -> list[float]:
    weights = copied(model)
    adam = torch.optim.Adam([w for w in weights.values() if w.requires_grad], lr=RATE, foreach=False, fused=False)
    found = []
    for batch in examples:
        adam.zero_grad()
        loss = plain_losses(weights, model, batch, normalization).sum()
        loss.backward()
        adam.step()
        found.append(loss.item())
    return found


class Listener(lightning.Callback):
    """Keeps the losses of a training, and the gradients of its first step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: Weights = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not self.gradients:
            named = pl_module.separator.named_parameters()
            self.gradients = {name: weight.grad.detach().clone() for name, weight in named}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def trained(
    model: Separator,
    examples: list[dict[str, Tensor]],
    normalization: str = "batch",
    optimizer=optimizers.adam,
    compile: str | None = None,
    callbacks: Iterable[lightning.Callback] = (),
    **options: object,
) -> tuple[Listener, SeparatorTraining]:
    """Trains a copy of `model` with Lightning; a step per example unless `options` of the Trainer say otherwise."""
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0, total_iters=0)
    module = SeparatorTraining(
        copy.deepcopy(model), partial(optimizer, lr=RATE), constant, {}, normalization, compile
    ).train()
    listener = Listener()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    given = {"accelerator": "cpu", "max_epochs": 1, "callbacks": [listener, *callbacks], **quiet, **options}
    trainer = lightning.Trainer(**given)
    trainer.fit(module, torch.utils.data.DataLoader(examples, batch_size=None))
    return listener, module


def distance(found: Iterable[float], expected: Iterable[float]) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def length(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())


def as_type(batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in batch.items()}


@pytest.mark.parametrize(("dtype", "each", "together"), [(torch.float64, 1e-10, 1e-11), (torch.float32, 1e-3, 1e-5)])
@pytest.mark.parametrize(("output", "encoder", "decoder", "normalization"), CASES)
def test_gradients_are_the_plain_ones(output, encoder, decoder, normalization, dtype, each, together):
    """To a part of each weight's gradient (float32: some are sums of what nearly cancels), and of all of them."""
    model, batch = separator(output, encoder, decoder).to(dtype), as_type(batches(1)[0], dtype)
    weights = copied(model)
    plain_losses(weights, model, batch, normalization).sum().backward()
    expected = {name: weight.grad for name, weight in weights.items() if weight.requires_grad}
    listener, module = trained(model, [batch], normalization, precision="64-true" if dtype.itemsize == 8 else "32-true")
    off = {name: listener.gradients[name] - gradient for name, gradient in expected.items()}
    for name, difference in off.items():
        assert difference.norm() < each * expected[name].norm(), name
    assert length(off.values()) < together * length(expected.values())
    for name, value in module.separator.named_buffers():
        if "running" in name:
            torch.testing.assert_close(value, weights[name], rtol=together, atol=together)


@pytest.mark.parametrize(("output", "encoder", "decoder", "normalization"), CASES)
def test_a_hundred_steps_have_the_plain_losses(output, encoder, decoder, normalization):
    model, examples = separator(output, encoder, decoder), batches(STEPS)
    expected = plain_curve(model, examples, normalization)
    found = trained(model, examples, normalization)[0].losses
    assert distance(found, expected) < 1e-5
    assert sum(expected[-10:]) < 0.9 * sum(expected[:10])  # and they are a curve


def test_numbers_that_are_flushed_to_zero_do_not_show():
    """Where there are some: of the mixtures' values most are below float32's full precision."""
    model, examples = separator(), batches(STEPS)
    for batch in examples:
        faint = torch.rand_like(batch["mixture"]) < 0.6
        batch["mixture"][faint] *= 1e-39
        batch["stems"][faint.unsqueeze(1).expand_as(batch["stems"])] *= 1e-39
    expected = trained(model, examples)[0].losses
    torch.set_flush_denormal(True)  # as process.prepare does
    try:
        assert int((examples[0]["mixture"] * 1.0).count_nonzero()) < int(examples[0]["mixture"].numel() * 0.6)
        found = trained(model, examples)[0].losses
    finally:
        torch.set_flush_denormal(False)
    assert distance(found, expected) < 1e-5


def test_bfloat16_has_nearly_the_losses_of_float32():
    model, examples = separator(), batches(STEPS)
    expected = trained(model, examples)[0].losses
    found = trained(model, examples, precision="bf16-mixed")[0].losses
    assert 1e-6 < distance(found, expected) < 0.01


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_fused_optimizer_steps_as_the_plain_one(name):
    model, examples = separator(), batches(STEPS)
    plain = partial(getattr(torch.optim, name), foreach=False, fused=False)
    expected, slow = trained(model, examples, optimizer=plain)
    found, fast = trained(model, examples, optimizer=getattr(optimizers, name.lower()))
    assert distance(found.losses, expected.losses) < 1e-5
    # Parts of the longest way that a weight can go.
    for (name, one), other in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert (one - other).norm() < 1e-4 * RATE * STEPS * one.numel() ** 0.5, (
            name
        )  # parts of the longest way there is


def test_two_batches_accumulated_are_one_of_twice_the_size():
    """By stored statistics: a batch of two is normalised otherwise than one of four."""
    model, examples = separator(), batches(2, size=4)
    halves = [{key: value[part] for key, value in b.items()} for b in examples for part in (slice(2), slice(2, 4))]
    one, whole = trained(model, examples, "stored")
    two, parts = trained(model, halves, "stored", accumulate_grad_batches=2)
    off = [two.gradients[name] - gradient for name, gradient in one.gradients.items()]
    assert length(off) < 1e-5 * length(one.gradients.values())
    assert parts.trainer.global_step == whole.trainer.global_step == 2
    sums = [sum(two.losses[i : i + 2]) for i in (0, 2)]  # Lightning divides each by two
    assert sums == pytest.approx(one.losses, rel=1e-5)


def test_the_average_of_all_weights_at_once_is_that_of_each():
    """avg = decay · avg + (1 - decay) · weight after each step but the first, and so for the statistics."""

    class Kept(lightning.Callback):
        states: list[Weights] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    _, module = trained(separator(), batches(5), callbacks=[kept := Kept(), EMA(decay=0.8)])
    for name, value in module.state_dict().items():
        expected = kept.states[0][name].double()
        for state in kept.states[1:]:
            expected = 0.8 * expected + 0.2 * state[name]
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("output", "encoder", "decoder", "normalization"), CASES)
def test_compiled_training_has_the_losses_of_training(output, encoder, decoder, normalization, caplog):
    caplog.set_level("INFO", "stemwise.compilation")
    model, examples = separator(output, encoder, decoder), batches(STEPS)
    expected, plain = trained(model, examples, normalization, callbacks=[EMA(decay=0.8)])
    found, fast = trained(model, examples, normalization, compile="reduce-overhead", callbacks=[EMA(decay=0.8)])
    assert distance(found.losses, expected.losses) < 1e-5
    off = [found.gradients[name] - gradient for name, gradient in expected.gradients.items()]
    assert length(off) < 1e-5 * length(expected.gradients.values())
    assert fast.state_dict().keys() == plain.state_dict().keys()
    song = torch.randn(2, 5000)
    torch.testing.assert_close(fast.separator.separate(song), plain.separator.separate(song), rtol=1e-3, atol=1e-4)
    said = [record.getMessage() for record in caplog.records if record.name == "stemwise.compilation"]
    assert [line.split()[0] for line in said] == ["compile=reduce-overhead:", "The"]
