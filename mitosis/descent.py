"""Steps of an optimiser that both stages learn by: their rate, what is left out, and the moving average of weights."""

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mitosis.config import TrainConfig, VerifierConfig
from mitosis.errors import ModelError

__all__ = ["Descent", "learning_rate"]

Network = TypeVar("Network", bound=nn.Module)

_MAX_SKIPPED = 10


class Descent(Generic[Network]):
    """AdamW on the weights of a network, and their moving average.

    Parameters
    ----------
    network, average : nn.Module
        What learns, and a copy of it.
    settings : TrainConfig or VerifierConfig
    warmup_steps : int
        Steps until the learning rate is at its peak.
    where, advice : str
        What is said of a run that diverges: which one, and what helps.
    all_agree : callable
        Whether a step that is fine here is fine on all ranks.

    Attributes
    ----------
    average : nn.Module
        The copy with the moving average of the weights.
    skipped : int
        Steps left out because loss or gradient was not finite.
    """

    def __init__(
        self,
        network: Network,
        average: Network,
        settings: TrainConfig | VerifierConfig,
        warmup_steps: int,
        where: str,
        advice: str,
        all_agree: Callable[[bool], bool] = bool,
    ) -> None:
        self.network, self.settings, self.warmup_steps = network, settings, warmup_steps
        self.average = average.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.skipped = self._skipped_in_a_row = 0
        self._where, self._advice, self._all_agree = where, advice, all_agree

    def step(self, step: int, loss: Tensor) -> float:
        """Go down the gradient of a loss; gives the loss, NaN if the step was left out. `step` counts from 1.

        Raises
        ------
        ModelError
            This is the tenth step in a row whose loss or gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings, self.warmup_steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped library
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_norm=5.0)
        value = float(loss.detach())
        if not self._all_agree(math.isfinite(value) and bool(norm.isfinite())):
            self._skip(step)
            return float("nan")
        self._skipped_in_a_row = 0
        self.optimizer.step()
        self._update_average(min(self.settings.ema_decay, step / (step + 10)))
        return value

    def _skip(self, step: int) -> None:
        """Leave a step out: one non-finite gradient would make every weight NaN."""
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == _MAX_SKIPPED:
            raise ModelError(
                f"{self._where}: loss or gradient was not finite in ten steps in a row, the last being step {step}. "
                f"{self._advice}"
            )

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        pairs = list(zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True))
        means, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # untyped library
        average(means, values, None)  # in a few kernels for all of them, of which a GPU is short
        for count, value in (pair for pair in pairs if not pair[0].is_floating_point()):
            count.copy_(value)


def learning_rate(step: int, settings: TrainConfig | VerifierConfig, warmup_steps: int) -> float:
    """Linear warm-up, then a half cosine to 0. `step` counts from 1."""
    if step <= warmup_steps:
        return settings.learning_rate * step / warmup_steps
    progress = (step - warmup_steps) / (settings.steps - warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
