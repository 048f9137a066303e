"""Batches that a network learns from, made in order ahead of the step that needs them."""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mitosis.errors import MitosisError
from mitosis.runtime import pinned
from mitosis.threads import in_threads

__all__ = ["load_batches"]

_PREFETCH = 4  # batches that each loader process has ready; how long one takes to make varies widely


def load_batches(dataset: Dataset[Any], batches: Sequence[Sequence[Any]], workers: int) -> Iterator[tuple[Tensor, ...]]:
    """What the items of each batch hold, stacked: a tensor [B, ...] for each part of an item, a number or a tensor.

    Without loader processes a thread loads ahead: on a processor most of its work leaves the interpreter free for the
    training step. Where there is a GPU they lie in pinned memory, so that they can be sent there while it works.

    Parameters
    ----------
    dataset : Dataset
        What an item is must depend on what it is asked for by alone, so that batches are the same for any `workers`.
    batches : sequence of sequences
        By what the items of each are asked for.
    workers : int
        Loader processes; each gets a copy of the dataset.
    """
    if not workers:
        yield from _load_ahead(dataset, batches)
        return
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # torch's type knows integers only
        num_workers=workers,
        prefetch_factor=_PREFETCH,
        multiprocessing_context="spawn",
        worker_init_fn=_work_alone,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from the stream that dropout draws from
    )
    try:
        yield from map(tuple, loader)
    except MitosisError as error:  # torch tells the whole traceback of the other process, its last line is the sentence
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None


def _work_alone(_worker: int) -> None:
    """There is a loader process for each core; OpenCV would start as many threads again in each."""
    cv2.setNumThreads(1)


def _load_ahead(dataset: Dataset[Any], batches: Sequence[Sequence[Any]]) -> Iterator[tuple[Tensor, ...]]:
    def load(batch: Sequence[Any]) -> tuple[Tensor, ...]:
        return tuple(map(pinned, default_collate([dataset[each] for each in batch])))

    return in_threads(load, batches, 1, ahead=2)
