"""Losses: a contract over the registry, and what each promises."""

import pytest
import torch
from torch import Tensor

from mitosis.losses import LOSSES, class_weights, cross_entropy, dice

WEIGHTS = torch.tensor([1.0, 20.0])


def _mask(seed: int = 0, ignore: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(2, 8, 8, generator=generator) < 0.3).long()
    mask[torch.rand(2, 8, 8, generator=generator) < ignore] = 255
    return mask


def _logits(mask: Tensor, sharpness: float) -> Tensor:
    truth = torch.where(mask == 255, 0, mask)
    return (torch.nn.functional.one_hot(truth, 2).permute(0, 3, 1, 2) * 2.0 - 1) * sharpness


@pytest.mark.parametrize("name", sorted(LOSSES))
class TestEveryLoss:
    def test_gradient_is_right(self, name: str) -> None:
        torch.manual_seed(1)
        logits = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
        mask = _mask()
        assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, mask, WEIGHTS), logits)

    @pytest.mark.parametrize("size", [1e4, -1e4])
    def test_is_finite_for_extreme_logits(self, name: str, size: float) -> None:
        logits = torch.full((2, 2, 8, 8), size)
        logits[:, 1] *= -1
        assert torch.isfinite(LOSSES[name](logits, _mask(), WEIGHTS))

    def test_ignored_pixels_have_no_gradient(self, name: str) -> None:
        logits = torch.randn(2, 2, 8, 8, requires_grad=True)
        mask = _mask(ignore=0.4)
        LOSSES[name](logits, mask, WEIGHTS).backward()
        assert logits.grad is not None
        ignored = (mask == 255).unsqueeze(1).expand_as(logits.grad)
        assert (logits.grad[ignored] == 0).all()
        assert (logits.grad[~ignored] != 0).any()

    def test_perfect_prediction_costs_almost_nothing(self, name: str) -> None:
        mask = _mask()
        assert LOSSES[name](_logits(mask, 20.0), mask, WEIGHTS) < 1e-3

    def test_order_of_the_batch_does_not_matter(self, name: str) -> None:
        torch.manual_seed(2)
        logits, mask = torch.randn(2, 2, 8, 8), _mask()
        flipped = LOSSES[name](logits.flip(0), mask.flip(0), WEIGHTS)
        torch.testing.assert_close(LOSSES[name](logits, mask, WEIGHTS), flipped)

    def test_firing_on_a_batch_without_figures_costs(self, name: str) -> None:
        mask = torch.zeros(2, 64, 64, dtype=torch.long)
        quiet = _logits(mask, 8.0)
        assert LOSSES[name](-quiet, mask, WEIGHTS) > LOSSES[name](quiet, mask, WEIGHTS) + 0.5

    def test_a_batch_to_ignore_costs_nothing_and_is_finite(self, name: str) -> None:
        mask = torch.full((2, 8, 8), 255)
        assert LOSSES[name](torch.randn(2, 2, 8, 8), mask, WEIGHTS) == 0

    def test_takes_three_classes(self, name: str) -> None:
        mask = _mask()
        mask[:, 0] = 2
        loss = LOSSES[name](torch.randn(2, 3, 8, 8), mask, torch.tensor([1.0, 20.0, 5.0]))
        assert torch.isfinite(loss)
        assert loss > 0


def test_cross_entropy_agrees_with_torch_on_its_weighted_mean() -> None:
    logits, mask = torch.randn(2, 2, 8, 8), _mask()
    expected = torch.nn.functional.cross_entropy(logits, mask, WEIGHTS, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, mask, WEIGHTS), expected)


def test_dice_of_half_the_overlap_is_known() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[0, :8] = 1
    predicted = mask.roll(4, dims=1)
    value = dice(_logits(predicted, 50.0), mask, WEIGHTS, smooth=0.0)
    assert float(value) == pytest.approx(1 - 2 * 64 / 256, abs=1e-5)


@pytest.mark.parametrize(
    ("n_pixels", "expected"),
    [([990, 10], [1, 20]), ([900, 100], [1, 9]), ([100, 0], [1, 20]), ([50, 50, 25], [1, 1, 2])],
)
def test_class_weights_are_the_capped_inverse_frequency(n_pixels: list[int], expected: list[float]) -> None:
    assert class_weights(n_pixels, max_weight=20).tolist() == expected


def test_class_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        class_weights([0, 0], 20)
