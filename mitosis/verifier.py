"""The second stage: small residual classifiers of the square round a candidate."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mitosis.config import VerifierConfig

__all__ = ["DROPOUT", "N_CLASSES", "Classifier", "SpatialTransformer", "Verifier", "gate_settings"]

N_CLASSES = 3
DROPOUT = 0.2
"""Share of the features that a classifier does without while it learns."""


class _Block(nn.Module):
    """Two 3x3 convolutions and what came in, at half the size.

    Attributes
    ----------
    given : nn.Module
        What both ways through the block begin with: nothing, or in whole numbers of 8 bits the rounding.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.given: nn.Module = nn.Identity()
        self.first = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.given(x)
        changed = functional.relu(self.first_norm(self.first(x)))
        changed = self.second_norm(self.second(changed))
        return functional.relu(changed + self.shortcut(functional.avg_pool2d(x, 2)))


class SpatialTransformer(nn.Module):
    """Turn, scale and move a square image by what a small network reads from it; at first by nothing.

    Parameters
    ----------
    side : int
        Side of the images, px; a multiple of 8.
    max_shift : float
        Furthest move, as a fraction of the side.
    max_scale : float
        Strongest scaling, up or down.

    References
    ----------
    Jaderberg et al.: Spatial transformer networks, arXiv 1506.02025; for mitotic figures Aubreville et al., arXiv
    1707.08525.
    """

    def __init__(self, side: int, max_shift: float = 0.15, max_scale: float = 1.3) -> None:
        super().__init__()
        self.max_shift, self.max_scale = max_shift, max_scale
        self.features = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(3, 8, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(16 * (side // 8) ** 2, 16),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(16, 4)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def places(self, images: Tensor) -> Tensor:
        """Where to look, [B, 2, 3]: the affine map from places of the result to places of the image."""
        turn, scale, x, y = self.head(self.features(images)).float().tanh().unbind(dim=1)
        angle, factor = math.pi * turn, torch.exp(math.log(self.max_scale) * scale)
        cosine, sine = factor * angle.cos(), factor * angle.sin()
        rows = (cosine, -sine, 2 * self.max_shift * x, sine, cosine, 2 * self.max_shift * y)
        return torch.stack(rows, dim=1).view(-1, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, side, side], turned, scaled and moved; what comes from outside is glass (0)."""
        with torch.autocast(images.device.type, enabled=False):  # places in bfloat16 would be wrong by half a pixel
            images = images.float()
            grid = functional.affine_grid(self.places(images), list(images.shape), align_corners=False)
            return functional.grid_sample(images, grid, align_corners=False)


class Classifier(nn.Module):
    """Residual network of three blocks: other, mitotic figure or non-mitotic figure.

    The mean over all places that it ends with makes it indifferent to small shifts. Batch normalisation uses fixed
    statistics at prediction, so a crop's logits do not depend on the others of its batch.

    Parameters
    ----------
    width : int
        Channels of the first block; the next two have twice and four times as many.
    side : int
        Side of the crops, px; a multiple of 8.
    transformer : bool
        Let a `SpatialTransformer` turn, scale and move each crop first.
    """

    def __init__(self, width: int = 24, side: int = 64, transformer: bool = False) -> None:
        super().__init__()
        self.transformer = SpatialTransformer(side) if transformer else nn.Identity()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(_Block(width, width), _Block(width, 2 * width), _Block(2 * width, 4 * width))
        self.last = nn.Linear(4 * width, N_CLASSES)
        self.dropout: nn.Module = nn.Dropout(DROPOUT)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer decides by, [B, 4 width], of images [B, 3, side, side]."""
        x: Tensor = self.blocks(self.stem(self.transformer(images)))
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 3] of images [B, 3, side, side]."""
        logits: Tensor = self.last(self.dropout(self.features(images)))
        return logits


class Verifier(nn.Module):
    """One `Classifier`, or several that learned apart and are asked together.

    Parameters
    ----------
    width, side, transformer
        Of each, as in `Classifier`.
    members : int
        How many there are.

    Attributes
    ----------
    in_flight : int
        How many batches it is best given at once, by as many threads.
    run : callable or None
        What runs it instead of PyTorch: crops, uint8 [B, side, side, 3], to the logarithms of the classes'
        probabilities, float32 [B, 3].
    """

    in_flight: int = 1
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None

    def __init__(self, width: int = 24, side: int = 64, transformer: bool = False, members: int = 1) -> None:
        super().__init__()
        self.members = nn.ModuleList(Classifier(width, side, transformer) for _ in range(members))

    @classmethod
    def from_config(cls, config: VerifierConfig) -> "Verifier":
        """The network that the settings describe, with fresh weights."""
        return cls(config.width, config.crop, config.transformer, config.members)

    def apart(self) -> list["Verifier"]:
        """Each member, to be asked alone; its weights are shared."""
        members = [Verifier(members=0) for _ in self.members]
        for alone, member in zip(members, self.members, strict=True):
            alone.members.append(member)
        return members

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 3] of images [B, 3, side, side]: the mean of the logarithms of the members' probabilities.

        So a member that is sure that something is no figure outweighs one that is hardly sure that it is.
        """
        return torch.stack([member(images).log_softmax(dim=1) for member in self.members]).mean(dim=0)


def gate_settings(settings: VerifierConfig, mpp: float) -> VerifierConfig:
    """What the candidate gate of a second stage is, and how it learns: one small member on the same tissue at `mpp`."""
    ratio = settings.mpp / mpp
    changes = {
        "mpp": mpp,
        "crop": max(16, round(settings.crop * ratio / 8) * 8),
        "shift": round(settings.shift * ratio),
        "width": settings.gate_width,
        "symmetry": settings.gate_symmetry,
        "transformer": False,
        "members": 1,
        "gate_width": 0,
    }
    return settings.model_copy(update=changes)
