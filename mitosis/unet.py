"""The network: a small U-Net whose tiles fit together without a seam."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mitosis.config import NetworkConfig

__all__ = ["UNet"]


def _double_convolution(n_in: int, n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (n_in, n_out):
        layers += [
            nn.Conv2d(channels, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net with two 3x3 convolutions a level, max-pooling down and nearest-neighbour upsampling.

    Batch normalisation uses fixed statistics at prediction, so a pixel's logits depend only on pixels within `margin`;
    group or instance normalisation would tie them to the whole tile.

    Parameters
    ----------
    width : int
        Channels of the first level; level k has ``width * 2 ** k``.
    depth : int
        How often the picture is halved.
    classes : int
        Number of output channels.

    References
    ----------
    Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, arXiv 1505.04597.
    """

    def __init__(self, width: int = 16, depth: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.width: int = width
        self.depth: int = depth
        self.classes: int = classes
        channels = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _double_convolution(n_in, n_out) for n_in, n_out in zip([3, *channels], channels, strict=False)
        )
        self.up = nn.ModuleList(
            _double_convolution(channels[level] + channels[level + 1], channels[level])
            for level in reversed(range(depth))
        )
        self.head = nn.Conv2d(width, classes, 1)

    @classmethod
    def from_config(cls, config: NetworkConfig) -> "UNet":
        """The network that the settings describe, with fresh weights."""
        return cls(config.width, config.depth, config.classes)

    @property
    def stride(self) -> int:
        """A tile's place and side must be multiples of this, px."""
        return 1 << self.depth

    @property
    def margin(self) -> int:
        """Context a pixel's logits depend on, px on each side: the receptive radius, rounded up to the stride.

        Two 3x3 convolutions a level reach ``2 * 2 ** k`` on the way down and the same on the way up; pooling and
        upsampling add the position inside a block. In all ``7 * 2 ** depth - 5``.
        """
        radius = 7 * self.stride - 5
        return -(-radius // self.stride) * self.stride

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes, H, W] of images [B, 3, H, W]; H and W are multiples of `stride`."""
        skips: list[Tensor] = []
        x = images
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skips.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits
