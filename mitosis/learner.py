"""What learns: the network, the moving average of its weights and its optimiser, a step at a time."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mitosis.config import Config, TrainConfig
from mitosis.distributed import Ranks
from mitosis.engines import to_input
from mitosis.errors import ModelError
from mitosis.losses import LOSSES, class_weights
from mitosis.runtime import choose_device, choose_dtype
from mitosis.unet import UNet

__all__ = ["Learner", "learning_rate"]


class Learner:
    """A network in training, on one process or as one of several ranks that each see a part of every batch.

    Parameters
    ----------
    n_pixels : sequence of int
        Pixels of each class in all that will be shown, which say what each class weighs.
    out : Path
        Folder of the run, for messages.
    start : UNet, optional
        Weights to begin with instead of random ones.
    """

    def __init__(
        self, config: Config, n_pixels: Sequence[int], out: Path, ranks: Ranks | None = None, start: UNet | None = None
    ) -> None:
        self.config, self.out, self.ranks, self.device = config.train, out, ranks or Ranks(), choose_device()
        torch.manual_seed(self.config.seed)
        self.network: nn.Module = UNet.from_config(config.network).to(  # type: ignore[call-overload]  # torch types no memory_format
            device=self.device, memory_format=torch.channels_last
        )
        if start:
            self.network.load_state_dict(start.state_dict())
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self._parallel = self.ranks.parallel(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        weights = class_weights(n_pixels, self.config.max_class_weight, self.config.class_weighting)
        self.weights = weights.to(self.device)
        self.skipped = self.skipped_in_a_row = 0

    def step(self, step: int, images: Tensor, masks: Tensor) -> float:
        """One step of the optimiser on a batch of `load_batches`; gives its loss, NaN if it was left out.

        Of several ranks each gives its part of the batch, and all get the loss of the whole.

        Raises
        ------
        ModelError
            This is the tenth step in a row whose loss or gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        dtype = choose_dtype(self.config.precision, self.device)
        self.network.train()
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            logits = self._parallel(to_input(images.to(self.device, non_blocking=True)))
        masks = masks.to(self.device, non_blocking=True)
        loss = LOSSES[self.config.loss](self.ranks.whole(logits.float()), self.ranks.whole(masks), self.weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped library
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_norm=5.0)
        value = float(loss.detach())
        if not self.ranks.all(math.isfinite(value) and bool(norm.isfinite())):
            self._skip(step)
            return float("nan")
        self.skipped_in_a_row = 0
        self.optimizer.step()
        self._update_average(min(self.config.ema_decay, step / (step + 10)))
        return value

    def _skip(self, step: int) -> None:
        """Leave a step out: one non-finite gradient would make every weight NaN."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == 10:
            raise ModelError(
                f"{self.out}: loss or gradient was not finite in ten steps in a row, the last being step {step}. "
                "Train anew with a lower train.learning_rate."
            )

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        for mean, value in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to learn on."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Learn on from a `state`."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skipped = state["skipped"]


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a half cosine to 0. `step` counts from 1."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
