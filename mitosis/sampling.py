"""Which patches an epoch shows, and how often: the answer to rare figures.

A sampler is a function of (kinds of the patches, settings, epoch) to the batches of that epoch. It draws from
one random stream per (seed, epoch), so a resumed run, or one with other loader workers, sees the same batches. New
samplers: write such a function and add it to `SAMPLERS`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mitosis.config import TrainConfig

__all__ = ["SAMPLERS", "Draw", "oversample", "uniform"]


class Draw(NamedTuple):
    """One patch of a batch: the row of the index, the epoch, and the how-manieth time this epoch shows it."""

    row: int
    epoch: int
    repeat: int


Batches = list[list[Draw]]
Sampler = Callable[[Sequence[bool], TrainConfig, int], Batches]


def uniform(has_figure: Sequence[bool], config: TrainConfig, epoch: int) -> Batches:
    """Every patch once, in random order; the last, smaller batch is left out unless it is the only one.

    Parameters
    ----------
    has_figure : sequence of bool
        Whether a patch holds a mitotic figure, a patch each.
    epoch : int
        From 0.
    """
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(has_figure))
    n_batches = max(1, len(order) // config.batch_size)
    return [
        [Draw(int(row), epoch, 0) for row in order[i * config.batch_size : (i + 1) * config.batch_size]]
        for i in range(n_batches)
    ]


def oversample(has_figure: Sequence[bool], config: TrainConfig, epoch: int) -> Batches:
    """Batches in which ``figure_share`` of the patches hold a figure; an epoch shows every other patch once.

    Patches with figures are repeated as often as that takes; each is shown n times before any is shown n + 1 times.
    """
    flags = np.asarray(has_figure, dtype=bool)
    figures, others = np.flatnonzero(flags), np.flatnonzero(~flags)
    n_figures = round(config.batch_size * config.figure_share)
    if not len(figures) or not len(others) or n_figures in (0, config.batch_size):
        return uniform(has_figure, config, epoch)
    n_others = config.batch_size - n_figures
    rng = np.random.default_rng([config.seed, epoch])
    n_batches = -(-len(others) // n_others)
    figure_stream, other_stream = _repeated(figures, rng), _repeated(others, rng)
    batches = []
    for _ in range(n_batches):
        draws = [next(figure_stream) for _ in range(n_figures)] + [next(other_stream) for _ in range(n_others)]
        batches.append([Draw(row, epoch, repeat) for row, repeat in draws])
    return batches


def _repeated(rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(row, repeat) for ever, in a new random order each round."""
    repeat = 0
    while True:
        for row in rng.permutation(rows):
            yield int(row), repeat
        repeat += 1


SAMPLERS: dict[str, Sampler] = {"oversample": oversample, "uniform": uniform}
