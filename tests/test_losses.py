"""Losses: a contract over the registry, and what each promises."""

import math
from typing import get_args

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor
from torch.nn import functional

from mitosis.config import TrainConfig
from mitosis.losses import LOSSES, WEIGHTINGS, class_weights, cross_entropy, dice, focal, top_k, tversky

WEIGHTS = {2: torch.tensor([1.0, 20.0]), 3: torch.tensor([1.0, 20.0, 5.0])}


def _mask(classes: int = 2, ignore: float = 0.1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(2, 8, 8, generator=generator)
    mask = (chance < 0.3).long()
    if classes == 3:
        mask[chance > 0.8] = 2
    mask[torch.rand(2, 8, 8, generator=generator) < ignore] = 255
    return mask


def _noise(classes: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, classes, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))


def _logits(mask: Tensor, sharpness: float, classes: int = 2) -> Tensor:
    truth = torch.where(mask == 255, 0, mask)
    return (functional.one_hot(truth, classes).permute(0, 3, 1, 2) * 2.0 - 1) * sharpness


def _gradient(name: str, logits: Tensor, mask: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    LOSSES[name](logits, mask, WEIGHTS[logits.shape[1]]).backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", sorted(LOSSES))
class TestEveryLoss:
    def test_is_a_scalar_above_0(self, name: str, classes: int) -> None:
        loss = LOSSES[name](_noise(classes), _mask(classes), WEIGHTS[classes])
        assert loss.shape == ()
        assert math.isfinite(loss)
        assert loss > 0

    def test_gradient_is_right(self, name: str, classes: int) -> None:
        logits = _noise(classes, torch.float64).requires_grad_()
        mask = _mask(classes)
        assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, mask, WEIGHTS[classes]), logits)

    @pytest.mark.parametrize("size", [1e4, -1e4])
    @pytest.mark.parametrize("mixed", [False, True])
    def test_is_finite_for_extreme_logits(self, name: str, classes: int, size: float, mixed: bool) -> None:
        logits = torch.full((2, classes, 8, 8), size)
        logits[:, 1] *= -1
        if mixed:
            logits = torch.where(_noise(classes) > 0, logits, _noise(classes) * 1e-3)
        assert torch.isfinite(LOSSES[name](logits, _mask(classes), WEIGHTS[classes]))
        assert torch.isfinite(_gradient(name, logits, _mask(classes))).all()

    def test_what_is_ignored_does_not_matter(self, name: str, classes: int) -> None:
        mask = _mask(classes, ignore=0.4)
        ignored = (mask == 255).unsqueeze(1).expand(-1, classes, -1, -1)
        gradient = _gradient(name, _noise(classes), mask)
        assert (gradient[ignored] == 0).all()
        assert (gradient[~ignored] != 0).any()
        changed = torch.where(ignored, 100 * _noise(classes), _noise(classes))
        before, after = (LOSSES[name](logits, mask, WEIGHTS[classes]) for logits in (_noise(classes), changed))
        assert float(before) == pytest.approx(float(after))

    def test_perfect_prediction_costs_almost_nothing(self, name: str, classes: int) -> None:
        mask = _mask(classes)
        assert LOSSES[name](_logits(mask, 20.0, classes), mask, WEIGHTS[classes]) < 1e-3

    def test_order_of_the_batch_does_not_matter(self, name: str, classes: int) -> None:
        logits, mask = _noise(classes), _mask(classes)
        flipped = LOSSES[name](logits.flip(0), mask.flip(0), WEIGHTS[classes])
        torch.testing.assert_close(LOSSES[name](logits, mask, WEIGHTS[classes]), flipped)

    def test_firing_on_a_batch_without_figures_costs(self, name: str, classes: int) -> None:
        mask = torch.zeros(2, 64, 64, dtype=torch.long)
        quiet, firing = _logits(mask, 8.0, classes), _logits(mask + 1, 8.0, classes)
        rise = LOSSES[name](firing, mask, WEIGHTS[classes]) - LOSSES[name](quiet, mask, WEIGHTS[classes])
        assert rise > 0.9 / (classes - 1)

    @pytest.mark.parametrize("dtype", [torch.long, torch.float32])
    def test_a_batch_to_ignore_costs_nothing(self, name: str, classes: int, dtype: torch.dtype) -> None:
        mask = torch.full((2, 8, 8), 255, dtype=dtype)
        assert LOSSES[name](_noise(classes), mask, WEIGHTS[classes]) == 0
        assert (_gradient(name, _noise(classes), mask) == 0).all()

    def test_a_float_mask_of_whole_numbers_is_an_int_mask(self, name: str, classes: int) -> None:
        logits, mask = _noise(classes), _mask(classes)
        losses = [LOSSES[name](logits, kind, WEIGHTS[classes]) for kind in (mask, mask.float(), mask.double())]
        assert losses[0] == losses[1] == losses[2]

    def test_half_a_figure_costs_something_between_none_and_a_whole(self, name: str, classes: int) -> None:
        mask = _mask(classes).float()
        region = mask == 1
        costs = [
            float(LOSSES[name](_noise(classes), torch.where(region, share, mask), WEIGHTS[classes]))
            for share in (0.0, 0.5, 1.0)
        ]
        assert min(costs[0], costs[2]) < costs[1] < max(costs[0], costs[2])

    @pytest.mark.parametrize("value", [-1, 3, 254, -0.5, 2.5, math.nan])
    def test_refuses_a_mask_with_something_else(self, name: str, classes: int, value: float) -> None:
        mask = _mask(classes).to(torch.long if isinstance(value, int) else torch.float32)
        mask[1, 2, 3] = value
        with pytest.raises(ValueError, match=f"masks for {classes} classes hold 0 to {classes - 1} or 255"):
            LOSSES[name](_noise(classes), mask, WEIGHTS[classes])


@pytest.mark.parametrize("parts", [("dice", "ce"), ("dice", "topk"), ("dice", "focal")])
def test_a_compound_is_the_sum_of_its_parts(parts: tuple[str, str]) -> None:
    arguments = _noise(), _mask(), WEIGHTS[2]
    expected = sum(float(LOSSES[part](*arguments)) for part in parts)
    assert float(LOSSES["+".join(parts)](*arguments)) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_cross_entropy_agrees_with_torch_on_its_weighted_mean(classes: int) -> None:
    logits, mask = _noise(classes), _mask(classes)
    expected = functional.cross_entropy(logits, mask, WEIGHTS[classes], ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, mask, WEIGHTS[classes]), expected)


def test_cross_entropy_agrees_with_torch_on_soft_masks() -> None:
    share = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3))
    truth = torch.stack([1 - share, share], dim=1)
    expected = functional.cross_entropy(_noise(), truth, WEIGHTS[2], reduction="sum") / (1 - share + 20 * share).sum()
    torch.testing.assert_close(cross_entropy(_noise(), share, WEIGHTS[2]), expected)


def _monai(loss: type, **options: object) -> torch.nn.Module:
    return loss(include_background=False, softmax=True, batch=True, **options)


@pytest.mark.parametrize("kind", ["2 classes", "3 classes", "soft"])
def test_overlap_and_focal_losses_agree_with_monai(kind: str) -> None:
    classes = 3 if kind == "3 classes" else 2
    logits, mask, weights = _noise(classes), _mask(classes, ignore=0), WEIGHTS[classes]
    truth = functional.one_hot(mask, classes).permute(0, 3, 1, 2).float()
    if kind == "soft":
        mask = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3))
        truth = torch.stack([1 - mask, mask], dim=1)
    reference = _monai(DiceLoss, smooth_nr=50.0, smooth_dr=50.0)
    torch.testing.assert_close(dice(logits, mask, weights), reference(logits, truth))
    reference = _monai(TverskyLoss, alpha=0.3, beta=0.7, smooth_nr=25.0, smooth_dr=25.0)
    torch.testing.assert_close(tversky(logits, mask, weights), reference(logits, truth))
    reference = FocalLoss(gamma=2.0, weight=weights, use_softmax=True, reduction="none")
    total = (truth * weights.view(1, -1, 1, 1)).sum()
    torch.testing.assert_close(focal(logits, mask, weights), reference(logits, truth).sum() / total)


def _overlapping() -> tuple[Tensor, Tensor]:
    """Logits and mask with 32 px true positive, 128 px false positive, 96 px false negative."""
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[0, :8] = 1
    predicted = torch.zeros_like(mask)
    predicted[0, 6:] = 1
    return _logits(predicted, 50.0), mask


def test_dice_of_a_known_overlap() -> None:
    assert float(dice(*_overlapping(), WEIGHTS[2], smooth=0.0)) == pytest.approx(1 - 2 * 32 / (160 + 128), abs=1e-5)


def test_tversky_of_a_known_overlap_weighs_a_miss_by_beta() -> None:
    expected = 1 - (32 + 10) / (32 + 0.3 * 128 + 0.7 * 96 + 10)
    assert float(tversky(*_overlapping(), WEIGHTS[2], smooth=10.0)) == pytest.approx(expected, abs=1e-5)


def _ten_pixels() -> tuple[Tensor, Tensor]:
    """Nine of background, one figure, one ignored; the truth has p = 0.9, but 0.5 at the first and at the figure."""
    probability = torch.full((11,), 0.1)
    probability[[0, 9]] = 0.5
    probability[10] = 0.999
    mask = torch.tensor([0] * 9 + [1, 255]).view(1, 1, 11)
    return torch.stack([1 - probability, probability]).log().view(1, 2, 1, 11), mask


def test_focal_of_known_probabilities() -> None:
    easy, hard = 0.1**2 * 0.105361, 0.5**2 * 0.693147
    expected = (8 * easy + hard + 4 * hard) / (9 + 4)
    assert float(focal(*_ten_pixels(), torch.tensor([1.0, 4.0]))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("share", "weight", "expected"),
    [
        (0.1, 1.0, 0.693147),  # 1 of 10: the ignored pixel is neither counted nor chosen
        (0.2, 1.0, 0.693147),
        (0.5, 1.0, (2 * 0.693147 + 3 * 0.105361) / 5),
        (0.1, 4.0, 4 * 0.693147 / 1.3),  # the mean weight is (9 + 4) / 10
        (0.2, 4.0, (4 * 0.693147 + 0.693147) / 2 / 1.3),
        (0.01, 4.0, 4 * 0.693147 / 1.3),  # never fewer than one
    ],
)
def test_top_k_is_the_mean_of_the_hardest_pixels(share: float, weight: float, expected: float) -> None:
    loss = top_k(*_ten_pixels(), torch.tensor([1.0, weight]), share=share)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_easy_pixels_have_no_gradient_in_top_k() -> None:
    logits, mask = _ten_pixels()
    logits.requires_grad_()
    top_k(logits, mask, torch.tensor([1.0, 4.0])).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).any(dim=1).flatten().nonzero().flatten().tolist() == [9]


def test_focal_without_gamma_and_top_k_of_all_are_cross_entropy() -> None:
    arguments = _noise(), _mask(), WEIGHTS[2]
    torch.testing.assert_close(focal(*arguments, gamma=0.0), cross_entropy(*arguments))
    torch.testing.assert_close(top_k(*arguments, share=1.0), cross_entropy(*arguments))


@pytest.mark.parametrize(
    ("n_pixels", "expected"),
    [([990, 10], [1, 20]), ([900, 100], [1, 9]), ([3, 0], [1, 20]), ([50, 50, 25], [1, 1, 2])],
)
def test_class_weights_are_the_capped_inverse_frequency(n_pixels: list[int], expected: list[float]) -> None:
    assert class_weights(n_pixels, max_weight=20).tolist() == expected


@pytest.mark.parametrize(
    ("n_pixels", "expected"),
    [
        ([400, 200], [1, 1.999]),  # 1 + 0.999 nuclei against 1
        ([600, 400, 200], [1, 2.997001 / 1.999, 2.997001]),
        ([200_000_000, 200_000], [1, 1 / (1 - 0.999**1000)]),  # a million nuclei count as 1 / (1 - beta) = 1,000
        ([200_000_000, 20_000_000], [1, 1]),  # both have enough
        ([200_000_000, 200], [1, 20]),
        ([3, 0], [1, 20]),
    ],
)
def test_class_weights_by_effective_number_of_nuclei(n_pixels: list[int], expected: list[float]) -> None:
    assert class_weights(n_pixels, 20, "effective").tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_pixels", [[990, 10], [100, 0], [900, 90, 10]])
def test_class_weights_can_be_switched_off(n_pixels: list[int]) -> None:
    assert class_weights(n_pixels, 20, "none").tolist() == [1] * len(n_pixels)


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
def test_the_commonest_class_weighs_1_and_rarer_ones_no_less(weighting: str) -> None:
    weights = class_weights([100, 5_000, 800], 3.0, weighting)
    assert weights.dtype == torch.float32
    assert weights[0] >= weights[2] >= weights[1] == 1
    assert weights.max() <= 3


def test_every_weighting_can_be_set() -> None:
    assert set(get_args(TrainConfig.model_fields["class_weighting"].annotation)) == set(WEIGHTINGS)


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
def test_class_weights_of_nothing_are_refused(weighting: str) -> None:
    with pytest.raises(ValueError, match="at least one"):
        class_weights([0, 0], 20, weighting)
