"""Candidates as the second stage sees them while it learns: which, how often, and changed how."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mitosis.augment import augment
from mitosis.config import VerifierConfig
from mitosis.crops import CLASSES, FIGURE, LOOK_ALIKE, OTHER, CandidateSet, centre
from mitosis.domains import FOURIER, RESOLUTION, Donors, as_scanned, mix_amplitudes, resample, stream, window_side
from mitosis.errors import PatchIndexError
from mitosis.loading import load_batches

__all__ = ["CandidateBatch", "candidate_batches", "draws", "head_of"]

_KEPT_BYTES = 1 << 30  # to open the file of a crop takes longer than all that is done with it
_AUXILIARY = "verifier.auxiliary_domains"


class CandidateBatch(NamedTuple):
    """What a step of the second stage learns from.

    Attributes
    ----------
    images : uint8 [B, side, side, 3]
    labels : int64 [B] or float32 [B, 3]
        Places in `CLASSES`, or the probability of each of them that is to be learned.
    heads : int64 [B]
        The last layers that learn from their domains alone, by `head_of`; -1, that for all, where there is none.
    """

    images: Tensor
    labels: Tensor
    heads: Tensor


def head_of(candidates: CandidateSet, settings: VerifierConfig) -> dict[str, int]:
    """Which last layer learns from each domain alone, counted from 0; there is one for all domains after these.

    Only where there are auxiliary domains: these share the last, each other domain that has figures has its own.
    """
    if not settings.auxiliary_domains:
        return {}
    figures = (row for row in candidates.candidates if row.label == FIGURE)
    of_figures = {candidates.slides[figure.slide_id].domain for figure in figures}
    names = sorted(of_figures.difference(settings.auxiliary_domains))
    return {name: number for number, name in enumerate(names)} | dict.fromkeys(settings.auxiliary_domains, len(names))


def candidate_batches(
    candidates: CandidateSet, settings: VerifierConfig, taught: NDArray[np.float32] | None = None
) -> Iterator[CandidateBatch]:
    """What each step is shown, made ahead of it as in `load_batches`.

    Parameters
    ----------
    taught : float32 [N, 3] or None
        Probabilities of the classes of each candidate, to be learned in place of its label and by one layer alone; how
        often it is shown still goes by the label.

    Raises
    ------
    PatchIndexError
        There is no figure among the candidates, or nothing else; or the domains of slides matter, and one is not known.
    """
    labels = np.array([candidate.label for candidate in candidates.candidates])
    by_domain = settings.balance_domains or settings.auxiliary_domains
    domains = _domains(candidates) if by_domain else np.zeros(len(labels), np.str_)
    auxiliary = np.isin(domains, settings.auxiliary_domains)
    outside, inside = f" outside {_AUXILIARY}" if settings.auxiliary_domains else "", f" of {_AUXILIARY}"
    orders = []
    for size, among, where in zip(settings.batch_parts, (~auxiliary, auxiliary), (outside, inside), strict=False):
        pools = {name: np.flatnonzero((labels == name) & among) for name in CLASSES}
        _refuse_one_class(pools, candidates.folder, where)
        own = settings.model_copy(update={"batch_size": size})
        orders.append(draws(pools, own, domains if settings.balance_domains else None))
    order = [list(itertools.chain(*some)) for some in zip(*orders, strict=True)]
    loaded = load_batches(_Shown(candidates, settings, taught), order, settings.workers)
    return (CandidateBatch(*parts) for parts in loaded)


def _refuse_one_class(pools: dict[str, NDArray[np.int64]], folder: Path, where: str) -> None:
    if not len(pools[FIGURE]) or len(pools[FIGURE]) == sum(map(len, pools.values())):
        missing = "nothing but mitotic figures" if len(pools[FIGURE]) else "no mitotic figure"
        raise PatchIndexError(
            f"{folder}: {missing} among the candidates{where}, so there is nothing to tell apart. "
            "Add marked slides, or lower verifier.score_floor."
        )


def _domains(candidates: CandidateSet) -> NDArray[np.str_]:
    for name, slide in candidates.slides.items():
        if not slide.domain:
            raise PatchIndexError(
                f"{candidates.folder}: nothing says of which domain the slide {name} is. Collect the candidates "
                "anew with --domain, or leave verifier.balance_domains and auxiliary_domains off."
            )
    return np.array([candidates.slides[candidate.slide_id].domain for candidate in candidates.candidates])


@dataclass(frozen=True)
class _Shown(Dataset[tuple[Tensor, int | Tensor, int]]):
    """Candidates as they are shown, asked for by (row, how often it was shown before): parts of a `CandidateBatch`."""

    candidates: CandidateSet
    settings: VerifierConfig
    taught: NDArray[np.float32] | None

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, int | Tensor, int]:
        image = torch.from_numpy(self._item(*draw))
        if self.taught is not None:
            return image, torch.from_numpy(self.taught[draw[0]]), -1
        candidate = self.candidates.candidates[draw[0]]
        head = self._head_of.get(self.candidates.slides[candidate.slide_id].domain, -1)
        return image, CLASSES.index(candidate.label), head

    def _item(self, row: int, time: int) -> NDArray[np.uint8]:
        """A crop as the network sees it; what it is depends on (seed, row, time) alone."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, row, time])
        seed = int(rng.integers(2**32))
        crop = self._mixed(self._rescaled(self._crop(row), seed), row, seed)
        turned, _ = augment(crop, np.zeros(crop.shape[:2], np.uint8), settings.augment, seed)
        shift = min(settings.shift, (len(crop) - settings.crop) // 2)
        x, y = rng.integers(-shift, shift + 1, 2).tolist()
        return as_scanned(centre(np.roll(turned, (y, x), axis=(0, 1)), settings.crop), settings, seed)

    def _crop(self, row: int) -> NDArray[np.uint8]:
        if row in self._kept:
            return self._kept[row]
        crop = self.candidates.crop(self.candidates.candidates[row])
        crop.flags.writeable = False
        if len(self._kept) < _KEPT_BYTES // crop.nbytes // max(1, self.settings.workers):
            self._kept[row] = crop
        return crop

    def _rescaled(self, crop: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """The middle of a crop as if scanned at another µm/px: of one size, whatever was drawn."""
        jitter = self.settings.resolution_jitter
        if not jitter:
            return crop
        side = int(len(crop) / (1 + jitter))
        window = centre(crop, window_side(side, jitter, stream(seed, RESOLUTION)))
        return resample(window, np.zeros(window.shape[:2], np.uint8), side)[0]

    def _mixed(self, crop: NDArray[np.uint8], row: int, seed: int) -> NDArray[np.uint8]:
        """The crop with amplitudes of one of another case, as often as the settings say."""
        rng = stream(seed, FOURIER)
        if rng.random() >= self.settings.fourier_share:
            return crop
        donor = centre(self._crop(self._donors.choose(row, rng)), len(crop))
        return mix_amplitudes(crop, donor, rng.random(), self.settings.fourier_beta)

    @cached_property
    def _head_of(self) -> dict[str, int]:
        return head_of(self.candidates, self.settings)

    @cached_property
    def _kept(self) -> dict[int, NDArray[np.uint8]]:
        """Crops that were read before."""
        return {}

    @cached_property
    def _donors(self) -> Donors:
        cases = tuple(candidate.case_id for candidate in self.candidates.candidates)
        return Donors(("",) * len(cases), cases)


def draws(
    pools: dict[str, NDArray[np.int64]], settings: VerifierConfig, domains: NDArray[np.str_] | None = None
) -> Iterator[list[tuple[int, int]]]:
    """Which candidates each step shows, as (row, how often it was shown before).

    Each class is gone through in an order of its own, drawn anew each time it is through, so that no candidate is
    shown twice before all others of its class were. Look-alikes and others stand in for each other where there is
    none of one.

    Parameters
    ----------
    domains : str [N] or None
        The domain of each row. Where it is given, of each class as many are of a domain as of the figures, on average,
        and each domain of a class is gone through by itself. What is of a domain without figures is left out, unless
        there is nothing else of its class.
    """
    n_figures = round(settings.figure_share * settings.batch_size)
    n_look_alikes = min(round(settings.look_alike_share * settings.batch_size), settings.batch_size - n_figures)
    if not len(pools[LOOK_ALIKE]):
        n_look_alikes = 0
    elif not len(pools[OTHER]):
        n_look_alikes = settings.batch_size - n_figures
    n_others = settings.batch_size - n_figures - n_look_alikes
    numbers = {FIGURE: n_figures, LOOK_ALIKE: n_look_alikes, OTHER: n_others}
    orders = {
        name: _order(pools[name], [settings.seed, CLASSES.index(name)], domains, pools[FIGURE])
        for name, number in numbers.items()
        if number
    }
    for _ in range(settings.steps):
        yield [next(order) for name, order in orders.items() for _ in range(numbers[name])]


def _order(
    rows: NDArray[np.int64], seed: list[int], domains: NDArray[np.str_] | None, figures: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Rows without end, of each domain as often as it has figures."""
    if domains is None or not np.isin(domains[rows], domains[figures]).any():
        return _rounds(rows, seed)
    names = sorted(set(domains[rows]) & set(domains[figures]))
    n_figures = np.array([(domains[figures] == name).sum() for name in names])
    parts = [_rounds(rows[domains[rows] == name], [*seed, number]) for number, name in enumerate(names)]
    rng, shares = np.random.default_rng(seed), n_figures / n_figures.sum()
    return (next(parts[rng.choice(len(parts), p=shares)]) for _ in itertools.count())


def _rounds(rows: NDArray[np.int64], seed: list[int]) -> Iterator[tuple[int, int]]:
    time = 0
    while True:
        order = np.random.default_rng([*seed, time]).permutation(rows)
        yield from ((row, time) for row in order.tolist())
        time += 1
