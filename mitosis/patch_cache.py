"""Patches that were read before, kept in memory: to read and decode one takes longer than all that follows."""

import numpy as np
from numpy.typing import NDArray

from mitosis.patches import Patch, PatchIndex

__all__ = ["PatchCache"]


class PatchCache:
    """Pixels and masks of an index, each read once as long as there is room; what is kept never leaves.

    Patches are drawn at random, so to make room for the newest would drop as much that is needed as it brings.

    Parameters
    ----------
    limit : int
        Bytes to keep at most; 0 keeps nothing.
    """

    def __init__(self, index: PatchIndex, limit: int) -> None:
        self.index, self.room = index, limit
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._masks: dict[str, NDArray[np.uint8] | None] = {}

    def read_image(self, patch: Patch) -> NDArray[np.uint8]:
        """The patch, uint8 [size, size, 3], not to be written to; raises as `PatchIndex.read_image`."""
        if patch.image in self._images:
            return self._images[patch.image]
        image = self.index.read_image(patch)
        image.flags.writeable = False
        if self._has_room(image.nbytes):
            self._images[patch.image] = image
        return image

    def read_mask(self, patch: Patch) -> NDArray[np.uint8]:
        """Its mask, uint8 [size, size], not to be written to; raises as `PatchIndex.read_mask`."""
        if patch.mask in self._masks:
            mask = self._masks[patch.mask]
            return np.zeros((patch.size, patch.size), np.uint8) if mask is None else mask
        mask = self.index.read_mask(patch)
        mask.flags.writeable = False
        kept = mask if mask.any() else None  # most are empty
        if self._has_room(mask.nbytes if kept is not None else 0):
            self._masks[patch.mask] = kept
        return mask

    def _has_room(self, n_bytes: int) -> bool:
        if self.room < n_bytes or not self.room:
            return False
        self.room -= n_bytes
        return True
