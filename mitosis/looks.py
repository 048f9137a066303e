"""Look after look at candidates: which member of the second stage is asked about which, and what both stages say."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax
from torch import Tensor

from mitosis.config import VerifierConfig
from mitosis.crops import CLASSES, FIGURE
from mitosis.detections import SCORE_STEPS
from mitosis.engines import Engine, to_input
from mitosis.runtime import on_device
from mitosis.threads import in_threads
from mitosis.verifier import Verifier
from mitosis.views import add_views, average_views

__all__ = ["BATCH", "combine_scores", "crop_engine", "final_scores", "in_batches", "score_batches", "score_crops"]

BATCH = 64
"""Crops that are looked at at once."""

Crops = NDArray[np.uint8]
Said = NDArray[np.float32]


def final_scores(
    network: Verifier,
    crops: Crops,
    first: NDArray[np.float64],
    settings: VerifierConfig,
    views: int = 1,
) -> NDArray[np.float64]:
    """Scores [N] of both stages together, not calibrated: what `mitosis.verification.verify` gives these candidates.

    Parameters
    ----------
    crops : uint8 [N, side, side, 3]
    first : float64 [N]
        Scores of the first stage.
    """
    return score_batches(network, [(crops, first)], settings, views, BATCH // network.in_flight)


def score_batches(
    network: Verifier,
    batches: Iterable[tuple[Crops, NDArray[np.float64]]],
    settings: VerifierConfig,
    views: int,
    batch_size: int,
) -> NDArray[np.float64]:
    """Scores [N] of both stages, of batches of crops and first scores: look after look, each at what the last left.

    Batches are taken as they are needed, and may be of any size.
    """
    waiting, scores = _unseen(batches), dict[int, float]()
    for look, least in _looks(network, settings, views):
        looked = _look_at(waiting, look, settings, batch_size, network.in_flight)
        waiting = _unsettled(looked, least, scores)
    deque(waiting, maxlen=0)
    return np.array([scores[row] for row in range(len(scores))])


class _Waiting(NamedTuple):
    """A candidate to be looked at: its row, its crop, its first score, and what was said of it at the last look."""

    row: int
    crop: Crops
    first: float
    said: Said


class _Looked(NamedTuple):
    """Candidates that were looked at together, what was said of them, and their scores by it."""

    waiting: list[_Waiting]
    said: Said
    final: NDArray[np.float64]


_Look = Callable[[Crops, Said], Said]
"""What is said of crops [B, side, side, 3], given what was said at the last look: probabilities of a figure [B, 1, 1],
or by the first member alone the logarithms of the probabilities of all classes [B, 3]."""


def _looks(network: Verifier, settings: VerifierConfig, views: int) -> Iterator[tuple[_Look, float]]:
    """The looks, and from which score on there is another: by the first member, by the others too, at further views."""
    engine, views_from = crop_engine(network), settings.views_from if views > 1 else math.inf
    if settings.members_from and len(network.members) > 1:
        first, *others = (_run(member) for member in network.apart())
        yield lambda crops, _: first(crops), settings.members_from
        yield lambda crops, said: _pooled([said, *(other(crops) for other in others)]), views_from
    else:
        yield lambda crops, _: engine(crops), views_from
    if views > 1:
        yield lambda crops, upright: add_views(engine, crops, upright, views), math.inf


def _pooled(said: list[Said]) -> Said:
    """What members say together, as `Verifier` pools it: probabilities of a figure [B, 1, 1] of logarithms [B, 3]."""
    probability: Said = softmax(np.mean(said, axis=0), axis=1)[:, CLASSES.index(FIGURE), np.newaxis, np.newaxis]
    return probability


def _figure(said: Said) -> Said:
    """Probabilities of a figure [B] in what was said."""
    return said[:, 0, 0] if said.ndim == 3 else np.exp(said[:, CLASSES.index(FIGURE)])


def _unseen(batches: Iterable[tuple[Crops, NDArray[np.float64]]]) -> Iterator[_Waiting]:
    rows, nothing = itertools.count(), np.zeros((1, 1), np.float32)
    for crops, first in batches:
        yield from (_Waiting(next(rows), crop, score, nothing) for crop, score in zip(crops, first, strict=True))


def _look_at(
    waiting: Iterator[_Waiting], look: _Look, settings: VerifierConfig, batch_size: int, n_lanes: int
) -> Iterator[_Looked]:
    """Look at what is waiting, a batch after the other, or several at once by as many threads.

    Candidates wait until they fill a batch: an engine keeps some 3 MB for each size of batch that it met.
    """

    def work(some: list[_Waiting]) -> _Looked:
        said = look(np.stack([one.crop for one in some]), np.stack([one.said for one in some]))
        first = np.array([one.first for one in some])
        return _Looked(some, said, combine_scores(_figure(said), first, settings))

    batches = iter(lambda: list(itertools.islice(waiting, batch_size)), [])
    return in_threads(work, batches, n_lanes if n_lanes > 1 else 0, ahead=n_lanes)


def _unsettled(looked: Iterable[_Looked], least: float, scores: dict[int, float]) -> Iterator[_Waiting]:
    """Note the scores; of what scores at least so much there is more to be seen."""
    for waiting, said, final in looked:
        scores.update(zip([one.row for one in waiting], final.tolist(), strict=True))
        for place in np.flatnonzero(final >= least).tolist():
            yield waiting[place]._replace(crop=waiting[place].crop.copy(), said=said[place])


def combine_scores(
    probability: NDArray[Any], first: NDArray[np.float64], settings: VerifierConfig
) -> NDArray[np.float64]:
    """Final scores [N], whole multiples of 1e-4 from 1e-4 to 1, of the two stages' [N] each.

    Both scores are rounded before they are combined too: roots and log-odds would make more of the last bits of a small
    probability than of a large one. The weighted mean of log-odds is known as logarithmic opinion pool.

    References
    ----------
    Genest & Zidek: Combining probability distributions, Stat Sci 1986;1:114-135.
    """
    steps = np.maximum(np.rint(probability.astype(np.float64) * SCORE_STEPS), 1)
    if settings.combine == "geometric":
        steps = np.maximum(np.rint(np.sqrt(steps * SCORE_STEPS * first)), 1)
    elif settings.combine == "log_odds":
        each = (np.clip(score, 1, SCORE_STEPS - 1) / SCORE_STEPS for score in (np.rint(first * SCORE_STEPS), steps))
        weights = settings.first_weight, 1 - settings.first_weight
        odds = sum(weight * logit(score) for weight, score in zip(weights, each, strict=True))
        steps = np.maximum(np.rint(expit(odds) * SCORE_STEPS), 1)
    score: NDArray[np.float64] = steps / SCORE_STEPS
    return score


def score_crops(
    network: Verifier, crops: NDArray[np.uint8], views: int = 1, batch_size: int = BATCH
) -> NDArray[np.float64]:
    """Probability that a mitotic figure lies in the middle of each crop.

    Parameters
    ----------
    crops : uint8 [N, side, side, 3]
        At the network's µm/px; larger ones are cut to their middle by the caller.

    Returns
    -------
    float64 [N]
    """
    return in_batches(average_views(crop_engine(network), views), crops, batch_size)


def in_batches(engine: Engine, crops: NDArray[np.uint8], batch_size: int = BATCH) -> NDArray[np.float64]:
    """What an engine of `crop_engine` says of crops [N, side, side, 3]: probabilities of a figure, float64 [N]."""
    parts = [engine(crops[start : start + batch_size])[:, 0, 0] for start in range(0, len(crops), batch_size)]
    return np.concatenate([np.empty(0), *parts])


def crop_engine(network: Verifier) -> Engine:
    """Run the network as if it gave a map of one pixel, so that views are averaged as those of tiles are.

    It is made ready here, by the caller alone; then several threads may ask at once, if they may ask the network.
    """
    run = _run(network)
    return lambda crops: np.exp(run(crops)[:, CLASSES.index(FIGURE), np.newaxis, np.newaxis])


def _run(network: Verifier) -> Callable[[Crops], Said]:
    """Run the network in float32: crops [B, side, side, 3] to the logarithms of the classes' probabilities [B, 3]."""
    if network.run is not None:
        return network.run
    network.eval().to(memory_format=torch.channels_last)

    def work(crops: Tensor) -> Tensor:
        return cast(Tensor, network(to_input(crops)).log_softmax(dim=1))

    run = on_device(work, next(network.parameters()).device, exact=True)
    return lambda crops: run(np.ascontiguousarray(crops))
