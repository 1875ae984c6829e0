"""Separators that begin with other kernels than Keras's, which a training is given as `model._target_`."""

from typing import Any

from torch import nn

from stemwise.separator import Separator


def separator(draw: str, **settings: Any) -> Separator:
    """A separator whose kernels the function `draw` of `torch.nn.init` has drawn, such as `xavier_uniform_`."""
    model = Separator(**settings)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            getattr(nn.init, draw)(layer.weight)
    return model
