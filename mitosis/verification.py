"""The second stage: learn to tell candidates apart, and give each on a slide its final score."""

import copy
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor, nn
from torch.nn import functional

from mitosis.candidate_batches import candidate_batches
from mitosis.config import VerifierConfig
from mitosis.crops import CLASSES, FIGURE, CandidateSet, centre, read_crops
from mitosis.descent import Descent
from mitosis.detections import SCORE_STEPS, Detections
from mitosis.engines import Engine, to_input
from mitosis.rebalance import refit_head
from mitosis.runtime import choose_device, choose_dtype, on_device
from mitosis.score_calibration import UNCALIBRATED, ScoreCalibration
from mitosis.slides import Slide
from mitosis.stain import StainLevels
from mitosis.threads import in_threads
from mitosis.verifier import Classifier, Verifier
from mitosis.views import add_views, average_views

__all__ = ["combine_scores", "final_scores", "score_crops", "train_verifier", "verify"]

_BATCH = 64
_READERS = 4  # threads that read crops where a GPU is so fast that it waits for them; elsewhere one
_WARMUP = 0.05


def verify(
    slide: Slide,
    candidates: Detections,
    network: Verifier,
    settings: VerifierConfig,
    stain: StainLevels | None,
    *,
    views: int = 1,
    calibration: ScoreCalibration = UNCALIBRATED,
    batch_size: int = _BATCH,
) -> Detections:
    """The candidates of a slide with the scores that the second stage gives them, sorted.

    A candidate's score hangs on its place and its pixels alone, so it does not depend on tiles, batches or on the other
    candidates. Only their crops are read: the cost is per candidate, not per mm².

    Parameters
    ----------
    candidates : Detections
        Of the first stage, merged.
    stain : StainLevels or None
        The slide's, where networks see slides brought to the usual ones.
    views : int
        Turned and mirrored views whose mean is taken, as in `average_views`, of what `members_from` and `views_from`
        ask for; the rest keeps what was said at first sight.
    calibration : ScoreCalibration
        What makes probabilities of the scores; by default nothing.
    batch_size : int
        Crops in memory at once.

    Raises
    ------
    SlideError
        The slide is far coarser than the second stage needs, or cannot be read any more.
    """
    ordered = candidates.sorted()

    def read(start: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        some = ordered[start : start + batch_size]
        return read_crops(slide, some.xy, settings.mpp, settings.crop, stain), some.score

    n = _READERS if _device(network).type == "cuda" else 1
    batches = in_threads(read, range(0, len(ordered), batch_size), n, ahead=n)
    scores = _scores(network, batches, settings, views, batch_size)
    return Detections(ordered.xy, calibration(scores), ordered.area_um2).sorted()


def final_scores(
    network: Verifier,
    crops: NDArray[np.uint8],
    first: NDArray[np.float64],
    settings: VerifierConfig,
    views: int = 1,
) -> NDArray[np.float64]:
    """Scores [N] of both stages together, not calibrated: what `verify` gives candidates with these crops.

    Parameters
    ----------
    crops : uint8 [N, side, side, 3]
    first : float64 [N]
        Scores of the first stage.
    """
    return _scores(network, [(crops, first)], settings, views)


class _Waiting(NamedTuple):
    """A candidate to be looked at: its row, its crop, its first score, and what was said of it at the last look."""

    row: int
    crop: NDArray[np.uint8]
    first: float
    said: NDArray[np.float32]


_Look = Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.float32]]
"""Probabilities [B, 1, 1] of crops [B, side, side, 3], and of what was said of them before."""


def _scores(
    network: Verifier,
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.float64]]],
    settings: VerifierConfig,
    views: int,
    batch_size: int = _BATCH,
) -> NDArray[np.float64]:
    """From crops and scores of the first stage to those of both: look after look, each at what is left of the last."""
    engine = _engine(network)
    looks: list[tuple[_Look, float]] = [
        (lambda crops, _: engine(crops), settings.views_from if views > 1 else math.inf)
    ]
    if views > 1:
        looks.append((lambda crops, upright: add_views(engine, crops, upright, views), math.inf))
    if settings.members_from and len(network.members) > 1:
        first = _engine(network.first())
        looks.insert(0, (lambda crops, _: first(crops), settings.members_from))
    waiting, scores = _unseen(batches), dict[int, float]()
    for look, least in looks:
        waiting = _look_at(waiting, look, least, scores, settings, batch_size)
    deque(waiting, maxlen=0)
    return np.array([scores[row] for row in range(len(scores))])


def _unseen(batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.float64]]]) -> Iterator[_Waiting]:
    rows, nothing = itertools.count(), np.zeros((1, 1), np.float32)
    for crops, first in batches:
        yield from (_Waiting(next(rows), crop, score, nothing) for crop, score in zip(crops, first, strict=True))


def _look_at(
    waiting: Iterator[_Waiting],
    look: _Look,
    least: float,
    scores: dict[int, float],
    settings: VerifierConfig,
    batch_size: int,
) -> Iterator[_Waiting]:
    """Look at what is waiting and note the scores; of what scores at least so much there is more to be seen.

    Candidates wait until they fill a batch: an engine keeps some 3 MB for each size of batch that it met.
    """
    while some := list(itertools.islice(waiting, batch_size)):
        crops = np.stack([one.crop for one in some])
        said = look(crops, np.stack([one.said for one in some]))
        final = combine_scores(said[:, 0, 0], np.array([one.first for one in some]), settings)
        scores.update(zip([one.row for one in some], final.tolist(), strict=True))
        for place in np.flatnonzero(final >= least).tolist():
            yield some[place]._replace(crop=crops[place].copy(), said=said[place])


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
    network: Verifier, crops: NDArray[np.uint8], views: int = 1, batch_size: int = _BATCH
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
    engine = average_views(_engine(network), views)
    parts = [engine(crops[start : start + batch_size])[:, 0, 0] for start in range(0, len(crops), batch_size)]
    return np.concatenate([np.empty(0), *parts])


def _engine(network: Verifier) -> Engine:
    """Run the network in float32 as if it gave a map of one pixel, so that views are averaged as those of tiles are."""
    network.eval().to(memory_format=torch.channels_last)

    def work(crops: Tensor) -> Tensor:
        return cast(Tensor, network(to_input(crops)).softmax(dim=1)[:, CLASSES.index(FIGURE)])

    score = on_device(work, _device(network), exact=True)

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return score(np.ascontiguousarray(crops))[:, None, None]

    return run


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def train_verifier(
    candidates: CandidateSet,
    settings: VerifierConfig,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Verifier:
    """Train each member on candidates, with a seed of its own; gives the moving averages of their weights.

    Parameters
    ----------
    on_step : callable
        Told (step, loss) after each step; the steps of the members are counted on.

    Raises
    ------
    PatchIndexError
        There is no figure among the candidates, or nothing else.
    ModelError
        Loss or gradients stay non-finite.
    """
    verifier = Verifier.from_config(settings).eval()
    for number in range(settings.members):
        own = settings.model_copy(update={"seed": settings.seed + number})
        verifier.members[number] = _train_member(candidates, own, partial(_count_on, on_step, number * settings.steps))
    return verifier


def _count_on(on_step: Callable[[int, float], None], done: int, step: int, loss: float) -> None:
    on_step(done + step, loss)


def _train_member(
    candidates: CandidateSet, settings: VerifierConfig, on_step: Callable[[int, float], None]
) -> Classifier:
    batches, device = candidate_batches(candidates, settings), choose_device()
    torch.manual_seed(settings.seed)
    network: Classifier = Classifier(settings.width, settings.crop, settings.transformer).to(  # type: ignore[call-overload]  # torch types no memory_format
        device=device, memory_format=torch.channels_last
    )
    warmup_steps = math.ceil(_WARMUP * settings.steps)
    advice = "Train it anew with a lower verifier.learning_rate."
    descent = Descent(network, copy.deepcopy(network), settings, warmup_steps, "Second stage", advice)
    dtype = choose_dtype(settings.precision, device)
    network.train()
    for step, (images, labels) in enumerate(batches, 1):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            logits = network(to_input(images.to(device, non_blocking=True)))
        loss = functional.cross_entropy(logits.float(), labels.to(device, non_blocking=True))
        on_step(step, descent.step(step, loss))
    average = descent.average.eval()
    if settings.smote:
        _rebalance(average, candidates, settings)
    return average


@torch.no_grad()
def _rebalance(network: Classifier, candidates: CandidateSet, settings: VerifierConfig) -> None:
    """Learn the last layer anew on the features of all labelled candidates, as they are, filled up by SMOTE."""
    rows = [candidate for candidate in candidates.candidates if candidate.label in CLASSES]
    device, features = _device(network), []
    for start in range(0, len(rows), _BATCH):
        crops = np.stack([candidates.crop(row) for row in rows[start : start + _BATCH]])
        images = torch.from_numpy(np.ascontiguousarray(centre(crops, settings.crop)))
        features.append(network.features(to_input(images.to(device))).cpu().numpy())
    refit_head(network.last.cpu(), np.concatenate(features), [CLASSES.index(row.label) for row in rows], settings.seed)
    network.to(device)
