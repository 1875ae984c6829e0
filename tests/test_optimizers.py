import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from stemwise import optimizers


def reference(gradients, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """TensorFlow's documentation of AdamOptimizer, in double precision."""
    weight = first = second = 0.0
    for t, gradient in enumerate(gradients, start=1):
        rate = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        weight = weight - rate * first / (np.sqrt(second) + eps)
    return weight


def stepped(optimizer, weight, gradients):
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return float(weight)


def test_small_gradients_move_weights_as_in_tensorflow():
    gradients = np.random.default_rng(0).standard_normal(50) * 1e-8
    weight = torch.zeros(1, dtype=torch.float64)
    ours = stepped(optimizers.tensorflow_adam([weight], lr=1e-3), weight, gradients)
    np.testing.assert_allclose(ours, reference(gradients), rtol=1e-9)
    torchs = torch.zeros(1, dtype=torch.float64)
    assert abs(stepped(torch.optim.Adam([torchs], lr=1e-3), torchs, gradients) - ours) > 0.1 * abs(ours)


def test_a_resumed_run_goes_on_with_the_step_count():
    gradients = np.random.default_rng(0).standard_normal(20) * 1e-8
    weight = torch.zeros(1, dtype=torch.float64)
    first = optimizers.tensorflow_adam([weight], lr=1e-3)
    stepped(first, weight, gradients[:10])
    second = optimizers.tensorflow_adam([weight], lr=1e-3)
    second.load_state_dict(first.state_dict())
    np.testing.assert_allclose(stepped(second, weight, gradients[10:]), reference(gradients), rtol=1e-9)


@pytest.mark.parametrize("optimizer", [optimizers.adam, optimizers.adamw])
def test_fused_steps_leave_gradients_to_be_clipped(optimizer):
    """Lightning refuses to clip where the optimiser would divide the gradients itself, whatever the precision."""
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.full_like(weight, 10.0)
    fused = optimizer([weight], lr=0.1)
    assert fused.defaults["fused"]
    precision = MixedPrecision("bf16-mixed", "cpu")
    precision._lightning_module = torch.nn.ParameterList([weight])
    precision.main_params = lambda _: [weight]
    precision.clip_gradients(fused, 1.0)
    assert float(weight.grad.norm()) == pytest.approx(1.0, rel=1e-5)


def test_other_arguments_of_torch_go_through():
    group = optimizers.adamw([torch.zeros(1)], lr=0.1, weight_decay=0.5, betas=(0.8, 0.9)).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.5, (0.8, 0.9))


def rates(scheduler, steps):
    """The learning rate of each step."""
    for _ in range(steps):
        yield scheduler.get_last_lr()[0]
        scheduler.optimizer.step()
        scheduler.step()


def test_the_rate_warms_up_and_then_follows_torchs_cosine():
    made = optimizers.warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=0.5), steps=50, warmup=4)
    found = list(rates(made, 55))
    assert found[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=0.5), T_max=46)
    assert found[4:50] == pytest.approx(list(rates(torchs, 46)), abs=1e-9)
    assert found[50:] == [0.0] * 5


def test_a_resumed_schedule_goes_on_where_it_was():
    first = optimizers.warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=0.5), steps=50, warmup=4)
    list(rates(first, 20))
    second = optimizers.warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=0.5), steps=50, warmup=4)
    second.load_state_dict(first.state_dict())
    assert list(rates(second, 10))[1:] == list(rates(first, 10))[1:]


@pytest.mark.parametrize("warmup", [50, -1, 0.5, True])
def test_a_warm_up_is_a_number_of_steps_of_the_run(warmup):
    with pytest.raises(ValueError, match=r"warmup=.* below steps=50"):
        optimizers.warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=0.5), steps=50, warmup=warmup)
