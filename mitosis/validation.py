"""What is looked at before training and during it: whether the patches can be learned from, and how good it gets."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mitosis.config import Config
from mitosis.detections import concatenate, find_peaks, merge
from mitosis.engines import torch_engine
from mitosis.errors import ConfigError, PatchIndexError
from mitosis.geometry import area_mm2
from mitosis.losses import LOSSES
from mitosis.patches import Patch, PatchIndex
from mitosis.ranking import SlideScores
from mitosis.sampling import PatchPool, epochs
from mitosis.splits import TRAIN, VAL

__all__ = ["Metrics", "check_patches", "read_normalised", "score_patches"]


@dataclass(frozen=True)
class Metrics:
    """One look at the validation cases.

    Attributes
    ----------
    loss : float
        Mean training loss since the last look.
    f1, precision, recall : float
        Detection on the validation cases (on the training cases where there are none) at `threshold`, which is the one
        that gives the best F1 there.
    count_threshold : float
        The one that gives as many detections as figures there.
    skipped : int
        Steps so far that were left out because a loss or gradient was not finite.
    """

    step: int
    loss: float
    f1: float
    precision: float
    recall: float
    threshold: float
    count_threshold: float
    learning_rate: float
    skipped: int = 0


def check_patches(index: PatchIndex, config: Config) -> None:
    """Say before the first step what would go wrong in it.

    Raises
    ------
    PatchIndexError
        The patches cannot be learned from with these settings.
    ConfigError
        There is no such sampler or loss, or a batch is too small for the sampler.
    """
    if config.train.loss not in LOSSES:
        raise ConfigError(f"train.loss = {config.train.loss!r}: unknown. Known: {', '.join(sorted(LOSSES))}.")
    index.check_splits()
    folder = index.folder
    unmarked = sorted({patch.slide_id for patch in index.patches if not patch.mask})
    if unmarked:
        raise PatchIndexError(f"{folder}: no masks for {', '.join(unmarked[:3])}. Extract with --annotations.")
    if not any(patch.n_mitotic and patch.split == TRAIN for patch in index.patches):
        raise PatchIndexError(
            f"{folder}: no mitotic figure in the training cases, so there is nothing to learn. "
            "Add marked slides, or choose other validation cases with --val-cases."
        )
    if any(patch.split == VAL for patch in index.patches) and not any(
        patch.n_mitotic and patch.split == VAL for patch in index.patches
    ):
        raise PatchIndexError(
            f"{folder}: no mitotic figure in the validation cases, so no threshold can be chosen. "
            "Choose other ones with --val-cases."
        )
    size = min(patch.size for patch in index.patches)
    if config.train.crop > size:
        raise PatchIndexError(f"{folder}: patches of {size} px are smaller than train.crop = {config.train.crop}.")
    next(epochs(PatchPool.of(index.where(lambda patch: patch.split == TRAIN)), config.train))
    if size % config.network.stride:
        raise PatchIndexError(
            f"{folder}: patches of {size} px do not fit a network of depth {config.network.depth} and stem "
            f"{config.network.stem}."
        )


def score_patches(
    network: nn.Module,
    index: PatchIndex,
    score_floor: float,
    merge_um: float,
    normalise_stain: bool,
    on_patch: Callable[[Patch, NDArray[np.float32]], None] = lambda _patch, _probability: None,
) -> list[SlideScores]:
    """Detections of `network` on the tiles of `index`, and the marked figures, slide by slide.

    Tiles are seen one by one, without their surroundings, so this is a little worse than a count of the whole slide.
    The area of a slide is that of its tiles, glass between the tissue included.
    `on_patch` is told each tile and its probability map, float32 [size, size].
    """
    engine = torch_engine(network, next(network.parameters()).device)
    scores = []
    by_slide: dict[str, list[Patch]] = {}
    for patch in index.patches:
        if patch.on_grid:
            by_slide.setdefault(patch.slide_id, []).append(patch)
    for slide_id, patches in by_slide.items():
        found = []
        for patch in patches:
            probability = engine(read_normalised(index, patch, normalise_stain)[np.newaxis])[0]
            on_patch(patch, probability)
            found.append(find_peaks(probability, patch.box, patch.box, patch.mpp, patch.slide_mpp, score_floor))
        first, area = patches[0], sum(area_mm2(patch.size**2, patch.mpp) for patch in patches)
        candidates = merge(concatenate(found), first.slide_mpp, merge_um)
        scores.append(
            SlideScores(
                slide_id,
                first.slide_mpp,
                index.figures(slide_id),
                candidates,
                case_id=first.case_id,
                domain=first.domain,
                area_mm2=area,
            )
        )
    return scores


def read_normalised(index: PatchIndex, patch: Patch, normalise_stain: bool) -> NDArray[np.uint8]:
    """A patch as a network sees it, uint8 [size, size, 3]; with `normalise_stain` brought to the usual stain."""
    image = index.read_image(patch)
    return index.stain(patch).normalise(image) if normalise_stain else image
