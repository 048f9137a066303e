"""The training loop: patches in, the best model by detection F1 on the validation cases out.

A run folder holds ``settings.yaml``, ``model.safetensors`` and ``model.json`` (the best model so far and its card),
``metrics.jsonl`` (a line each validation), ``curves.png`` and ``state.pt`` (all that a resumed run needs).
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mitosis.checkpoints import ModelCard, load_model, load_state, save_model, save_state
from mitosis.config import Config, TrainConfig, load_config, save_config
from mitosis.curves import draw_curves
from mitosis.dataset import PatchDataset, load_batches
from mitosis.engines import to_input
from mitosis.errors import ConfigError, LeakageError, ModelError, PatchIndexError
from mitosis.evaluation import choose_threshold, evaluate
from mitosis.files import make_folder, write_text
from mitosis.losses import LOSSES, class_weights
from mitosis.patches import PatchIndex
from mitosis.runtime import choose_device, choose_dtype, versions
from mitosis.sampling import PatchPool, epochs
from mitosis.splits import TRAIN, VAL
from mitosis.unet import UNet
from mitosis.validation import Metrics, calibrate, check_patches, score_patches

__all__ = ["Run", "learning_rate", "train"]

CLASSES = ("background", "mitotic figure", "non-mitotic figure")


def train(
    index: PatchIndex,
    out: Path,
    config: Config,
    *,
    resume: bool = False,
    start: Path | None = None,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
    on_metrics: Callable[[Metrics], None] = lambda _metrics: None,
) -> ModelCard:
    """Train a U-Net on the patches of `index` and leave the best model in the run folder `out`.

    Parameters
    ----------
    resume : bool
        Go on from the last saved state in `out`; the result has the same bits as that of a run never stopped.
    start : Path, optional
        Folder of a model whose weights to begin with (fine-tuning) instead of random ones. What it has learned from
        counts as seen by the new model too.
    on_step, on_metrics : callable
        Told (step, loss) after each step, and the metrics after each validation.

    Raises
    ------
    PatchIndexError
        The patches cannot be learned from: no masks, no figure in the training cases, a case on both sides, crop
        larger than the patches.
    ConfigError
        `out` holds a run already and `resume` is not set, or the settings differ from those of the run to resume.
    ModelError
        Loss or gradients stay non-finite; the network of `start` has another shape.
    LeakageError
        `start` has learned from a validation case.
    """
    check_patches(index, config)
    begun = _load_start(start, index, config) if start else None
    _open_run(out, config, resume)
    return Run(index, out, config, begun).go(on_step, on_metrics)


class Run:
    """What one run holds while it goes: network, average, optimiser, history."""

    def __init__(
        self, index: PatchIndex, out: Path, config: Config, start: tuple[UNet, ModelCard] | None = None
    ) -> None:
        self.index, self.out, self.config = index, out, config
        self.train_index = index.where(lambda patch: patch.split == TRAIN)
        validation = index.where(lambda patch: patch.split == VAL)
        self.val_index = validation if validation.patches else self.train_index
        self.device = choose_device()
        torch.manual_seed(config.train.seed)
        self.network: nn.Module = UNet.from_config(config.network).to(  # type: ignore[call-overload]  # torch types no memory_format
            device=self.device, memory_format=torch.channels_last
        )
        self.start_card: dict[str, Any] = {}
        if start:
            self.network.load_state_dict(start[0].state_dict())
            card = start[1]
            seen = {key: card.training.get(key, []) for key in ("cases", "source_sha256")}
            self.start_card = {"weights_sha256": card.weights_sha256, **seen}
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay
        )
        self.history: list[Metrics] = []
        self.losses: list[float] = []
        self.skipped = self.skipped_in_a_row = 0

    def go(self, on_step: Callable[[int, float], None], on_metrics: Callable[[Metrics], None]) -> ModelCard:
        config = self.config.train
        start = self._resume()
        dataset = PatchDataset(self.train_index, config, self.config.network)
        batches = [batch for epoch in epochs(PatchPool.of(self.train_index), config) for batch in epoch][start:]
        for step, (images, masks) in enumerate(load_batches(dataset, batches, config.workers), start + 1):
            self.losses.append(self.step(step, images, masks))
            on_step(step, self.losses[-1])
            if step % config.validate_every == 0 or step == config.steps:
                self._validate(step)
                on_metrics(self.history[-1])
        return self._save_best()

    def step(self, step: int, images: Tensor, masks: Tensor) -> float:
        """One step of the optimiser on a batch of `load_batches`; gives its loss, NaN if it was left out."""
        config = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        dtype = choose_dtype(config.precision, self.device)
        self.network.train()
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            logits = self.network(to_input(images.to(self.device)))
        loss = LOSSES[config.loss](logits.float(), masks.to(self.device), self._weights())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped library
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_norm=5.0)
        value = float(loss.detach())
        if not (math.isfinite(value) and bool(norm.isfinite())):
            self._skip(step)
            return float("nan")
        self.skipped_in_a_row = 0
        self.optimizer.step()
        self._update_average(min(config.ema_decay, step / (step + 10)))
        return value

    def _weights(self) -> Tensor:
        n_pixels, config = self.train_index.n_pixels(self.config.network.classes), self.config.train
        return class_weights(n_pixels, config.max_class_weight, config.class_weighting).to(self.device)

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

    def _validate(self, step: int) -> None:
        config = self.config
        floor, merge_um, normalise = config.count.score_floor, config.count.merge_um, config.network.normalise_stain
        scores = score_patches(self.average, self.val_index, floor, merge_um, normalise)
        threshold = choose_threshold(scores)
        result = evaluate(scores, threshold).pooled
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        metrics = Metrics(
            step=step,
            loss=round(float(np.mean(finite)), 6) if finite else -1.0,
            f1=round(result.f1, 4),
            precision=round(result.precision, 4),
            recall=round(result.recall, 4),
            threshold=threshold,
            count_threshold=choose_threshold(scores, objective="count"),
            learning_rate=round(learning_rate(step, self.config.train), 8),
            skipped=self.skipped,
        )
        if not self.history or metrics.f1 >= max(before.f1 for before in self.history):
            self.best = copy.deepcopy(self.average.state_dict())
            self.calibration = calibrate(self.val_index, scores, (threshold, metrics.count_threshold))
        self.history.append(metrics)
        self.losses = []
        self._save(step)

    def _save(self, step: int) -> None:
        self._save_best()
        state = {
            "step": step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "calibration": self.calibration,
            "optimizer": self.optimizer.state_dict(),
            "history": [asdict(metrics) for metrics in self.history],
            "skipped": self.skipped,
            "start_card": self.start_card,
            "data_sha256": self._data_sha256(),
        }
        save_state(self.out, state)
        lines = (json.dumps(asdict(metrics)) for metrics in self.history)
        write_text(self.out / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
        draw_curves(self.out / "curves.png", [asdict(metrics) for metrics in self.history])

    def _resume(self) -> int:
        """Take up the saved state; gives the number of steps done."""
        state = load_state(self.out)
        if state is None:
            return 0
        if state["data_sha256"] != self._data_sha256():
            raise PatchIndexError(
                f"{self.index.folder}: the patches are not those that the run in {self.out} began with."
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.calibration = state["best"], state.get("calibration", [])
        self.history = [Metrics(**metrics) for metrics in state["history"]]
        self.skipped = state["skipped"]
        self.start_card = state["start_card"]
        return int(state["step"])

    def _save_best(self) -> ModelCard:
        best = max(self.history, key=lambda metrics: (metrics.f1, metrics.step))
        names = CLASSES[: self.config.network.classes]
        card = ModelCard(
            network=self.config.network,
            classes=names,
            mpp=self.index.patches[0].mpp,
            threshold=best.threshold,
            count_threshold=best.count_threshold,
            validation={"cases": self.val_index.cases, **asdict(best), "calibration": self._left_out()},
            training={
                "cases": sorted({*self.train_index.cases, *self.start_card.get("cases", [])}),
                "source_sha256": sorted(self._sources() | {*self.start_card.get("source_sha256", [])}),
                "n_figures": sum(patch.n_mitotic for patch in self.train_index.patches if patch.on_grid),
                "index_sha256": self._data_sha256(),
                "settings": self.config.model_dump(mode="json"),
                **({"start_sha256": self.start_card["weights_sha256"]} if self.start_card else {}),
            },
            versions=versions(),
        )
        return save_model(self.out, {name: value.cpu() for name, value in self.best.items()}, card)

    def _left_out(self) -> list[dict[str, Any]]:
        return self.calibration if self.val_index is not self.train_index else []

    def _sources(self) -> set[str]:
        return {patch.source_sha256 for patch in self.train_index.patches}

    def _data_sha256(self) -> str:
        """Of the index as it is used here: other validation cases are other data."""
        return hashlib.sha256(self.index.to_csv().encode()).hexdigest()


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a half cosine to 0. `step` counts from 1."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _open_run(out: Path, config: Config, resume: bool) -> None:
    settings = out / "settings.yaml"
    if not settings.exists():
        if resume:
            raise ConfigError(f"{out}: no run to resume there. Leave --resume out to start one.")
        make_folder(out)
        save_config(settings, config)
        return
    if not resume:
        raise ConfigError(
            f"{out}: holds a training run already. Add --resume to go on with it, or choose another --out."
        )
    if _decisive(load_config(settings)) != _decisive(config):
        raise ConfigError(f"{out}: its run has other settings than those given now. Resume with the same ones.")


def _load_start(start: Path, index: PatchIndex, config: Config) -> tuple[UNet, ModelCard]:
    """The network to begin with, if it fits and has seen none of the validation cases."""
    network, card = load_model(start)
    if card.network != config.network:
        raise ModelError(f"{start}: its network ({card.network}) is not that of the settings ({config.network}).")
    seen = set(card.training.get("cases", []))
    leaked = sorted({patch.case_id for patch in index.patches if patch.split == VAL} & seen)
    if leaked:
        raise LeakageError(f"{start}: has learned from the validation cases {', '.join(leaked)}. Choose other ones.")
    return network, card


def _decisive(config: Config) -> Config:
    """The settings that a run's result depends on: all but the number of loader processes."""
    return config.model_copy(update={"train": config.train.model_copy(update={"workers": 0})})
