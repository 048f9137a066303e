"""A slide to its count, beside TIAToolbox's engine with the same network and a plain one: `benchmark.py engine`."""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark_figure import Figure
from benchmark_network import RIVAL
from benchmark_peers import Apart, run_apart
from benchmark_slide import save_random_model
from large_slides import MPP, write_large_slide
from PIL import Image
from safetensors.torch import save_file

from mitosis.checkpoints import ModelCard, load_model
from mitosis.config import CountConfig, NetworkConfig, load_config
from mitosis.engines import choose_engine
from mitosis.errors import ConfigError
from mitosis.models import find_model, shipped_models
from mitosis.quantization import check_processor
from mitosis.runtime import choose_device
from mitosis.slides import open_slide
from mitosis.tissue import find_tissue
from mitosis.unet import UNet

__all__ = ["ENGINE_SIDE", "benchmark_engine"]

ENGINE_SIDE = 8192
"""Side of the drawn slide, px."""
PEER, PLAIN = "TIAToolbox", f"TIAToolbox and a {RIVAL}"
PLAIN_NETWORK = NetworkConfig(width=16, depth=4)
PRECISIONS = "float32", "bfloat16", "int8"
ROWS = tuple(
    (f"{what}, {precision}", peer)
    for what, peer in (("one stage", PEER), ("as shipped", PLAIN))
    for precision in PRECISIONS
)
"""What is held against what. With one stage the network is the same."""


class _Contender(NamedTuple):
    worker: str
    job: Mapping[str, Any]
    python: Path | str = sys.executable

    def run(self, folder: Path) -> Apart:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return run_apart(self.worker, {**self.job, "out": str(Path(out) / "out")}, self.python)


def benchmark_engine(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Time and memory from a slide's file to its count, each in a fresh process, on a slide drawn anew for each round.

    TIAToolbox's engine runs our first stage at its µm/px with the same tiles, only inside the tissue that we find; and
    the plain network with random weights at 0.25 µm/px. Loading networks and importing is not in the times. Without
    ``--peer-python`` the first of ours takes its place.
    """
    taken: dict[str, list[Apart]] = {}
    tissue_mm2 = 0.0
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            path = write_large_slide(folder, arguments.side or ENGINE_SIDE, seed=number)
            with open_slide(path) as slide:
                tissue = find_tissue(slide)
            tissue_mm2 += tissue.area_mm2 / arguments.rounds
            Image.fromarray(tissue.mask).convert("RGB").save(folder / "tissue.png")
            contenders = _contenders(path, arguments.model, arguments.peer_python)
            order = list(contenders)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                taken.setdefault(name, []).append(contenders[name].run(folder))
    yield from _figures(taken, tissue_mm2)


def _contenders(path: Path, model: str | None, peer_python: Path | None) -> dict[str, _Contender]:
    folder = path.parent / "model"
    if model or shipped_models():
        folder = find_model(model or "default")
    else:
        save_random_model(folder, path, NetworkConfig(width=8, depth=3))
    network, card = load_model(folder)
    config, contenders = load_config().count, {}
    for precision in PRECISIONS if _runs_in_int8(card, config) else PRECISIONS[:-1]:
        for what, verify in (("one stage", False), ("as shipped", True)):
            settings = config.model_copy(update={"precision": precision, "verify": verify})
            job = {"slide": str(path), "model": str(folder), "config": settings.model_dump()}
            contenders[f"{what}, {precision}"] = _Contender("mitosis_count", job)
    if not peer_python:
        print(f"{PEER}: left out. Name an interpreter that has it with --peer-python.", file=sys.stderr)
        return contenders
    torch.manual_seed(0)
    plain = UNet.from_config(PLAIN_NETWORK)
    for name, theirs, shape, mpp in ((PEER, network, card.network, card.mpp), (PLAIN, plain, PLAIN_NETWORK, MPP)):
        job = _peer_job(path, theirs, shape, config) | {"mpp": mpp, "threshold": card.threshold}
        contenders[name] = _Contender("tiatoolbox_count", job, peer_python)
    return contenders


def _runs_in_int8(card: ModelCard, config: CountConfig) -> bool:
    if not card.int8_ranges:
        return False
    try:
        check_processor(choose_engine(config.engine, choose_device(), "int8"))
    except ConfigError as error:
        print(f"int8: left out. {error}", file=sys.stderr)
        return False
    return True


def _peer_job(path: Path, network: UNet, shape: NetworkConfig, config: CountConfig) -> dict[str, Any]:
    weights = path.with_name(f"{shape.width}_{shape.depth}.safetensors")
    save_file(network.state_dict(), weights)
    return {
        "slide": str(path),
        "slide_mpp": [MPP, MPP],
        "mask": str(path.with_name("tissue.png")),
        "network": shape.model_dump(),
        "weights": str(weights),
        "margin": network.margin,
        "tile_size": config.tile_size,
        "batch_size": config.batch_size,
    }


def _figures(taken: Mapping[str, list[Apart]], tissue_mm2: float) -> Iterator[Figure]:
    parts = {
        "": ("cpu_s", "CPU s/mm²", 1 / tissue_mm2),
        ", wall": ("wall_s", "s/mm²", 1 / tissue_mm2),
        ", memory": ("peak_mb", "MB", 1.0),
    }
    rows = [(own, peer) for own, peer in ROWS if own in taken]
    for own, peer in rows if PEER in taken else [(own, rows[0][0]) for own, _ in rows[1:]]:
        for what, (field, unit, scale) in parts.items():
            value, baseline = (
                statistics.median(getattr(one, field) for one in taken[name]) * scale for name in (own, peer)
            )
            yield Figure.less_is_better(f"{own}, against {peer}{what}", value, unit, baseline)
