"""Scoring detections and finding hotspots: `benchmark.py evaluate` and `benchmark.py hotspot`."""

import argparse
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from benchmark_figure import Figure
from benchmark_turns import take_turns
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mitosis.densest_discs import densest_discs
from mitosis.densest_rectangles import densest_rectangles
from mitosis.detections import Detections
from mitosis.matching import PROTOCOLS, MatchResult, Protocol
from mitosis.ranking import DetectionCurve, SlideScores

__all__ = ["benchmark_evaluate", "benchmark_hotspot"]

ROUNDS = 3
N_POINTS, EVERY = 100_000, 50


def benchmark_evaluate(arguments: argparse.Namespace) -> list[Figure]:
    """Time to score detections against a tenth as many marks, against looking for each mark's nearest detection."""
    n = arguments.detections
    contenders: dict[str, Callable[[Any], Any]] = {
        name: partial(_score, protocol) for name, protocol in PROTOCOLS.items()
    }
    contenders["every threshold"] = lambda scene: DetectionCurve.of([_slide_scores(*scene)]).average_precision
    contenders["nearest"] = lambda scene: cKDTree(scene[1]).query(scene[0])
    scenes = [_scene(n, seed) for seed in range(ROUNDS)]
    seconds = take_turns(contenders, [{name: [scene] for name in contenders} for scene in scenes])
    nearest = seconds.pop("nearest")
    figures = [
        Figure(f"{name}, {n} detections, against nearest", value, "CPU s", nearest, nearest / value)
        for name, value in seconds.items()
    ]
    held = sum(array.nbytes for array in scenes[0]) / 1e6
    tracemalloc.start()
    contenders["every threshold"](scenes[0])
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return [*figures, Figure("memory for every threshold, against the input", peak, "MB", held, held / peak)]


Scene = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _score(protocol: Protocol, scene: Scene) -> MatchResult:
    return protocol.score(*scene, 0.5)


def _scene(n: int, seed: int) -> Scene:
    """Marks [n / 10, 2] and detections [n, 2], µm, at the density of a rich tumour, half of the marks found; scores."""
    rng = np.random.default_rng(seed)
    side = 1000 * (n / 100) ** 0.5  # a hundred detections a mm²
    marks = rng.uniform(0, side, (n // 10, 2))
    near = marks[: n // 20] + rng.normal(0, 2, (n // 20, 2))
    found = np.concatenate([near, rng.uniform(0, side, (n - len(near), 2))])
    return marks, found, np.round(rng.uniform(0, 1, n), 4)


def _slide_scores(marks: NDArray[np.float64], found: NDArray[np.float64], scores: NDArray[np.float64]) -> SlideScores:
    return SlideScores("slide", 1.0, marks, Detections(found, scores, np.zeros(len(scores))), area_mm2=1.0)


def benchmark_hotspot(arguments: argparse.Namespace) -> list[Figure]:  # noqa: ARG001 (every benchmark takes them)
    """Time to find the exact densest window of 2.37 mm² among `N_POINTS` points on 1.5 cm², against an exact rival.

    The rival looks, for each point, at the windows whose left edge meets it, as `mitosis` did before. It gets one in
    `EVERY` of the points to begin at, and its time is multiplied by `EVERY`.
    """
    rng = np.random.default_rng(0)
    slide = np.array([56_000.0, 43_000.0])  # px of 0.25 µm
    points = rng.uniform(0, 1, (N_POINTS, 2)) * slide
    area = 2.37e6 / 0.25**2
    size = np.array([(area * 4 / 3) ** 0.5, (area * 3 / 4) ** 0.5])
    contenders: dict[str, Callable[[Any], Any]] = {
        "rectangle": lambda p: densest_rectangles(p, size, slide - size, np.empty((0, 4))),
        "disc": lambda p: densest_discs(p, float((area / np.pi) ** 0.5), np.empty((0, 2))),
        "point by point": lambda p: _point_by_point(p, size),
    }
    seconds = take_turns(contenders, [{name: [points] for name in contenders}])
    rival = seconds.pop("point by point") * EVERY
    return [
        Figure(f"{name}, {N_POINTS} points, against point by point", value, "CPU s", rival, rival / value)
        for name, value in seconds.items()
    ]


def _point_by_point(points: NDArray[np.float64], size: NDArray[np.float64]) -> int:
    """The most points in a rectangle whose left edge meets one in `EVERY` of them."""
    points, most = points[np.argsort(points[:, 1])], 0
    first = np.searchsorted(points[:, 1], points[:, 1] - size[1])
    end = np.searchsorted(points[:, 1], points[:, 1] + size[1], side="right")
    for i in range(0, len(points), EVERY):
        near = points[first[i] : end[i]]
        y = near[(near[:, 0] >= points[i, 0]) & (near[:, 0] <= points[i, 0] + size[0]), 1]
        most = max(most, int((np.searchsorted(y, y + size[1], side="right") - np.arange(len(y))).max()))
    return most
