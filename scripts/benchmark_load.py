"""Loading patches for training, and the share of a step that waits for them: `benchmark.py load`."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_figure import Figure
from benchmark_turns import take_turns

from mitosis.cohort import find_sources
from mitosis.config import load_config
from mitosis.dataset import PatchDataset
from mitosis.extraction import extract_patches
from mitosis.learner import Learner
from mitosis.loading import load_batches
from mitosis.patches import PatchIndex
from mitosis.sampling import Draw, PatchPool, epochs

__all__ = ["benchmark_load"]

ROUNDS = 5
N_PATCHES, N_STEPS = 48, 6


def benchmark_load(arguments: argparse.Namespace) -> list[Figure]:
    """Patches a second through the light and the heavy pipeline, and the share of a step spent waiting."""
    with tempfile.TemporaryDirectory() as folder:
        index = PatchIndex.read(arguments.patches or _sample_patches(Path(folder)))
        config, network = load_config().train, load_config().network
        heavy = PatchDataset(index, config.model_copy(update={"augment_figure": 1.0, "augment_others": 1.0}), network)
        light = PatchDataset(index, config.model_copy(update={"augment_figure": 0.0, "augment_others": 0.0}), network)
        contenders: dict[str, Callable[[Any], Any]] = {
            "light": light.__getitem__,
            "heavy": heavy.__getitem__,
            "reading": lambda draw: (
                index.read_image(index.patches[draw.row]),
                index.read_mask(index.patches[draw.row]),
            ),
        }
        rows = np.random.default_rng(0).integers(len(index.patches), size=(ROUNDS, N_PATCHES))
        rounds = [[Draw(int(row), n, 0) for row in chosen] for n, chosen in enumerate(rows)]
        seconds = take_turns(contenders, [dict.fromkeys(contenders, draws) for draws in rounds])
        rate = {name: N_PATCHES / value for name, value in seconds.items()}
        figures = [
            Figure(f"{name} pipeline, against reading alone", rate[name], "patches/s", rate["reading"], 0.0)
            for name in ("light", "heavy")
        ]
        own, other = (_waiting_share(index, Path(folder), workers) for workers in (0, 1))
        waiting = Figure("waiting for data, against one loader process", own, "% of a step", other, other / own)
        return [*(replace(figure, ratio=figure.value / figure.baseline) for figure in figures), waiting]


def _sample_patches(folder: Path) -> Path:
    """Patches of the usual size from ``sample_patches/``."""
    samples = Path(__file__).parents[1] / "sample_patches"
    sources = find_sources([samples / "images"], annotations=samples / "masks", case_pattern=r"^case\d+")
    for record in extract_patches(sources, folder / "patches", load_config().extract):
        if record.error:
            raise SystemExit(record.error)
    return folder / "patches"


def _waiting_share(index: PatchIndex, folder: Path, workers: int) -> float:
    """Median share of a training step, with the default settings, that goes by before its batch is there, %."""
    config = load_config(None, (f"train.workers={workers}",))
    learner = Learner(config, index.n_pixels(config.network.classes), folder)
    settings = config.train
    batches = [batch for epoch in epochs(PatchPool.of(index), settings) for batch in epoch][: N_STEPS + 1]
    loaded = iter(load_batches(PatchDataset(index, settings, config.network), batches, workers))
    shares = []
    for step in range(1, len(batches) + 1):
        start = time.perf_counter()
        images, masks = next(loaded)
        waited = time.perf_counter() - start
        learner.step(step, images, masks)
        shares.append(100 * waited / (time.perf_counter() - start))
    return statistics.median(shares[1:])  # the first starts the loader
