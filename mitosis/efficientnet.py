"""The first stages of EfficientNet-Lite0, which may begin with weights that were learned on ImageNet.

A second stage sees some hundreds of figures. What edges, textures and round things look like it need not learn from
these: a network that knows millions of photographs tells figures of cases that it has not seen better from what looks
like them than one that knows nothing (README), for half of the multiplications of `mitosis.verifier.Residual`.

References
----------
Tan & Le: EfficientNet, ICML 2019, arXiv 1905.11946; the Lite variants, without squeeze-and-excitation and with ReLU6,
are those of https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
"""

from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from mitosis.errors import ModelError

__all__ = ["N_FEATURES", "EfficientNet", "imagenet_names"]


class _Stage(NamedTuple):
    """Blocks in a row, of which the first changes size and number of channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STEM = 32
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
)
"""Of seven; the others halve the picture once more, to 2 x 2 places of a crop of 64 px."""

N_FEATURES = _STAGES[-1].channels
_EPSILON, _MOMENTUM = 1e-3, 0.01
_LEFT_OUT = 0.1
"""How often the last residual block is left out of a picture's way while it learns; earlier ones less often."""


class _Convolution(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: where it halves, more to the right and below."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(n_in, n_out, kernel, stride=stride, groups=groups, bias=False)
        if stride == 1:
            self.padding = (kernel // 2, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            n = self.kernel_size[0] - self.stride[0]
            x = functional.pad(x, (n // 2, n - n // 2, n // 2, n - n // 2))
        return super().forward(x)


class _Block(nn.Module):
    """Inverted residual: to many channels, each looked at by itself, and to few again."""

    def __init__(self, n_in: int, stage: _Stage, stride: int, left_out: float) -> None:
        super().__init__()
        n_hidden = n_in * stage.expansion
        if stage.expansion > 1:
            self.expand = _Convolution(n_in, n_hidden, 1)
            self.expand_norm = _norm(n_hidden)
        self.depthwise = _Convolution(n_hidden, n_hidden, stage.kernel, stride, n_hidden)
        self.depthwise_norm = _norm(n_hidden)
        self.project = _Convolution(n_hidden, stage.channels, 1)
        self.project_norm = _norm(stage.channels)
        self.residual = stride == 1 and n_in == stage.channels
        self.left_out = StochasticDepth(left_out, "row")

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu6(self.expand_norm(self.expand(x))) if hasattr(self, "expand") else x
        hidden = functional.relu6(self.depthwise_norm(self.depthwise(hidden)))
        changed: Tensor = self.project_norm(self.project(hidden))
        return x + self.left_out(changed) if self.residual else changed


def _norm(n: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(n, eps=_EPSILON, momentum=_MOMENTUM)


class EfficientNet(nn.Module):
    """From images, float32 [B, 3, H, W], 0 for glass and 1 for black, to [B, `N_FEATURES`, H / 16, W / 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, _STEM, 3, stride=2)
        self.stem_norm = _norm(_STEM)
        stages, n_in, n_blocks, number = [], _STEM, sum(stage.blocks for stage in _STAGES), 0
        for stage in _STAGES:
            blocks = []
            for stride in (stage.stride, *[1] * (stage.blocks - 1)):
                blocks.append(_Block(n_in, stage, stride, _LEFT_OUT * number / n_blocks))
                n_in, number = stage.channels, number + 1
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stages(functional.relu6(self.stem_norm(self.stem(images))))
        return maps

    @torch.no_grad()
    def load_imagenet(self, path: Path) -> None:
        """Begin with weights of EfficientNet-Lite0 that were learned on photographs, values from -1 to 1.

        Parameters
        ----------
        path : Path
            A file of safetensors with the names that timm gives them (`tf_efficientnet_lite0`); of its last layers
            nothing is taken.

        Raises
        ------
        ModelError
            It is missing or damaged, or holds another network.
        """
        names = imagenet_names()
        try:
            found = safetensors.torch.load(path.read_bytes())
            self.load_state_dict({**self.state_dict(), **{own: found[name] for own, name in names.items()}})
        except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
            raise ModelError(
                f"{path}: not the weights of EfficientNet-Lite0 as timm names them ({error!r}). Give the file "
                "model.safetensors of its tf_efficientnet_lite0."
            ) from error
        # Of darkness d a photograph has 1 - 2 d.
        self.stem_norm.get_buffer("running_mean").sub_(self.stem.weight.sum(dim=(1, 2, 3)))
        self.stem.weight *= -2


def imagenet_names() -> dict[str, str]:
    """What timm calls each weight of an `EfficientNet`, in the order of its layers."""
    names = dict(zip(_weights("stem"), _timm("conv_stem", "bn1"), strict=True))
    for number, stage in enumerate(_STAGES):
        expands = stage.expansion > 1
        own = ("expand", "depthwise", "project") if expands else ("depthwise", "project")
        theirs = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
        for block in range(stage.blocks):
            for place, (layer, convolution) in enumerate(zip(own, theirs, strict=True), 1):
                of, at = f"stages.{number}.{block}.{layer}", f"blocks.{number}.{block}."
                names |= dict(zip(_weights(of), _timm(at + convolution, f"{at}bn{place}"), strict=True))
    return names


def _weights(layer: str) -> list[str]:
    return _timm(layer, f"{layer}_norm")


def _timm(convolution: str, norm: str) -> list[str]:
    return [f"{convolution}.weight", *(f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))]
