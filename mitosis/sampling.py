"""Which patches an epoch shows, and how often: the answer to rare figures.

A sampler is a function of (pool of patches, settings, epoch) to the batches of that epoch, and of nothing else: a
resumed run, or one with other loader workers or processes, sees the same batches. Where an epoch does not show all
patches of a kind, the next one goes on where it stopped, so each is shown once before any is shown a second time. New
samplers: write such a function and add it to `SAMPLERS`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mitosis.config import TrainConfig
from mitosis.errors import ConfigError
from mitosis.patches import BACKGROUND, HARD_NEGATIVE, MITOTIC, PatchIndex

__all__ = ["SAMPLERS", "Batches", "Draw", "PatchPool", "epochs", "for_rank"]

Rows = NDArray[np.int64]


class Draw(NamedTuple):
    """One patch of a batch: the row of the index, the epoch, and the how-manieth time this epoch shows it."""

    row: int
    epoch: int
    repeat: int


Batches = list[list[Draw]]


@dataclass(frozen=True)
class PatchPool:
    """What a sampler knows of the patches: kind and domain of each, in the order of the index."""

    kinds: tuple[str, ...]
    domains: tuple[str, ...]

    @classmethod
    def of(cls, index: PatchIndex) -> "PatchPool":
        """The pool of an index."""
        return cls(
            tuple(patch.kind for patch in index.patches),
            tuple(patch.domain for patch in index.patches),
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def rows(self, *kinds: str) -> Rows:
        """The rows of these kinds."""
        return np.flatnonzero(np.isin(self.kinds, kinds))

    def cells(self) -> list[Rows]:
        """The rows of each class × domain that occurs."""
        cells = sorted(set(zip(self.kinds, self.domains, strict=True)))
        both = np.array([cells.index(cell) for cell in zip(self.kinds, self.domains, strict=True)])
        return [np.flatnonzero(both == number) for number in range(len(cells))]


Sampler = Callable[[PatchPool, TrainConfig, int], Batches]
Group = tuple[Rows, int]
"""Rows of one sort, and how many of them stand in each batch."""


def epochs(pool: PatchPool, config: TrainConfig) -> Iterator[Batches]:
    """The batches of a whole run, epoch after epoch, ``config.steps`` batches in all.

    Raises
    ------
    ConfigError
        There is no such sampler, or a batch is too small for it.
    """
    if config.sampler not in SAMPLERS:
        raise ConfigError(f"train.sampler = {config.sampler!r}: unknown. Known: {', '.join(sorted(SAMPLERS))}.")
    left, epoch = config.steps, 0
    while left:
        batches = SAMPLERS[config.sampler](pool, config, epoch)[:left]
        yield batches
        left -= len(batches)
        epoch += 1


def for_rank(batches: Batches, rank: int, n_ranks: int) -> Batches:
    """The part of each batch that one of `n_ranks` processes trains on; the parts are disjoint and complete.

    Raises
    ------
    ConfigError
        The batch cannot be shared out evenly, so the mean of the processes' gradients would not be that of the batch.
    """
    uneven = [len(batch) for batch in batches if len(batch) % n_ranks]
    if uneven:
        raise ConfigError(f"train.batch_size: {uneven[0]} patches cannot be shared evenly by {n_ranks} processes.")
    return [batch[rank::n_ranks] for batch in batches]


def _uniform(pool: PatchPool, config: TrainConfig, epoch: int) -> Batches:
    """Every patch once, in random order; what does not fill a batch comes first in the next epoch."""
    n = min(config.batch_size, len(pool))
    return _draw([(np.arange(len(pool)), n)], len(pool) // n, config.seed, epoch)


def _undersample(pool: PatchPool, config: TrainConfig, epoch: int) -> Batches:
    """Every patch with a figure once, with as many others as `figure_share` asks for: always the same ones."""
    groups = _two_classes(pool, config)
    n_batches = _length(groups[0])
    rows, n = groups[-1]
    subset = np.random.default_rng(config.seed).permutation(rows)[: n_batches * n]
    return _draw([*groups[:-1], (subset, n)], n_batches, config.seed, epoch)


def _undersample_each_epoch(pool: PatchPool, config: TrainConfig, epoch: int) -> Batches:
    """As `undersample`, but each epoch takes other ones, until all have been shown."""
    groups = _two_classes(pool, config)
    return _draw(groups, _length(groups[0]), config.seed, epoch)


def _oversample(pool: PatchPool, config: TrainConfig, epoch: int) -> Batches:
    """Every patch without a figure once; those with one are repeated as often as `figure_share` asks for."""
    groups = _two_classes(pool, config)
    return _draw(groups, _length(groups[-1]), config.seed, epoch)


def _combined(pool: PatchPool, config: TrainConfig, epoch: int) -> Batches:
    """Half-way between `undersample-each-epoch` and `oversample`: the geometric mean of their numbers of batches."""
    groups = _two_classes(pool, config)
    n_batches = round(math.sqrt(_length(groups[0]) * _length(groups[-1])))
    return _draw(groups, n_batches, config.seed, epoch)


def _mix(pool: PatchPool, config: TrainConfig, epoch: int) -> Batches:
    """Batches with the shares of `mix`: figure, look-alike only, neither; an epoch shows each of the last sort once.

    Where the patches lack one sort, its share goes to the others in proportion.
    """
    groups = _groups([pool.rows(kind) for kind in (MITOTIC, HARD_NEGATIVE, BACKGROUND)], config.mix, config)
    return _draw(groups, _length(groups[-1]), config.seed, epoch)


def _balanced(pool: PatchPool, config: TrainConfig, epoch: int) -> Batches:
    """Every class × domain equally often, whatever its size; an epoch is as long as that of `uniform`."""
    cells = pool.cells()
    n = min(config.batch_size, len(pool))
    n_draws = len(pool) // n * n
    numbers = np.arange(len(cells))
    order = _stream(numbers, (config.seed, 0), epoch * n_draws, n_draws)
    rounds, rest = divmod(epoch * n_draws, len(cells))
    begun = _stream(numbers, (config.seed, 0), rounds * len(cells), rest)
    streams = [
        iter(_stream(rows, (config.seed, cell + 1), rounds + (cell in begun), order.count(cell)))
        for cell, rows in enumerate(cells)
    ]
    return _numbered([[next(streams[cell]) for cell in order[i : i + n]] for i in range(0, n_draws, n)], epoch)


def _two_classes(pool: PatchPool, config: TrainConfig) -> list[Group]:
    """Patches with a figure, and all others."""
    classes = [pool.rows(MITOTIC), pool.rows(HARD_NEGATIVE, BACKGROUND)]
    return _groups(classes, [config.figure_share, 1 - config.figure_share], config)


def _groups(sorts: Sequence[Rows], shares: Sequence[float], config: TrainConfig) -> list[Group]:
    """The sorts that occur, with their places in a batch: by largest remainder, at least one each."""
    kept = [(rows, share) for rows, share in zip(sorts, shares, strict=True) if len(rows) and share > 0]
    if not kept:
        kept = [(np.concatenate(sorts), 1.0)]
    if len(kept) > config.batch_size:
        raise ConfigError(
            f"train.batch_size = {config.batch_size} is too small for the sampler {config.sampler!r}: "
            f"a batch needs at least {len(kept)} patches."
        )
    total = sum(share for _, share in kept)
    exact = [config.batch_size * share / total for _, share in kept]
    places = [max(1, int(value)) for value in exact]
    while sum(places) < config.batch_size:
        places[int(np.argmax([value - n for value, n in zip(exact, places, strict=True)]))] += 1
    while sum(places) > config.batch_size:
        places[int(np.argmax(places))] -= 1
    return [(rows, n) for (rows, _), n in zip(kept, places, strict=True)]


def _length(group: Group) -> int:
    """Batches that show each row of a group at least once."""
    rows, n = group
    return -(-len(rows) // n)


def _draw(groups: Sequence[Group], n_batches: int, seed: int, epoch: int) -> Batches:
    """Batches that take their places from each group's endless stream, from where the epoch before stopped."""
    streams = [
        iter(_stream(rows, (seed, number), epoch * n_batches * n, n_batches * n))
        for number, (rows, n) in enumerate(groups)
    ]
    return _numbered(
        [
            [next(stream) for stream, (_, n) in zip(streams, groups, strict=True) for _ in range(n)]
            for _ in range(n_batches)
        ],
        epoch,
    )


def _stream(rows: Rows, seed: tuple[int, int], start: int, n: int) -> list[int]:
    """`n` rows from place `start` of an endless stream: all rows in random order, all in another, and so on."""
    first, skipped = divmod(start, len(rows))
    n_rounds = -(-(skipped + n) // len(rows))
    rounds = [np.random.default_rng([*seed, first + i]).permutation(rows) for i in range(n_rounds)]
    return [int(row) for row in np.concatenate([rows[:0], *rounds])[skipped : skipped + n]]


def _numbered(batches: list[list[int]], epoch: int) -> Batches:
    """Rows to draws: how often the epoch has shown each before."""
    shown: Counter[int] = Counter()
    numbered: Batches = []
    for batch in batches:
        numbered.append([])
        for row in batch:
            numbered[-1].append(Draw(row, epoch, shown[row]))
            shown[row] += 1
    return numbered


SAMPLERS: dict[str, Sampler] = {
    "balanced": _balanced,
    "combined": _combined,
    "mix": _mix,
    "oversample": _oversample,
    "undersample": _undersample,
    "undersample-each-epoch": _undersample_each_epoch,
    "uniform": _uniform,
}
