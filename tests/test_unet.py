import math

import pytest
import torch
from torch.nn import functional

from stemwise.errors import UserError
from stemwise.unet import UNet, UNetSettings, _Down, _Up

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
    down, up = _Down(2, 3).double(), _Up(3, 2, "relu", 0.0).convolution.double()
    torch.nn.init.zeros_(down.bias)
    torch.nn.init.zeros_(up.bias)
    up.weight.data = down.weight.data
    x, y = torch.randn(1, 2, 64, 64).double(), torch.randn(1, 3, 32, 32).double()
    upped = up(y)[..., :-1, :-1]
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
        out = up.norm(functional.relu(up.convolution(merged)[..., :-1, :-1]))
        merged = torch.cat([raw[4 - layer], out], dim=1) if layer < 5 else out
    torch.testing.assert_close(unet(x), unet.last(merged))


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
