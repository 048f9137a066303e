"""Patches in memory: what the files hold, read once as long as there is room."""

import numpy as np
import pytest

from mitosis.config import NetworkConfig, TrainConfig
from mitosis.dataset import PatchDataset
from mitosis.patch_cache import PatchCache
from mitosis.sampling import Draw

NETWORK = NetworkConfig(normalise_stain=False)


@pytest.fixture
def reads(index, monkeypatch):
    """Names of the files that are read."""
    names = []

    def counted(read):
        def run(self, patch):
            names.append(patch.image if read.__name__ == "read_image" else patch.mask)
            return read(self, patch)

        return run

    for method in ("read_image", "read_mask"):
        monkeypatch.setattr(type(index), method, counted(getattr(type(index), method)))
    return names


def test_each_file_is_read_once_and_gives_what_it_holds(index, reads):
    cache = PatchCache(index, 1 << 30)
    for _ in range(3):
        for patch in index.patches:
            cache.read_image(patch), cache.read_mask(patch)
    assert len(reads) == len(set(reads)) == 2 * len(index.patches)
    for patch in index.patches:
        np.testing.assert_array_equal(cache.read_image(patch), index.read_image(patch))
        np.testing.assert_array_equal(cache.read_mask(patch), index.read_mask(patch))


@pytest.mark.parametrize("read", ["read_image", "read_mask"])
def test_what_is_kept_cannot_be_written_to(index, read):
    cache = PatchCache(index, 1 << 30)
    figure = next(patch for patch in index.patches if patch.n_mitotic)
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            getattr(cache, read)(figure)[0] = 0


def test_no_more_is_kept_than_there_is_room_for(index, reads):
    first = index.patches[0]
    cache = PatchCache(index, 3 * first.size**2)  # for one image
    for patch in (first, index.patches[1], first, index.patches[1]):
        cache.read_image(patch)
    assert reads == [first.image, index.patches[1].image, index.patches[1].image]
    cache = PatchCache(index, 0)
    reads.clear()
    cache.read_image(first), cache.read_image(first), cache.read_mask(first), cache.read_mask(first)
    assert len(reads) == 4


def test_an_item_is_the_same_with_and_without_it(index):
    draws = [Draw(row, 0, repeat) for row in range(len(index.patches)) for repeat in (0, 1)]
    made = []
    for megabytes in (0, 1, 1024):
        config = TrainConfig(crop=32, fourier_share=0.5, resolution_jitter=0.1, cache_mb=megabytes)
        dataset = PatchDataset(index, config, network=NETWORK)
        made.append([dataset.make(draw) for draw in draws])
    for others in made[1:]:
        for item, expected in zip(others, made[0], strict=True):
            np.testing.assert_array_equal(item.image, expected.image)
            np.testing.assert_array_equal(item.mask, expected.mask)
