"""Patches as the network sees them: cut to size, augmented, the same for any number of loader workers."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mitosis.augment import augment
from mitosis.config import TrainConfig
from mitosis.masks import MITOTIC_FIGURE, NON_MITOTIC_FIGURE
from mitosis.patches import PatchIndex
from mitosis.sampling import Draw

__all__ = ["PatchDataset", "load_batches"]

# A figure chosen for a crop lies at least this far inside it where the patch allows, px.
_FIGURE_MARGIN = 16


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Crops of the patches of an index, asked for by `Draw`.

    Patches with a mitotic figure get the heavy augmentation pipeline, all others the light one. The random stream of an
    item depends on (seed, epoch, row, repeat) alone.
    """

    def __init__(self, index: PatchIndex, config: TrainConfig, classes: int) -> None:
        self.index, self.config, self.classes = index, config, classes

    def __len__(self) -> int:
        return len(self.index.patches)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Image uint8 [crop, crop, 3] and mask int64 [crop, crop]."""
        patch = self.index.patches[draw.row]
        image, mask = self.index.read_image(patch), self.index.read_mask(patch)
        if self.classes == 2:
            mask = np.where(mask == NON_MITOTIC_FIGURE, np.uint8(0), mask)
        seed = _seed(self.config.seed, *draw)
        image, mask = _crop(image, mask, self.config.crop, np.random.default_rng(seed))
        image, mask = augment(image, mask, heavy=patch.n_mitotic > 0, seed=seed)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(mask.astype(np.int64))


def _seed(*numbers: int) -> int:
    """32 bits that change with every number given."""
    text = ",".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def _crop(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], side: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random square; if the patch holds a figure, one that holds a figure."""
    rows, columns = np.nonzero(mask == MITOTIC_FIGURE)
    anchor = None
    if len(rows):
        chosen = rng.integers(len(rows))
        anchor = int(rows[chosen]), int(columns[chosen])
    top, left = (_start(mask.shape[axis], side, anchor[axis] if anchor else None, rng) for axis in (0, 1))
    return image[top : top + side, left : left + side], mask[top : top + side, left : left + side]


def _start(length: int, side: int, anchor: int | None, rng: np.random.Generator) -> int:
    low, high = 0, length - side
    if anchor is not None:
        margin = min(_FIGURE_MARGIN, side // 4)
        low = min(max(low, anchor + margin - side), high)
        high = max(min(high, anchor - margin), low)
    return int(rng.integers(low, high, endpoint=True))


def load_batches(
    dataset: PatchDataset, batches: Sequence[Sequence[Draw]], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 [B, crop, crop, 3] and masks int64 [B, crop, crop] of each batch, in order."""
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # torch's type knows integers only
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    yield from loader
