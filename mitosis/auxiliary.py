"""What a U-Net may be asked for in training alone, so that its inner levels learn more from each figure.

Nothing of it is in the model that is kept: the heads are left behind, and prediction costs what it did.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mitosis.config import NetworkConfig, TrainConfig
from mitosis.losses import LOSSES, cross_entropy
from mitosis.masks import IGNORE, MITOTIC_FIGURE
from mitosis.unet import UNet

__all__ = ["TARGETS", "TaughtUNet", "centre_map", "distance_map", "target_maps", "taught_loss"]

_CENTRE_SIGMA = 4.0  # px, 2 µm at 0.5 µm/px: a fifth of a figure's length
_HEADS = ("level_heads.", "map_head.")


def centre_map(figures: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Gaussian bumps, 1 at the middle of each connected figure and of a standard deviation of 4 px; float32 [H, W].

    References
    ----------
    Zhou, Wang, Krähenbühl: Objects as Points, arXiv 1904.07850 (CenterNet).
    """
    rows, columns = np.indices(figures.shape, dtype=np.float32)
    bumps = np.zeros(figures.shape, np.float32)
    middles = cv2.connectedComponentsWithStats(figures.astype(np.uint8))[3][1:]
    for x, y in middles:
        squared = (columns - x) ** 2 + (rows - y) ** 2
        np.maximum(bumps, np.exp(-squared / (2 * _CENTRE_SIGMA**2)), out=bumps)
    return bumps


def distance_map(figures: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance of each pixel of a figure to the outside, as a share of the largest in that figure; float32 [H, W].

    References
    ----------
    Naylor, Laé, Reyal, Walter: Segmentation of nuclei in histopathology images by deep regression of the distance map,
    IEEE TMI 38(2), 2019. The share, so that small figures count as much, is that of StarDist (Schmidt et al., MICCAI
    2018, arXiv 1806.03535).
    """
    bits = figures.astype(np.uint8)
    distance = cv2.distanceTransform(np.pad(bits, 1, mode="edge"), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    n, components = cv2.connectedComponents(bits)
    labels, largest = np.asarray(components, np.intp), np.ones(n, np.float32)
    np.maximum.at(largest, labels, distance)
    return np.asarray(distance / largest[labels], np.float32)


TARGETS: dict[str, Callable[[NDArray[np.bool_]], NDArray[np.float32]]] = {
    "centre": centre_map,
    "distance": distance_map,
}
"""Maps of a mask's figures that a network may be asked for beside the mask: bool [H, W] → from 0 to 1, [H, W]."""


def target_maps(masks: Tensor, target: str) -> Tensor:
    """The map of each mask of a batch [B, H, W], by a name in `TARGETS`; float32, 255 where the mask says ignore."""
    make, maps = TARGETS[target], []
    for mask in masks.numpy():
        figures = np.abs(mask - MITOTIC_FIGURE) <= 0.5  # a mask may hold the probability of a figure
        maps.append(np.where(mask == IGNORE, np.float32(IGNORE), make(figures)))
    return torch.from_numpy(np.stack(maps))


class TaughtUNet(UNet):
    """A U-Net with further heads, which answer in training mode only.

    `level_heads` give the logits of the levels below the first (deep supervision), the coarsest at the head;
    `map_head` those of a map of `TARGETS`, from the first level. What the settings leave out is not there.

    References
    ----------
    Lee, Xie, Gallagher, Zhang, Tu: Deeply-Supervised Nets, AISTATS 2015, arXiv 1409.5185.
    """

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.level_heads: nn.ModuleList = nn.ModuleList()
        self.map_head: nn.Conv2d | None = None

    @classmethod
    def from_settings(cls, network: NetworkConfig, train: TrainConfig) -> "TaughtUNet":
        """The network that the settings describe, with fresh weights, and the heads that training asks for."""
        one = cls.from_config(network)
        levels = range(one.depth, 0, -1) if train.deep_supervision else ()
        one.level_heads.extend(nn.Conv2d(one.width << level, one.classes, 1) for level in levels)
        if train.auxiliary_target != "none":
            one.map_head = nn.Conv2d(one.width, 2 * one.stem**2, 1)
        return one

    def forward(self, images: Tensor) -> Any:
        """Logits [B, classes, H, W]; in training a list: these, those of each level, those of the map (2 classes).

        All have the height and width of the images: a place of a level is as many equal pixels.
        """
        levels = self.levels(images)
        answers = [self.logits(levels[-1])]
        if not self.training:
            return answers[0]
        for head, level in zip(self.level_heads, levels, strict=False):
            answers.append(functional.interpolate(head(level), images.shape[2:], mode="nearest"))
        if self.map_head is not None:
            answers.append(functional.pixel_shuffle(self.map_head(levels[-1]), self.stem))
        return answers

    def kept(self) -> dict[str, Tensor]:
        """Weights of the U-Net without the further heads."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_HEADS)}


def taught_loss(
    answers: Sequence[Tensor], mask: Tensor, maps: Tensor | None, weights: Tensor, train: TrainConfig
) -> Tensor:
    """Loss of what `TaughtUNet` answers in training, given a batch's masks and, where it is asked for them, maps.

    That of the mask, `deep_supervision` times the mean of the levels (the same loss), and `auxiliary_weight` times the
    cross-entropy of the map, weighted as the classes of the mask are.
    """
    loss = LOSSES[train.loss]
    total = loss(answers[0], mask, weights)
    levels = answers[1:] if maps is None else answers[1:-1]
    if levels:
        total = total + train.deep_supervision * torch.stack([loss(level, mask, weights) for level in levels]).mean()
    if maps is not None:
        total = total + train.auxiliary_weight * cross_entropy(answers[-1], maps, weights[:2])
    return total
