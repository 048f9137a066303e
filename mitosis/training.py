"""The training loop: patches in, the best model by detection F1 on the validation cases out.

A run folder holds ``settings.yaml``, ``model.safetensors`` and ``model.json`` (the best model so far and its card),
``metrics.jsonl`` (a line each validation), ``curves.png`` and ``state.pt`` (all that a resumed run needs).
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mitosis.checkpoints import ModelCard, load_model, load_state, save_model, save_state
from mitosis.config import Config, load_config, save_config
from mitosis.curves import draw_curves
from mitosis.dataset import PatchDataset
from mitosis.descent import learning_rate
from mitosis.distributed import Ranks, join_ranks
from mitosis.errors import ConfigError, LeakageError, ModelError, PatchIndexError
from mitosis.evaluation import calibration_rows, choose_threshold, evaluate
from mitosis.files import sole_writer, write_text
from mitosis.learner import Learner
from mitosis.loading import load_batches
from mitosis.patches import PatchIndex
from mitosis.quantization import Ranges, measure_ranges
from mitosis.runtime import versions
from mitosis.sampling import PatchPool, epochs, for_rank
from mitosis.splits import TRAIN, VAL
from mitosis.unet import UNet
from mitosis.validation import Metrics, check_patches, read_normalised, score_patches

__all__ = ["Run", "train"]

CLASSES = ("background", "mitotic figure", "non-mitotic figure")
_N_RANGES = 48  # patches on which the ranges of int8 are measured


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

    Started by ``torchrun``, each process trains on its part of every batch, and the result is that of one process but
    for rounding. The first one validates, writes and tells of progress; all must see the patches and `out`.

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
        `out` holds a run already and `resume` is not set, or the settings differ from those of the run to resume; the
        processes cannot share a batch evenly.
    ModelError
        Loss or gradients stay non-finite; the network of `start` has another shape; another process has failed.
    LeakageError
        `start` has learned from a validation case.
    OutputError
        `out` cannot be written to, or another command is writing there.
    """
    check_patches(index, config)
    begun = _load_start(start, index, config) if start else None
    with join_ranks() as ranks, sole_writer(out) if ranks.is_first else nullcontext():
        run = Run(index, out, config, begun, ranks)
        if ranks.is_first:
            _open_run(out, config, resume)
        ranks.wait()
        card = run.go(on_step, on_metrics)
        del run  # what ties it to the ranks goes while they are still connected
        return card


class Run:
    """What one run holds while it goes: what learns, what it is shown, and how good it got.

    Of several `ranks` each has a run, and the first alone a history.
    """

    def __init__(
        self,
        index: PatchIndex,
        out: Path,
        config: Config,
        start: tuple[UNet, ModelCard] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.index, self.out, self.config, self.ranks = index, out, config, ranks or Ranks()
        self.train_index = index.where(lambda patch: patch.split == TRAIN)
        validation = index.where(lambda patch: patch.split == VAL)
        self.val_index = validation if validation.patches else self.train_index
        batches = [batch for epoch in epochs(PatchPool.of(self.train_index), config.train) for batch in epoch]
        self.batches = for_rank(batches, self.ranks.rank, self.ranks.n_ranks)
        n_pixels = self.train_index.n_pixels(config.network.classes)
        self.learner = Learner(config, n_pixels, out, self.ranks, start[0] if start else None)
        self.start_card: dict[str, Any] = {}
        if start:
            card = start[1]
            seen = {key: card.training.get(key, []) for key in ("cases", "source_sha256")}
            self.start_card = {"weights_sha256": card.weights_sha256, **seen}
        self.history: list[Metrics] = []
        self.losses: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.calibration: list[dict[str, Any]] = []
        self.ranges: Ranges = {}

    def go(self, on_step: Callable[[int, float], None], on_metrics: Callable[[Metrics], None]) -> ModelCard:
        """Train to the last step; gives the card of the best model."""
        config, is_first = self.config.train, self.ranks.is_first
        start = self._resume()
        if is_first and self.start_card and not start:
            self._save_state(0)  # a run that goes on from here began with these weights too
        dataset = PatchDataset(self.train_index, config, self.config.network)
        for step, (images, masks) in enumerate(load_batches(dataset, self.batches[start:], config.workers), start + 1):
            self.losses.append(self.step(step, images, masks))
            if is_first:
                on_step(step, self.losses[-1])
            if is_first and (step % config.validate_every == 0 or step == config.steps):
                self._validate(step)
                on_metrics(self.history[-1])
            elif is_first and config.save_every and step % config.save_every == 0:
                self._save_state(step)
        card = self._save_best() if is_first else None
        self.ranks.wait()
        return card or load_model(self.out)[1]

    def step(self, step: int, images: Tensor, masks: Tensor) -> float:
        """One step on a batch of `load_batches`: `Learner.step`."""
        return self.learner.step(step, images, masks)

    def _validate(self, step: int) -> None:
        config = self.config
        floor, merge_um, normalise = config.count.score_floor, config.count.merge_um, config.network.normalise_stain
        scores = score_patches(self.learner.descent.average, self.val_index, floor, merge_um, normalise)
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
            learning_rate=round(learning_rate(step, self.config.train, self.config.train.warmup_steps), 8),
            skipped=self.learner.descent.skipped,
        )
        if not self.history or metrics.f1 >= max(before.f1 for before in self.history):
            self.best = copy.deepcopy(self.learner.descent.average.kept())
            self.calibration = calibration_rows(scores, (threshold, metrics.count_threshold))
            self.ranges = self._measure_ranges()
        self.history.append(metrics)
        self.losses = []
        self._save(step)

    def _save(self, step: int) -> None:
        self._save_best()
        self._save_state(step)
        lines = (json.dumps(asdict(metrics)) for metrics in self.history)
        write_text(self.out / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
        draw_curves(self.out / "curves.png", [asdict(metrics) for metrics in self.history])

    def _save_state(self, step: int) -> None:
        state = {
            "step": step,
            **self.learner.state(),
            "best": self.best,
            "calibration": self.calibration,
            "history": [asdict(metrics) for metrics in self.history],
            "losses": self.losses,
            "start_card": self.start_card,
            "data_sha256": self._data_sha256(),
        }
        save_state(self.out, state)

    def _resume(self) -> int:
        """Take up the saved state; gives the number of steps done."""
        state = load_state(self.out)
        if not self.ranks.same(self.config, self._data_sha256(), state and state["step"]):
            raise ModelError(
                f"{self.out}: the processes of this run do not find the same settings, patches and saved state. "
                "Give all of them the same command, and folders that all of them see."
            )
        if state is None:
            return 0
        if state["data_sha256"] != self._data_sha256():
            raise PatchIndexError(
                f"{self.index.folder}: the patches are not those that the run in {self.out} began with."
            )
        if self.start_card and self.start_card != state["start_card"]:
            raise ConfigError(f"{self.out}: its run began with another model. Resume with the same --start, or none.")
        self.learner.load_state(state)
        self.best, self.calibration = state["best"], state.get("calibration", [])
        self.history = [Metrics(**metrics) for metrics in state["history"]]
        self.losses = state.get("losses", [])
        self.start_card = state["start_card"]
        if self.best and self.ranks.is_first:
            self.ranges = self._measure_ranges()
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
            int8_ranges=self.ranges,
        )
        return save_model(self.out, {name: value.cpu() for name, value in self.best.items()}, card)

    def _measure_ranges(self) -> Ranges:
        """Of the best network, on some of the patches that it learned from."""
        network = UNet.from_config(self.config.network)
        network.load_state_dict(self.best)
        patches = self.train_index.patches
        images = (
            read_normalised(self.train_index, patch, self.config.network.normalise_stain)[np.newaxis]
            for patch in patches[:: math.ceil(len(patches) / _N_RANGES)]
        )
        return measure_ranges(network, images)

    def _left_out(self) -> list[dict[str, Any]]:
        return self.calibration if self.val_index is not self.train_index else []

    def _sources(self) -> set[str]:
        return {patch.source_sha256 for patch in self.train_index.patches}

    def _data_sha256(self) -> str:
        """Of the index as it is used here: other validation cases are other data."""
        return hashlib.sha256(self.index.to_csv().encode()).hexdigest()


def _open_run(out: Path, config: Config, resume: bool) -> None:
    settings = out / "settings.yaml"
    if not settings.exists():
        if resume:
            raise ConfigError(f"{out}: no run to resume there. Leave --resume out to start one.")
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
    validation = {(patch.case_id, patch.source_sha256) for patch in index.patches if patch.split == VAL}
    leaked = sorted({case for case, source in validation if card.has_seen(case, source)})
    if leaked:
        raise LeakageError(f"{start}: has learned from the validation cases {', '.join(leaked)}. Choose other ones.")
    return network, card


def _decisive(config: Config) -> Config:
    """The settings that a run's result depends on: not how patches are loaded, nor how often it is saved."""
    indecisive = {"workers": 0, "cache_mb": 0, "save_every": None}
    return config.model_copy(update={"train": config.train.model_copy(update=indecisive)})
