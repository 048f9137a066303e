"""What the network is penalised for: overlap (Dice) and weighted cross-entropy.

A loss takes logits float [B, C, H, W], a mask int64 [B, H, W] with the class of each pixel or 255 (ignore), and class
weights float [C]; it gives a scalar. New losses: write such a function and add it to `LOSSES`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LOSSES", "class_weights", "cross_entropy", "dice", "dice_cross_entropy"]

IGNORE = 255
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def class_weights(n_pixels: Sequence[int], max_weight: float) -> Tensor:
    """Inverse class frequency relative to the commonest class, capped; a class without pixels gets the cap.

    Parameters
    ----------
    n_pixels : sequence of int
        Pixels of each class.
    max_weight : float
        Cap. Without it 1 pixel in 1,000 weighs as much as all others together, and every dark nucleus fires.

    Returns
    -------
    float32 [C], at least 1.
    """
    if not sum(n_pixels):
        raise ValueError("class weights need at least one counted pixel")
    counts = torch.tensor(n_pixels, dtype=torch.float64)
    return (counts.max() / counts.clamp(min=1)).clamp(max=max(max_weight, 1.0)).float()


def cross_entropy(logits: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each pixel times the weight of its true class, over the sum of these weights.

    0 where every pixel is to be ignored.
    """
    weights = weights.to(logits.dtype)
    loss = functional.cross_entropy(logits, mask, weights, ignore_index=IGNORE, reduction="sum")
    valid = mask != IGNORE
    return loss / weights[mask[valid]].sum().clamp(min=1e-6)


def dice(logits: Tensor, mask: Tensor, weights: Tensor, smooth: float = 50.0) -> Tensor:  # noqa: ARG001 (one signature for all losses)
    """Soft Dice loss over the whole batch, mean over the classes after background; `weights` is not used.

    ``1 - (2 * overlap + s) / (predicted + true + s)`` is 0 on a batch without figures when nothing fires, and rises
    with every pixel that does: `smooth` (pixels, about one nucleus at 0.5 µm/px) only sets how fast.

    References
    ----------
    Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv 1606.04797 (there with squared terms).
    """
    valid = (mask != IGNORE).unsqueeze(1)
    probability = logits.softmax(dim=1)[:, 1:] * valid
    classes = torch.arange(1, logits.shape[1], device=mask.device).view(1, -1, 1, 1)
    truth = (mask.unsqueeze(1) == classes).to(probability.dtype)
    axes = (0, 2, 3)
    overlap = (probability * truth).sum(axes)
    total = probability.sum(axes) + truth.sum(axes)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def dice_cross_entropy(logits: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Sum of `dice` and `cross_entropy`."""
    return dice(logits, mask, weights) + cross_entropy(logits, mask, weights)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dice": dice, "dice+ce": dice_cross_entropy}
