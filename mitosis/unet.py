"""The network: a small U-Net whose tiles fit together without a seam."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from mitosis.config import NetworkConfig

__all__ = ["BLOCKS", "UNet"]


def _normalised(n_in: int, n_out: int, side: int = 3, groups: int = 1) -> list[nn.Module]:
    """A convolution, and beside it the normalisation that `mitosis.folding.fold_batch_norm` will make part of it."""
    convolution = nn.Conv2d(n_in, n_out, side, padding=side // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(n_out)]


def _stem(width: int, stem: int) -> list[nn.Module]:
    """The first block where a place of the first level is a square of `stem` px: it sees half a square around it."""
    convolution = nn.Conv2d(3, width, 2 * stem, stride=stem, padding=stem // 2, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _plain(n_in: int, n_out: int, expansion: int) -> list[nn.Module]:  # noqa: ARG001 (signature of BLOCKS)
    return [*_normalised(n_in, n_out), nn.ReLU(inplace=True)]


def _separable(n_in: int, n_out: int, expansion: int) -> list[nn.Module]:  # noqa: ARG001 (signature of BLOCKS)
    depthwise = [*_normalised(n_in, n_in, groups=n_in), nn.ReLU(inplace=True)]
    return [*depthwise, *_normalised(n_in, n_out, side=1), nn.ReLU(inplace=True)]


def _inverted(n_in: int, n_out: int, expansion: int) -> list[nn.Module]:
    return [_InvertedResidual(n_in, n_out, expansion)]


class _InvertedResidual(nn.Module):
    """More channels by a 1x1 convolution, a 3x3 one in each by itself, and few channels again, left linear.

    What came in is added where it has as many channels. The paper takes `expansion` times the channels that come in.
    Here it is times those that go out: after a skip connection three times as many come in, and to expand those at
    full resolution would cost more than plain convolutions do.
    """

    def __init__(self, n_in: int, n_out: int, expansion: int) -> None:
        super().__init__()
        n_hidden = expansion * n_out
        self.adds: bool = n_in == n_out
        self.layers = nn.Sequential(
            *[*_normalised(n_in, n_hidden, side=1), nn.ReLU6(inplace=True)],
            *[*_normalised(n_hidden, n_hidden, groups=n_hidden), nn.ReLU6(inplace=True)],
            *_normalised(n_hidden, n_out, side=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.layers(x)
        return x + changed if self.adds else changed


BLOCKS: dict[str, Callable[[int, int, int], list[nn.Module]]] = {
    "plain": _plain,
    "separable": _separable,
    "inverted": _inverted,
}
"""Ways to look at a pixel's neighbours: (channels in, channels out, expansion) → layers, one 3x3 convolution among them
and none that changes the size of the picture, on which `UNet.radius` relies."""


class _Join(nn.Sequential):
    """The blocks of a level on the way up: they see what comes from below, enlarged twice, and what lies beside it."""

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:  # type: ignore[override]  # two inputs, not one
        enlarged = functional.interpolate(below, scale_factor=2.0, mode="nearest")
        x = torch.cat([enlarged, beside], dim=1)
        for layer in self:
            x = layer(x)
        return x


class UNet(nn.Module):
    """U-Net with two `BLOCKS` a level, max-pooling down and nearest-neighbour upsampling.

    Batch normalisation uses fixed statistics at prediction, so a pixel's logits depend only on pixels within `radius`;
    group or instance normalisation would tie them to the whole tile.

    Parameters
    ----------
    width : int
        Channels of the first level; level k has ``width * 2 ** k``.
    depth : int
        How often the picture is halved.
    classes : int
        Number of output channels.
    block : str
        A key of `BLOCKS`. The first block of all is a plain one whatever this is, as in the papers: a depthwise
        convolution would see each of the three colours by itself.
    expansion : int
        Of "inverted" blocks: hidden channels for each that goes out.
    stem : int
        Side of the squares that the first level sees as one place, px. With 2 the network costs a quarter of what it
        would; the head gives each px of a square logits of its own again (sub-pixel convolution).

    References
    ----------
    U-Net: Ronneberger, Fischer, Brox, MICCAI 2015, arXiv 1505.04597. Separable: Howard et al., MobileNets, arXiv
    1704.04861. Inverted: Sandler et al., MobileNetV2, arXiv 1801.04381. Sub-pixel: Shi et al., arXiv 1609.05158.
    """

    def __init__(
        self,
        width: int = 16,
        depth: int = 3,
        classes: int = 2,
        block: str = "plain",
        expansion: int = 4,
        stem: int = 1,
    ) -> None:
        super().__init__()
        self.width: int = width
        self.depth: int = depth
        self.classes: int = classes
        self.block: str = block
        self.expansion: int = expansion
        self.stem: int = stem
        channels = [width * 2**level for level in range(depth + 1)]
        begin = _stem(width, stem) if stem > 1 else _plain(3, width, expansion)
        self.down = nn.ModuleList([nn.Sequential(*begin, *self._block(width, width))])
        self.down.extend(self._pair(channels[level], channels[level + 1]) for level in range(depth))
        self.up = nn.ModuleList(
            _Join(*self._pair(channels[level] + channels[level + 1], channels[level]))
            for level in reversed(range(depth))
        )
        self.head = nn.Conv2d(width, classes * stem**2, 1)

    def _block(self, n_in: int, n_out: int) -> list[nn.Module]:
        return BLOCKS[self.block](n_in, n_out, self.expansion)

    def _pair(self, n_in: int, n_out: int) -> nn.Sequential:
        """The two blocks of a level."""
        return nn.Sequential(*self._block(n_in, n_out), *self._block(n_out, n_out))

    @classmethod
    def from_config(cls, config: NetworkConfig) -> Self:
        """The network that the settings describe, with fresh weights."""
        return cls(config.width, config.depth, config.classes, config.block, config.expansion, config.stem)

    @property
    def stride(self) -> int:
        """A tile's place and side must be multiples of this, px."""
        return self.stem << self.depth

    @property
    def radius(self) -> int:
        """How far beyond a pixel, in px on each side, what its logits depend on reaches at most.

        The two 3x3 convolutions of a level reach ``2 * 2 ** k`` on the way down and the same on the way up; pooling and
        upsampling add the position inside a square that is pooled. In all ``7 * 2 ** depth - 5``, or as many squares of
        a stem, of which the outermost counts half as the stem sees no more of it, and the position inside the own one.
        """
        return self.stem * ((7 << self.depth) - 5) + max(self.stem // 2 - 1, 0)

    @property
    def margin(self) -> int:
        """The `radius` rounded up to the stride: what a tile alone needs around its core, px."""
        return -(-self.radius // self.stride) * self.stride

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes, H, W] of images [B, 3, H, W]; H and W are multiples of `stride`."""
        return self.logits(self.levels(images)[-1])

    def levels(self, images: Tensor) -> list[Tensor]:
        """Features of each level on the way up, from the deepest to the first."""
        skips: list[Tensor] = []
        x = images
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        levels = [skips.pop()]
        for block in self.up:
            levels.append(block(levels[-1], skips.pop()))
        return levels

    def logits(self, features: Tensor) -> Tensor:
        """Logits of the features of the first level."""
        logits: Tensor = self.head(features)
        return functional.pixel_shuffle(logits, self.stem) if self.stem > 1 else logits
