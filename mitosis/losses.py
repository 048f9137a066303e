"""What the network is penalised for: missed overlap (Dice, Tversky) and surprise at each pixel (cross-entropy's kin).

A loss takes logits float [B, C, H, W], a mask [B, H, W] and class weights float [C]; it gives a scalar. The mask is
int64 (class of each pixel) or float, where a value from 0 to 1 is the probability that a pixel is a mitotic figure and
otherwise background; 255 is to be ignored in either. New losses: write such a function and add it to `LOSSES`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mitosis.masks import IGNORE

__all__ = ["LOSSES", "WEIGHTINGS", "class_weights", "cross_entropy", "dice", "focal", "top_k", "tversky"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _effective(n_pixels: Tensor) -> Tensor:
    beta, nucleus_px = 0.999, 200
    return -torch.expm1(n_pixels / nucleus_px * math.log(beta))  # without the factor 1 / (1 - beta) of all classes


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "inverse": lambda n_pixels: n_pixels,
    "effective": _effective,
    "none": torch.ones_like,
}
"""What the weight of a class is inverse to: a function of the pixels of each class, float [C]."""


def class_weights(n_pixels: Sequence[int], max_weight: float, weighting: str = "inverse") -> Tensor:
    """Weight of each class relative to the commonest one, capped.

    Parameters
    ----------
    n_pixels : sequence of int
        Pixels of each class; one without any gets the cap (1 with "none").
    max_weight : float
        Cap. Without it 1 pixel in 1,000 weighs as much as all others together, and every dark nucleus fires.
    weighting : str
        A name in `WEIGHTINGS`. "inverse": inverse frequency. "effective": inverse of the effective number
        ``(1 - beta ** n) / (1 - beta)`` of samples, beta 0.999: it grows up to 1,000. n is in nuclei of 200 pixels
        (50 µm² at 0.5 µm/px): neighbouring pixels are no independent samples, and counted singly they would take
        every class to that limit, so all weights to 1. "none": 1 for all.

    Returns
    -------
    float32 [C], at least 1.

    Raises
    ------
    ValueError
        There is no pixel at all.

    References
    ----------
    Cui, Jia, Lin, Song, Belongie: Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019,
    arXiv 1901.05555.
    """
    if not sum(n_pixels):
        raise ValueError("class weights need at least one counted pixel")
    counts = WEIGHTINGS[weighting](torch.tensor(n_pixels, dtype=torch.float64))
    return (counts.max() / counts).clamp(max=max(max_weight, 1.0)).float()


def cross_entropy(logits: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each pixel times the weight of its true class, over the sum of these weights.

    0 where every pixel is to be ignored.
    """
    weighted = _weighted(_truth(logits, mask), weights)
    return -(weighted * logits.log_softmax(dim=1)).sum() / _total(weighted)


def focal(logits: Tensor, mask: Tensor, weights: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy times ``(1 - probability of the true class) ** gamma``: easy pixels hardly count.

    Divided by the sum of the weights, so that gamma 0 is `cross_entropy`.

    References
    ----------
    Lin, Goyal, Girshick, He, Dollár: Focal Loss for Dense Object Detection, ICCV 2017, arXiv 1708.02002.
    """
    weighted = _weighted(_truth(logits, mask), weights)
    log_probability = logits.log_softmax(dim=1)
    return -(weighted * (1 - log_probability.exp()) ** gamma * log_probability).sum() / _total(weighted)


def top_k(logits: Tensor, mask: Tensor, weights: Tensor, share: float = 0.01) -> Tensor:
    """Mean over the `share` of the batch's valid pixels with the highest weighted cross-entropy (hard example mining).

    Divided by the mean weight of all valid pixels, so that share 1 is `cross_entropy`. (The mean weight of the chosen
    ones would make the loss jump when a pixel of another class takes the place of one.)

    References
    ----------
    Shrivastava, Gupta, Girshick: Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016,
    arXiv 1604.03540. ``TopKLoss`` in nnU-Net (Isensee et al., Nature Methods 2021) takes a share of 0.1; figures are so
    rare that a tenth of the pixels is still nearly all easy ones.
    """
    truth = _truth(logits, mask)
    weighted = _weighted(truth, weights)
    loss = -(weighted * logits.log_softmax(dim=1)).sum(dim=1).flatten()  # 0, the lowest there is, where ignored
    n_valid = float(truth.sum())
    k = max(1, round(share * n_valid))
    return loss.topk(k, sorted=False).values.sum() / k * n_valid / _total(weighted)


def tversky(
    logits: Tensor,
    mask: Tensor,
    weights: Tensor,  # noqa: ARG001 (one signature for all losses)
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 25.0,
) -> Tensor:
    """Tversky loss over the whole batch, mean over the classes after background; `weights` is not used.

    ``1 - (TP + s) / (TP + alpha * FP + beta * FN + s)``, where beta above alpha makes a missed pixel dearer than a
    false one. On a batch without figures it is 0 when nothing fires, and rises with every pixel that does: `smooth`
    (pixels) only sets how fast.

    References
    ----------
    Salehi, Erdogmus, Gholipour: Tversky loss function for image segmentation, MLMI 2017, arXiv 1706.05721.
    """
    truth = _truth(logits, mask)
    probability = logits.softmax(dim=1)[:, 1:] * truth.sum(dim=1, keepdim=True)
    truth = truth[:, 1:]
    axes = (0, 2, 3)
    overlap = (probability * truth).sum(axes)
    false_positive, false_negative = probability.sum(axes) - overlap, truth.sum(axes) - overlap
    return (1 - (overlap + smooth) / (overlap + alpha * false_positive + beta * false_negative + smooth)).mean()


def dice(logits: Tensor, mask: Tensor, weights: Tensor, smooth: float = 50.0) -> Tensor:
    """Soft Dice loss, the `tversky` loss with both kinds of error at a half; `weights` is not used.

    ``1 - (2 * overlap + s) / (predicted + true + s)``; `smooth` is about one nucleus at 0.5 µm/px.

    References
    ----------
    Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv 1606.04797 (there with squared terms).
    """
    return tversky(logits, mask, weights, alpha=0.5, beta=0.5, smooth=smooth / 2)


def _truth(logits: Tensor, mask: Tensor) -> Tensor:
    """Share of each class in each pixel, float [B, C, H, W]; its sum over classes is 1 where valid, 0 where ignored."""
    n_classes = logits.shape[1]
    ignored = mask == IGNORE
    if not (ignored | ((mask >= 0) & (mask <= n_classes - 1))).all():
        raise ValueError(
            f"masks for {n_classes} classes hold 0 to {n_classes - 1} or {IGNORE} to ignore, but got others"
        )
    classes = torch.arange(n_classes, dtype=logits.dtype, device=logits.device).view(1, -1, 1, 1)
    return (1 - (mask.to(logits.dtype).unsqueeze(1) - classes).abs()).clamp(min=0)  # IGNORE is far from every class


def _weighted(truth: Tensor, weights: Tensor) -> Tensor:
    return truth * weights.to(truth).view(1, -1, 1, 1)


def _total(weighted: Tensor) -> Tensor:
    return weighted.sum().clamp(min=1e-6)


def _sum(*losses: Loss) -> Loss:
    return lambda logits, mask, weights: torch.stack([loss(logits, mask, weights) for loss in losses]).sum()


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "dice": dice,
    "dice+ce": _sum(dice, cross_entropy),
    "tversky": tversky,
    "focal": focal,
    "topk": top_k,
    "dice+topk": _sum(dice, top_k),
    "dice+focal": _sum(dice, focal),
}
