"""Patches as the network sees them: cut to size, augmented, the same for any number of loader workers."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mitosis.augment import augment
from mitosis.config import NetworkConfig, TrainConfig
from mitosis.domains import FOURIER, RESOLUTION, Donors, as_scanned, mix_amplitudes, resample, stream, window_side
from mitosis.errors import PatchIndexError
from mitosis.masks import MITOTIC_FIGURE, NON_MITOTIC_FIGURE
from mitosis.minority import SIDE, FigureBank, interpolate, paste
from mitosis.patch_cache import PatchCache
from mitosis.patches import MITOTIC, Patch, PatchIndex
from mitosis.sampling import Draw

__all__ = ["Item", "PatchDataset"]

# A figure or look-alike chosen for a crop lies at least this far inside it where the patch allows, px.
_FIGURE_MARGIN = 16

PASTED, INTERPOLATED = "pasted", "interpolated"


class Item(NamedTuple):
    """What the network is shown: image uint8 [crop, crop, 3], mask [crop, crop], and what it is."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | NDArray[np.float32]
    kind: str


def _bank(index: PatchIndex, config: TrainConfig) -> FigureBank | None:
    if not (config.paste_share or config.smote_share):
        return None
    bank = FigureBank.of(index)
    if len(bank) < (2 if config.smote_share else 1):
        raise PatchIndexError(
            f"{index.folder}: {len(bank)} figures fit into crops of {SIDE} px to be pasted, too few. Extract at more "
            "µm/px, with larger patches, or set train.paste_share and train.smote_share to 0."
        )
    return bank


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Crops of the patches of an index, asked for by `Draw`.

    A crop of a patch with a mitotic figure (else with a look-alike) holds one, off the middle; an epoch that shows the
    patch again takes another place, and augments more. What an item is depends on (seed, epoch, row, repeat) alone.
    """

    def __init__(self, index: PatchIndex, config: TrainConfig, network: NetworkConfig) -> None:
        self.index, self.config, self.network = index, config, network
        self.cache = PatchCache(index, config.cache_mb << 20)
        self.bank = _bank(index, config)
        patches = index.patches
        self.donors = Donors(tuple(patch.domain for patch in patches), tuple(patch.case_id for patch in patches))

    def __len__(self) -> int:
        return len(self.index.patches)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Image uint8 [crop, crop, 3] and mask float32 [crop, crop].

        The mask holds the class of a pixel, 255 where it is to be ignored, or a fraction: a mitotic figure with this
        probability.
        """
        item = self.make(draw)
        return torch.from_numpy(np.ascontiguousarray(item.image)), torch.from_numpy(item.mask.astype(np.float32))

    def make(self, draw: Draw) -> Item:
        """The item as arrays, with what it is: the kind of its patch, `pasted` or `interpolated`."""
        config, patch = self.config, self.index.patches[draw.row]
        seed = _seed(config.seed, *draw)
        image, mask, kind = self._cut(draw, patch, seed)
        if self.network.classes == 2:
            mask[mask == NON_MITOTIC_FIGURE] = 0
        image = self._normalised(image, patch)
        if config.fourier_share:
            image = self._mixed(image, draw.row, stream(seed, FOURIER))
        has_figure = kind in (MITOTIC, PASTED, INTERPOLATED)
        strength = config.augment_figure if has_figure else config.augment_others
        strength = min(1.0, strength + draw.repeat * config.augment_per_repeat)
        image, mask = augment(image, mask, strength, seed)
        return Item(as_scanned(image, config, seed), mask, kind)

    def _cut(self, draw: Draw, patch: Patch, seed: int) -> Item:
        """The crop at its µm/px, with what was pasted into it at the µm/px of its figures."""
        config, side = self.config, self.config.crop
        if config.resolution_jitter:
            side = window_side(side, config.resolution_jitter, stream(seed, RESOLUTION))
        image, mask = self.cache.read_image(patch), self.cache.read_mask(patch)
        item = Item(*_crop(image, mask, side, config.seed, draw), patch.kind)
        if patch.kind != MITOTIC and self.bank:
            item = self._with_figure(item, self.bank, np.random.default_rng(seed))
        return Item(*resample(item.image, item.mask, config.crop), item.kind)

    def _normalised(self, image: NDArray[np.uint8], patch: Patch) -> NDArray[np.uint8]:
        return self.index.stain(patch).normalise(image) if self.network.normalise_stain else image

    def _mixed(self, image: NDArray[np.uint8], row: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The crop with amplitudes of a donor, which is normalised as the crop is, as often as the settings say."""
        if rng.random() >= self.config.fourier_share:
            return image
        patch, side = self.index.patches[self.donors.choose(row, rng)], self.config.crop
        top, left = rng.integers(patch.size - side + 1, size=2).tolist()
        window = self.cache.read_image(patch)[top : top + side, left : left + side]
        return mix_amplitudes(image, self._normalised(window, patch), rng.random(), self.config.fourier_beta)

    def _with_figure(self, item: Item, bank: FigureBank, rng: np.random.Generator) -> Item:
        """The item with a synthetic figure in it, as often as the settings say and where there is room."""
        chance, config = rng.random(), self.config
        if chance >= config.paste_share + config.smote_share:
            return item
        synthetic = chance >= config.paste_share
        figure = interpolate(bank, rng) if synthetic else bank.figures[rng.integers(len(bank))]
        pasted = paste(item.image, item.mask, figure, rng)
        return Item(*pasted, INTERPOLATED if synthetic else PASTED) if pasted else item


def _seed(*numbers: int) -> int:
    """32 bits that change with every number given."""
    text = ",".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def _crop(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], side: int, seed: int, draw: Draw
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A square of `side` px that holds a figure of the patch, or else a look-alike, if there is one.

    All crops that an epoch takes of a patch hold the same one, each at another place as long as there are such. What a
    square has beyond a smaller patch is mirrored.
    """
    lack = max(0, side - min(mask.shape))
    if lack:
        ends = lack // 2, lack - lack // 2
        image, mask = np.pad(image, (ends, ends, (0, 0)), "reflect"), np.pad(mask, (ends, ends), "reflect")
    rng = np.random.default_rng(_seed(seed, draw.row, draw.epoch))
    marks = np.argwhere(mask == MITOTIC_FIGURE)
    if not len(marks):
        marks = np.argwhere(mask == NON_MITOTIC_FIGURE)
    anchor = marks[rng.integers(len(marks))] if len(marks) else (None, None)
    tops, lefts = (_starts(length, side, place) for length, place in zip(mask.shape, anchor, strict=True))
    order = rng.permutation(len(tops) * len(lefts))
    row, column = divmod(int(order[draw.repeat % len(order)]), len(lefts))
    square = slice(tops[row], tops[row] + side), slice(lefts[column], lefts[column] + side)
    return image[square].copy(), mask[square].copy()


def _starts(length: int, side: int, anchor: int | None) -> range:
    """Where a crop may begin."""
    low, high = 0, length - side
    if anchor is not None:
        margin = min(_FIGURE_MARGIN, side // 4)
        low = min(max(low, anchor + margin - side), high)
        high = max(min(high, anchor - margin), low)
    return range(low, high + 1)
