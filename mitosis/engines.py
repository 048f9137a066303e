"""How a network is run: uint8 images in, probabilities of a mitotic figure out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Engine", "average_views", "to_input", "torch_engine"]

Engine = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 [B, H, W, 3] → float32 [B, H, W], probability that a pixel belongs to a mitotic figure."""


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W], ``1 - value / 255``: glass is 0, as is the padding of convolutions."""
    darkness = 1 - images.permute(0, 3, 1, 2).to(torch.float32) / 255
    return darkness.contiguous(memory_format=torch.channels_last)


def torch_engine(network: nn.Module, device: torch.device) -> Engine:
    """Run `network` in float32 with PyTorch."""
    network = network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch types no memory_format

    @torch.inference_mode()
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = network(to_input(torch.from_numpy(images).to(device)))
        probability: NDArray[Any] = logits.softmax(dim=1)[:, 1].cpu().numpy()
        return probability

    return run


def average_views(engine: Engine, n_views: int) -> Engine:
    """Run `engine` on square images as they are and turned by quarters (4 views), also mirrored (8), and take the mean.

    A cell has no upright position, but a network that saw few of them has learned some. It costs `n_views` times as
    much. Sides must be multiples of the network's stride, so that a turned tile is cut into the same blocks.
    """
    views = [(turns, mirrored) for mirrored in (False, True) for turns in range(4)][:n_views]

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        total = np.zeros(images.shape[:3], dtype=np.float32)
        for turns, mirrored in views:
            view = np.rot90(images[:, ::-1] if mirrored else images, turns, axes=(1, 2))
            back = np.rot90(engine(np.ascontiguousarray(view)), -turns, axes=(1, 2))
            total += back[:, ::-1] if mirrored else back
        mean: NDArray[np.float32] = total / np.float32(len(views))
        return mean

    return run
