"""Turned and mirrored views of images, and the mean of what an engine says of them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mitosis.engines import Engine

__all__ = ["add_views", "average_views"]


def average_views(engine: Engine, n_views: int) -> Engine:
    """Run `engine` on images as they are and turned by quarters (4 views), also mirrored (8), and take the mean.

    A cell has no upright position, but a network that saw few of them has learned some. Sides must be multiples of the
    network's stride, so that a turned tile is cut into the same blocks.
    """

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return add_views(engine, images, engine(images), n_views)

    return run


def add_views(
    engine: Engine, images: NDArray[np.uint8], upright: NDArray[np.float32], n_views: int
) -> NDArray[np.float32]:
    """The mean of `average_views`, where the first view's result is known already.

    Parameters
    ----------
    images : uint8 [B, H, W, 3]
    upright : float32 [B, H, W]
        What `engine` says of them as they are.
    """
    if n_views == 1:
        return upright
    total = upright.copy()
    for turns, mirrored in _others(n_views):
        view = np.rot90(images[:, ::-1] if mirrored else images, turns, axes=(1, 2))
        back = np.rot90(engine(np.ascontiguousarray(view)), -turns, axes=(1, 2))
        total += back[:, ::-1] if mirrored else back
    mean: NDArray[np.float32] = total / np.float32(n_views)
    return mean


def _others(n_views: int) -> Iterator[tuple[int, bool]]:
    """Quarters and whether mirrored, of all views but the first."""
    yield from ((number % 4, number >= 4) for number in range(1, n_views))
