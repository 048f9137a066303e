"""What learns: the network, the moving average of its weights and its optimiser, a step at a time."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mitosis.auxiliary import TaughtUNet, target_maps, taught_loss
from mitosis.config import Config
from mitosis.descent import Descent
from mitosis.distributed import Ranks
from mitosis.engines import to_input
from mitosis.losses import class_weights
from mitosis.runtime import choose_device, choose_dtype
from mitosis.unet import UNet

__all__ = ["Learner"]


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
        self.config, self.ranks, self.device = config.train, ranks or Ranks(), choose_device()
        torch.manual_seed(self.config.seed)
        self.network: nn.Module = TaughtUNet.from_settings(config.network, config.train).to(  # type: ignore[call-overload]  # torch types no memory_format
            device=self.device, memory_format=torch.channels_last
        )
        if start:
            self.network.load_state_dict(start.state_dict(), strict=False)  # it has none of the heads for training
        average = copy.deepcopy(self.network)
        self._parallel = self.ranks.parallel(self.network)
        self.descent = Descent(
            self.network,
            average,
            self.config,
            self.config.warmup_steps,
            str(out),
            "Train anew with a lower train.learning_rate.",
            self.ranks.all,
        )
        weights = class_weights(n_pixels, self.config.max_class_weight, self.config.class_weighting)
        self.weights = weights.to(self.device)

    def step(self, step: int, images: Tensor, masks: Tensor) -> float:
        """One step of the optimiser on a batch of `load_batches`; gives its loss, NaN if it was left out.

        Of several ranks each gives its part of the batch, and all get the loss of the whole.

        Raises
        ------
        ModelError
            This is the tenth step in a row whose loss or gradient is not finite.
        """
        dtype = choose_dtype(self.config.precision, self.device)
        self.network.train()
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            answers = self._parallel(to_input(images.to(self.device, non_blocking=True)))
        target = self.config.auxiliary_target
        maps = None if target == "none" else self._whole(target_maps(masks, target))
        answers = [self.ranks.whole(answer.float()) for answer in answers]
        return self.descent.step(step, taught_loss(answers, self._whole(masks), maps, self.weights, self.config))

    def _whole(self, part: Tensor) -> Tensor:
        return self.ranks.whole(part.to(self.device, non_blocking=True))

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to learn on."""
        return {
            "network": self.network.state_dict(),
            "average": self.descent.average.state_dict(),
            "optimizer": self.descent.optimizer.state_dict(),
            "skipped": self.descent.skipped,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Learn on from a `state`."""
        self.network.load_state_dict(state["network"])
        self.descent.average.load_state_dict(state["average"])
        self.descent.optimizer.load_state_dict(state["optimizer"])
        self.descent.skipped = state["skipped"]
