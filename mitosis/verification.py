"""The second stage: learn to tell candidates apart, and give each on a slide its final score."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mitosis.candidate_batches import candidate_batches, head_of
from mitosis.config import VerifierConfig
from mitosis.crops import CLASSES, CandidateSet, centre, read_crops
from mitosis.descent import Descent
from mitosis.detections import Detections
from mitosis.engines import to_input
from mitosis.looks import BATCH, score_batches
from mitosis.rebalance import refit_head
from mitosis.runtime import choose_device, choose_dtype
from mitosis.slides import Slide
from mitosis.stain import StainLevels
from mitosis.symmetry import tie_orientations, untie_orientations
from mitosis.threads import in_threads
from mitosis.verifier import N_CLASSES, Classifier, Verifier

__all__ = ["probabilities", "train_verifier", "verify"]

_READERS = 4  # threads that read crops where a GPU is so fast that it waits for them
_WARMUP = 0.05
_BLOCK = 2048.0  # level-0 px


def verify(
    slide: Slide,
    candidates: Detections,
    network: Verifier,
    settings: VerifierConfig,
    stain: StainLevels | None,
    *,
    views: int = 1,
    batch_size: int | None = None,
    workers: int = 1,
) -> Detections:
    """The candidates of a slide with the scores that both stages give them, not calibrated, sorted.

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
    batch_size : int or None
        Crops that are read, and looked at, together; None: 64, shared out to the threads that ask at once.
    workers : int
        Threads that read crops ahead of the network. A processor has no use for more than one, a GPU gets four or more.

    Raises
    ------
    SlideError
        The slide is far coarser than the second stage needs, or cannot be read any more.
    """
    ordered = candidates[_by_place(candidates.xy)]
    batch_size = batch_size or BATCH // network.in_flight

    def read(start: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        some = ordered[start : start + batch_size]
        return read_crops(slide, some.xy, settings.mpp, settings.crop, stain), some.score

    n = max(workers, _READERS) if _device(network).type == "cuda" else min(workers, 1)
    batches = in_threads(read, range(0, len(ordered), batch_size), n, ahead=n)
    scores = score_batches(network, batches, settings, views, batch_size)
    return Detections(ordered.xy, scores, ordered.area_um2).sorted()


def _by_place(xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """An order in which neighbours follow each other: a slide keeps the tiles of a block, not those of a whole row."""
    blocks = np.floor(xy / _BLOCK)
    return np.lexsort((*xy.T, *blocks.T))


def train_verifier(
    candidates: CandidateSet,
    settings: VerifierConfig,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
    *,
    taught: NDArray[np.float32] | None = None,
) -> Verifier:
    """Train each member on candidates, with a seed of its own; gives the moving averages of their weights.

    Parameters
    ----------
    candidates : CandidateSet
        With crops at the µm/px of the settings.
    on_step : callable
        Told (step, loss) after each step; the steps of the members are counted on.
    taught : float32 [N, 3] or None
        Probabilities of the classes of each candidate, as another network sees them (`probabilities`), to be learned in
        place of the labels: distillation, Hinton et al., arXiv 1503.02531.

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
        told = partial(_count_on, on_step, number * settings.steps)
        verifier.members[number] = _train_member(candidates, own, told, taught)
    return verifier


def _count_on(on_step: Callable[[int, float], None], done: int, step: int, loss: float) -> None:
    on_step(done + step, loss)


def _train_member(
    candidates: CandidateSet,
    settings: VerifierConfig,
    on_step: Callable[[int, float], None],
    taught: NDArray[np.float32] | None,
) -> Classifier:
    batches, device = candidate_batches(candidates, settings, taught), choose_device()
    torch.manual_seed(settings.seed)
    plain = Classifier(settings.width, settings.crop, settings.transformer)
    if settings.auxiliary_domains and taught is None:
        n_heads = 2 + max(head_of(candidates, settings).values())
        plain.last = nn.Linear(plain.last.in_features, n_heads * N_CLASSES)
    plain = plain.to(device)
    network = tie_orientations(copy.deepcopy(plain), settings.symmetry).to(memory_format=torch.channels_last)
    warmup_steps = math.ceil(_WARMUP * settings.steps)
    advice = "Train it anew with a lower verifier.learning_rate."
    descent = Descent(network, copy.deepcopy(network), settings, warmup_steps, "Second stage", advice)
    dtype = choose_dtype(settings.precision, device)
    network.train()
    for step, batch in enumerate(batches, 1):
        images, labels, heads = (part.to(device, non_blocking=True) for part in batch)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            logits = network(to_input(images))
        on_step(step, descent.step(step, _loss(logits.float(), labels, heads)))
    average = _keep_heads(untie_orientations(descent.average, plain, settings.symmetry))
    if settings.smote and taught is None:
        _rebalance(average, candidates, settings)
    return average


def _loss(logits: Tensor, labels: Tensor, heads: Tensor) -> Tensor:
    """Mean of the cross-entropies of the last head, which is for all candidates, and of the heads of their own."""
    each = logits.view(len(logits), -1, N_CLASSES)
    own = each[torch.arange(len(heads), device=heads.device), heads]
    return (functional.cross_entropy(own, labels) + functional.cross_entropy(each[:, -1], labels)) / 2


@torch.no_grad()
def _keep_heads(network: Classifier) -> Classifier:
    """Leave the mean of all heads but that of auxiliary domains, one layer of three outputs; gives the same object."""
    last = network.last
    if last.out_features > N_CLASSES:
        network.last = nn.Linear(last.in_features, N_CLASSES).to(last.weight)
        for name, values in last.named_parameters():
            heads = values.view(-1, N_CLASSES, *values.shape[1:])
            network.last.get_parameter(name).copy_(torch.cat([heads[:-2], heads[-1:]]).mean(dim=0))
    return network


@torch.no_grad()
def _rebalance(network: Classifier, candidates: CandidateSet, settings: VerifierConfig) -> None:
    """Learn the last layer anew on the features of all labelled candidates, as they are, filled up by SMOTE.

    Those of auxiliary domains, whose labels do not count, have no part in it.
    """
    own = candidates.where(lambda _, slide: slide.domain not in settings.auxiliary_domains)
    rows = [candidate for candidate in own.candidates if candidate.label in CLASSES]
    device = _device(network)
    batches = _batches_of(replace(candidates, candidates=tuple(rows)), settings, device)
    features = np.concatenate([network.features(images).cpu().numpy() for images in batches])
    refit_head(network.last.cpu(), features, [CLASSES.index(row.label) for row in rows], settings.seed)
    network.to(device)


@torch.no_grad()
def probabilities(network: Verifier, candidates: CandidateSet, settings: VerifierConfig) -> NDArray[np.float32]:
    """Probabilities of the classes of each candidate as a network that was trained by `settings` sees it, [N, 3]."""
    batches = _batches_of(candidates, settings, _device(network))
    return np.concatenate([network(images).softmax(dim=1).cpu().numpy() for images in batches])


def _batches_of(candidates: CandidateSet, settings: VerifierConfig, device: torch.device) -> Iterator[Tensor]:
    """All candidates as they are, float32 [B, 3, side, side]."""
    rows = candidates.candidates
    for start in range(0, len(rows), BATCH):
        crops = centre(np.stack([candidates.crop(row) for row in rows[start : start + BATCH]]), settings.crop)
        yield to_input(torch.from_numpy(np.ascontiguousarray(crops)).to(device))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
