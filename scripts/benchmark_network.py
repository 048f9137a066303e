"""The network beside a plain U-Net: `benchmark.py network`."""

import argparse
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from benchmark_drawn import stained_noise
from benchmark_figure import Figure
from benchmark_turns import take_turns

from mitosis.checkpoints import load_model
from mitosis.config import load_config
from mitosis.cost import network_cost
from mitosis.detections import reach_px
from mitosis.engines import build_engine
from mitosis.geometry import area_mm2
from mitosis.models import shipped_models
from mitosis.unet import UNet

__all__ = ["RIVAL", "benchmark_network"]

ROUNDS = 5
PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
RIVAL = "plain U-Net of width 16 and depth 4 at 0.25 µm/px"
"""What others would take: a network of usual size at the full resolution of a scan."""


class _Contender(NamedTuple):
    """A network to time at the µm/px that it sees."""

    network: UNet
    mpp: float

    @property
    def halo(self) -> int:
        """What surrounds the core of a tile when a slide is counted, px on each side."""
        stride = self.network.stride
        return -(-(reach_px(self.mpp) + self.network.radius) // stride) * stride

    def per_mm2(self, side: int) -> float:
        """How many squares of `side` px are a mm²."""
        return 1 / area_mm2(side**2, self.mpp)

    def gflop_per_mm2(self) -> float:
        """Without what surrounds tiles."""
        shapes = {name: weight.shape for name, weight in self.network.state_dict().items()}
        return network_cost(shapes).gflop_per_mm2(self.mpp)


def benchmark_network(arguments: argparse.Namespace) -> list[Figure]:  # noqa: ARG001 (every benchmark takes them)
    """CPU time a mm² of tissue, and GFLOP, against a plain U-Net of width 16 and depth 4 at 0.25 µm/px.

    The default network and the first stages of shipped models, with the engine and the tiles that counting takes. "as
    counted" is a mm² of cores, for which whole tiles are computed; "without halo" is a mm² of all that is computed.
    """
    config = load_config()
    ours = {"default network": _Contender(UNet.from_config(config.network).eval(), config.extract.mpp)}
    ours |= {f"shipped {model.name}": _Contender(load_model(model.folder)[0], model.mpp) for model in shipped_models()}
    rival = _Contender(UNet(width=16, depth=4).eval(), 0.25)
    seconds = {precision: _tile_seconds({**ours, RIVAL: rival}, precision) for precision in PRECISIONS}
    figures = []
    for name, own in ours.items():
        values = own.gflop_per_mm2(), rival.gflop_per_mm2()
        figures.append(Figure(f"{name}, GFLOP", values[0], "GFLOP/mm²", values[1], values[1] / values[0]))
        for precision, taken in seconds.items():
            for what, halos in (("as counted", 2), ("without halo", 0)):
                cost, baseline = (
                    taken[key] * which.per_mm2(config.count.tile_size - halos * which.halo)
                    for key, which in ((name, own), (RIVAL, rival))
                )
                figures.append(Figure(f"{name}, {precision}, {what}", cost, "CPU s/mm²", baseline, baseline / cost))
    return figures


def _tile_seconds(networks: Mapping[str, _Contender], precision: Literal["float32", "bfloat16"]) -> dict[str, float]:
    """Median CPU seconds a tile of each network, in batches of the size that counting takes, none seen twice."""
    count, cpu = load_config().count, torch.device("cpu")
    contenders = {name: build_engine(one.network, cpu, count.engine, precision) for name, one in networks.items()}
    rng, field = np.random.default_rng(0), stained_noise(2 * count.tile_size)
    corners = rng.integers(0, count.tile_size, (ROUNDS + 1, count.batch_size, 2)).tolist()
    batches = [
        np.stack([field[y : y + count.tile_size, x : x + count.tile_size] for x, y in places]) for places in corners
    ]
    for engine in contenders.values():
        engine(batches[0])  # the first makes an engine ready
    seconds = take_turns(contenders, [{name: [batch] for name in contenders} for batch in batches[1:]])
    return {name: value / count.batch_size for name, value in seconds.items()}
