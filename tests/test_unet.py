import math

import pytest
import torch
from torch.nn import functional

from stemwise import unet as module
from stemwise.errors import UserError
from stemwise.unet import UNet, UNetSettings, _Down, _Dropout, _Transposed

TINY = UNetSettings(filters=(3, 4, 5, 6, 7, 8))


def same_convolution(image: torch.Tensor, kernel: torch.Tensor, stride: int, dilation: int) -> torch.Tensor:
    """TensorFlow's `same`: ceil(n / stride) outputs, the padding shared out with the odd one at the end."""
    reach = (kernel.shape[-1] - 1) * dilation + 1
    pads = []
    for size in (image.shape[-1], image.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(image, pads), kernel, stride=stride, dilation=dilation)


def test_down_pads_as_tensorflow():
    image = torch.randn(1, 2, 64, 128)
    down = _Down(2, 3)
    torch.nn.init.zeros_(down.bias)
    torch.testing.assert_close(down(image), same_convolution(image, down.weight, 2, 1))


def test_up_is_the_transpose_of_down():
    """<down(x), y> = <x, up(y)> for the same kernel, whatever x and y: same padding at both ends."""
    down, up = _Down(2, 3).double(), _Transposed(3, 2).double()
    torch.nn.init.zeros_(down.bias)
    torch.nn.init.zeros_(up.bias)
    up.weight.data = down.weight.data
    x, y = torch.randn(1, 2, 64, 64).double(), torch.randn(1, 3, 32, 32).double()
    upped = up(y)
    assert upped.shape == x.shape
    torch.testing.assert_close((down(x) * y).sum(), (x * upped).sum())


def test_the_last_layer_pads_as_tensorflow():
    unet = UNet(2, TINY)
    torch.nn.init.zeros_(unet.last.bias)
    image = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(unet.last(image), same_convolution(image, unet.last.weight, 1, 2))


def test_the_forward_pass_is_spleeters():
    """Written out once more, layer by layer, from spleeter.model.functions.unet."""
    unet = UNet(2, TINY).eval()
    for norm in [m for m in unet.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = torch.rand(1, 2, 64, 128)
    raw, activated = [], x
    for layer in range(6):
        raw.append(unet.encoder[layer](activated))
        if layer < 5:  # the sixth is handed on raw
            activated = functional.leaky_relu(unet.encoder_norms[layer](raw[layer]), 0.2)
    merged = raw[5]
    for layer in range(6):
        up = unet.decoder[layer]
        out = up.norm(functional.relu(up.convolution(merged)))
        merged = torch.cat([raw[4 - layer], out], dim=1) if layer < 5 else out
    torch.testing.assert_close(unet(x), unet.last(merged))


@pytest.mark.parametrize("channels", [(3, 2), (1, 4), (module.REARRANGED_UP_TO + 1, 2)])
def test_a_transposed_convolution_may_be_written_as_a_convolution(channels):
    """torch's own, of which one row is cropped before (padding) and two after, forwards and backwards."""
    up = _Transposed(*channels).double()
    x = torch.randn(2, channels[0], 5, 7, dtype=torch.double, requires_grad=True)
    plain = functional.conv_transpose2d(x, up.weight, up.bias, stride=2)[..., 1:-2, 1:-2]
    assert up(x).shape == plain.shape == (2, channels[1], 10, 14)
    torch.testing.assert_close(up(x), plain)
    weights = torch.randn_like(plain)
    inputs = (x, up.weight, up.bias)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((up(x) * weights).sum(), inputs), expected)


@pytest.mark.parametrize("channels", [2, 7])
def test_gradients_do_not_depend_on_how_they_lie_in_memory(channels, monkeypatch):
    unet = UNet(channels, TINY).double()
    x = torch.rand(2, channels, 64, 128, dtype=torch.double).contiguous(memory_format=torch.channels_last)

    def gradients():
        torch.manual_seed(0)  # of dropout
        return torch.autograd.grad(unet(x).square().sum(), list(unet.parameters()))

    made = gradients()
    monkeypatch.setattr(module, "_with_dense_gradient", lambda x: x)
    torch.testing.assert_close(made, gradients())


def test_gradients_of_a_concatenation_arrive_dense():
    seen = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, gradient):
            seen.append(gradient.is_contiguous(memory_format=torch.channels_last))
            return gradient

    x = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    for dense in (lambda x: x, module._with_dense_gradient):
        torch.cat([torch.zeros(2, 2, 4, 5), dense(Seen.apply(x))], dim=1).square().sum().backward()
    assert seen == [False, True]
    torch.testing.assert_close(x.grad, 4 * x.detach())


def test_the_last_layer_computes_in_float32_under_autocast():
    unet, x = UNet(2, TINY).eval(), torch.rand(1, 2, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = unet(x)
    assert found.dtype == torch.float32
    assert 0 < (found - unet(x)).abs().max() < 0.1 * unet(x).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lowered_network_is_nearly_the_same(dtype):
    unet, x = UNet(2, TINY).eval(), torch.rand(1, 2, 64, 64)
    expected = unet(x)
    unet.lower(dtype)
    assert unet.encoder[0].weight.dtype == unet.decoder[0].convolution.weight.dtype == dtype
    assert unet(x).dtype == unet.last.weight.dtype == torch.float32
    assert 0 < (unet(x) - expected).abs().max() < 0.1 * expected.abs().max()


def test_dropout_of_nearly_all_is_finite():
    assert _Dropout(1 - 1e-7).train()(torch.ones(1000)).isfinite().all()


@pytest.mark.parametrize("p", [0.5, 0.1, 0.9])
def test_dropout_leaves_out_a_share_and_scales_the_rest(p):
    layer = _Dropout(p).train()
    x = torch.ones(4, 16, 64, 33).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.manual_seed(1)
    out = layer(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    lost = out == 0
    assert lost.float().mean() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / x.numel()))
    # Each of the four pieces of a random number is as likely to be above the threshold as the others.
    in_memory = lost.permute(0, 2, 3, 1).flatten().float()
    for piece in range(4):
        assert in_memory[piece::4].mean() == pytest.approx(p, abs=10 * math.sqrt(p * (1 - p) / x.numel()))
    torch.testing.assert_close(out[~lost], torch.full_like(out[~lost], 1 / (1 - p)), rtol=2**-13, atol=0)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, out.detach())
    torch.manual_seed(1)
    assert torch.equal(layer(x), out)
    assert not torch.equal(layer(x), out)
    assert torch.equal(layer.eval()(x), x)


def test_dropout_is_on_the_first_three_decoder_layers():
    assert [up.dropout.p for up in UNet(2, UNetSettings()).decoder] == [0.5, 0.5, 0.5, 0, 0, 0]


def test_normalisation_has_kerass_constants():
    norms = [m for m in UNet(2, TINY).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    # Twelve in Spleeter, whose sixth has no effect.
    assert len(norms) == 11
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_kernels_start_he_uniform_with_kerass_fans():
    unet = UNet(2, UNetSettings(filters=(16, 32)))
    encoder, decoder = unet.encoder[1].weight, unet.decoder[0].convolution.weight
    assert float(encoder.abs().max()) == pytest.approx(math.sqrt(6 / (25 * 16)), rel=0.01)
    # Keras takes the output channels of a transposed kernel for its fan-in.
    assert float(decoder.abs().max()) == pytest.approx(math.sqrt(6 / (25 * 16)), rel=0.01)
    assert not unet.encoder[1].bias.any()


def test_full_size_has_spleeters_weight_count():
    """Counted layer by layer: kernels, biases, and eleven normalisations."""
    with torch.device("meta"):
        trained = sum(p.numel() for p in UNet(2, UNetSettings()).parameters())
    convolutions = 25 * (2 * 16 + 16 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
    transposed = 25 * (512 * 256 + 512 * 128 + 256 * 64 + 128 * 32 + 64 * 16 + 32 * 1)
    biases = (16 + 32 + 64 + 128 + 256 + 512) + (256 + 128 + 64 + 32 + 16 + 1)
    norms = 2 * (16 + 32 + 64 + 128 + 256) + 2 * (256 + 128 + 64 + 32 + 16 + 1)
    assert trained == convolutions + transposed + biases + norms + (16 * 2 + 2)


@pytest.mark.parametrize("filters", [(4, 8), (4, 8, 8, 8), (2, 2, 2, 2, 2, 2, 2)])
def test_depth_is_a_setting(filters):
    settings = UNetSettings(filters=filters)
    size = 2 * settings.stride
    assert UNet(1, settings)(torch.rand(1, 1, size, size)).shape == (1, 1, size, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": []}, "unet.filters="),
        ({"filters": [16, 0]}, "whole numbers above zero"),
        ({"encoder_activation": "gelu"}, "unet.encoder_activation='gelu' is not one of leaky_relu, relu, elu"),
        ({"dropout": 1.0}, r"unet.dropout=1.0 is not in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_work_say_why(arguments, message):
    with pytest.raises(UserError, match=message):
        UNetSettings(**arguments)
