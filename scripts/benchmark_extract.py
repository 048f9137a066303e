"""Patches of a slide to PNG files, beside other software that cuts and writes the same ones: `benchmark.py extract`."""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmark_figure import Figure
from benchmark_peers import run_apart
from large_slides import MPP, write_large_slide
from PIL import Image

from mitosis.cohort import find_sources
from mitosis.config import ExtractConfig
from mitosis.extraction import PatchCutter
from mitosis.slides import open_slide
from mitosis.tissue import find_tissue

__all__ = ["EXTRACT_SIDE", "benchmark_extract"]

EXTRACT_SIDE = 8192
"""Side of the drawn slide, px."""
SIZE = 512
HERE = {"OpenSlide and Pillow": "openslide_pillow", "OpenSlide and OpenCV": "openslide_opencv"}
"""Peers that need nothing but what the toolkit needs."""
THERE = {"TIAToolbox": "tiatoolbox_patches", "pyvips": "pyvips", "pyvips and OpenCV": "pyvips_opencv"}
"""Peers that live in another environment."""
OURS = {"one worker": 1, "two workers": 2}
ROWS = (
    ("one worker", "CPU ms/patch", ""),
    ("one worker", "ms/patch", ", wall"),
    ("two workers", "ms/patch", ", wall, two workers"),
    ("one worker", "MB", ", memory"),
    ("one worker", "kB/patch", ", size of the files"),
)
"""Which of ours is held against each peer in what; a second worker is a second thread here."""


def benchmark_extract(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Time, memory and disk space to write patches of `SIZE` px at 0.25 µm/px with tissue, as PNG without loss.

    Each in a fresh process, on a slide that is drawn anew for each round. Ours looks for the tissue, measures the
    stain and notes where each patch comes from; the others are told the places.
    """
    taken: dict[str, list[dict[str, float]]] = {}
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = write_large_slide(Path(folder), arguments.side or EXTRACT_SIDE, seed=number)
            contenders = _contenders(path, arguments.peer_python)
            order = list(contenders)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                taken.setdefault(name, []).append(contenders[name].run(path))
            _check(contenders)
    yield from _figures(taken)


class _Contender(NamedTuple):
    worker: str
    job: Mapping[str, Any]
    python: Path | str

    @property
    def out(self) -> Path:
        return Path(self.job["out"])

    def run(self, slide: Path) -> dict[str, float]:
        """What it took, by unit."""
        self.out.mkdir()
        taken = run_apart(self.worker, {**self.job, "slide": str(slide)}, self.python)
        size = statistics.mean(file.stat().st_size for file in self.patches())
        times = {"CPU ms/patch": 1000 * taken.cpu_s / taken.n, "ms/patch": 1000 * taken.wall_s / taken.n}
        return {**times, "MB": taken.peak_mb, "kB/patch": size / 1000}

    def patches(self) -> list[Path]:
        """By place: names have it, and with equal lengths sort by it."""
        return sorted(self.out.rglob("*.png"), key=lambda path: [int(n.strip("xy")) for n in path.stem.split("_")[-2:]])


def _contenders(path: Path, peer_python: Path | None) -> dict[str, _Contender]:
    config = ExtractConfig(mpp=MPP, size=SIZE)
    with open_slide(path) as slide:
        cutter = PatchCutter(slide, find_sources([path])[0], path.parent, config, "", ())
        corners = [(box.x0, box.y0) for _, box, _ in cutter.places(find_tissue(slide))]
        places = {"corners": corners, "size": SIZE, "dimensions": slide.dimensions}
    own = {"config": config.model_dump()}
    contenders = {
        name: _Contender("mitosis_patches", {**own, "workers": n, "out": str(path.parent / name)}, sys.executable)
        for name, n in OURS.items()
    }
    peers = [(HERE, Path(sys.executable))] + ([(THERE, peer_python)] if peer_python else [])
    for workers, python in peers:
        for name, worker in workers.items():
            contenders[name] = _Contender(worker, {**places, "out": str(path.parent / name)}, python)
    if not peer_python:
        print(f"{', '.join(THERE)}: left out. Name an interpreter that has them with --peer-python.", file=sys.stderr)
    return contenders


def _check(contenders: Mapping[str, _Contender]) -> None:
    """Stop if others wrote other patches than we did."""
    written = {name: contender.patches() for name, contender in contenders.items()}
    ours = written.pop("one worker")
    for name, files in written.items():
        if len(files) != len(ours):
            raise SystemExit(f"{name} wrote {len(files)} patches where ours are {len(ours)}: the times say nothing.")
        for file, own in list(zip(files, ours, strict=True))[:: max(1, len(ours) // 4)]:
            difference = np.abs(_pixels(file).astype(np.int16) - _pixels(own)).max()
            if difference > 1:
                raise SystemExit(f"{name}: pixels differ from ours by {difference}: the times say nothing.")


def _pixels(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(file).convert("RGB"))


def _figures(taken: Mapping[str, list[dict[str, float]]]) -> Iterator[Figure]:
    for peer in (name for name in taken if name not in OURS):
        for own, unit, what in ROWS:
            value, baseline = (statistics.median(one[unit] for one in taken[name]) for name in (own, peer))
            yield Figure.less_is_better(f"patches of {SIZE} px, against {peer}{what}", value, unit, baseline)
