"""Loading: batches in order, and not all of them at once. Processes are tested where items are made."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from mitosis.errors import PatchIndexError
from mitosis.loading import load_batches


class Numbers(Dataset):
    """Each number as an array and as itself; notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, number):
        self.asked.append(number)
        return torch.from_numpy(np.full((2, 3), number, np.uint8)), number


def test_a_thread_loads_in_order_and_no_more_than_three_batches_ahead():
    numbers = Numbers()
    batches = [[3 * n, 3 * n + 1, 3 * n + 2][: 1 + n % 3] for n in range(9)]
    sizes = np.cumsum([len(batch) for batch in batches])
    for n, (images, same) in enumerate(load_batches(numbers, batches, 0)):
        assert len(numbers.asked) <= sizes[min(n + 2, 8)]
        assert same.tolist() == batches[n]
        assert (images.dtype, images.shape) == (torch.uint8, (len(batches[n]), 2, 3))
        assert images[:, 0, 0].tolist() == batches[n]
    assert n == 8
    assert numbers.asked == list(itertools.chain(*batches))


def test_no_batch_is_no_batch():
    assert list(load_batches(Numbers(), [], 0)) == []


class _Broken(Dataset):
    """Nothing in it can be read."""

    def __getitem__(self, _):
        raise PatchIndexError("patches/a.png: damaged image. Extract again.")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_patch_is_one_sentence_wherever_it_was_loaded(workers):
    with pytest.raises(PatchIndexError) as caught:
        list(load_batches(_Broken(), [[0]], workers))
    assert str(caught.value) == "patches/a.png: damaged image. Extract again."
