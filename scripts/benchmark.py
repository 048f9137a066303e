"""Measure the toolkit beside what else does the same job, in turn, in one run.

Usage: python scripts/benchmark.py read [--slide FILE] [--json]
       python scripts/benchmark.py load [--patches FOLDER] [--json]
       python scripts/benchmark.py evaluate [--detections N] [--json]
       python scripts/benchmark.py hotspot [--json]
       python scripts/benchmark.py network [--json]
       python scripts/benchmark.py slide [--side N | --sides N N ...] [--cache FOLDER] [--model MODEL] [--json]

Figures are medians over rounds in which the contenders take turns on fresh work, as CPU time of the process, so a busy
machine disturbs the ratios little; only `slide` gives wall times too, for which the machine must be idle. A benchmark
is a function and a line in `BENCHMARKS`.
"""

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import openslide
import simplejpeg
import tifffile
import torch
from benchmark_figure import Figure
from benchmark_slide import benchmark_slide
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from mitosis.checkpoints import load_model
from mitosis.cohort import find_sources
from mitosis.config import load_config
from mitosis.cost import network_cost
from mitosis.dataset import PatchDataset, load_batches
from mitosis.densest_discs import densest_discs
from mitosis.densest_rectangles import densest_rectangles
from mitosis.detections import Detections, reach_px
from mitosis.engines import build_engine
from mitosis.extraction import extract_patches
from mitosis.geometry import Box, area_mm2, grid_dimensions
from mitosis.learner import Learner
from mitosis.matching import PROTOCOLS, MatchResult, Protocol
from mitosis.models import shipped_models
from mitosis.patches import PatchIndex
from mitosis.ranking import DetectionCurve, SlideScores
from mitosis.sampling import Draw, PatchPool, epochs
from mitosis.slides import Slide, open_slide, read_at_mpp
from mitosis.slides.tiff import TiffSlide
from mitosis.unet import UNet

__all__ = ["BENCHMARKS", "Figure", "main", "write_example_slide"]

ROUNDS = 5
EVALUATE_ROUNDS = SLIDE_ROUNDS = 3
READ_SIDE, SLIDE_SIDE = 8192, 20_000
REGION, N_REGIONS = 512, 60
HALVED_MPP = (0.25, 0.2456)  # a whole number of half-size pixels, and none
N_PATCHES, N_STEPS = 48, 6
N_POINTS, EVERY = 100_000, 50
TILE = 256
PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
RIVAL = "plain U-Net of width 16 and depth 4 at 0.25 µm/px"


def read(arguments: argparse.Namespace) -> list[Figure]:
    """Time to read a JPEG slide, against OpenSlide and against nothing but decoding the same tiles.

    Then at 0.5 µm/px, where tiles are decoded at half size, against the same reading with tiles decoded in full.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.slide or write_example_slide(Path(folder) / "example.svs", arguments.side or READ_SIDE)
        with open_slide(path, mpp=0.25) as slide:
            figures = [
                *_read_figures("tiles in order", slide, _tiles_in_order(slide)),
                *_read_figures(f"random {REGION} px", slide, _random_regions(slide)),
            ]
        return [*figures, *(figure for mpp in HALVED_MPP for figure in _half_figures(path, mpp))]


def _read_figures(name: str, slide: Slide, rounds: Sequence[Sequence[Box]]) -> Iterator[Figure]:
    rival, tiles = openslide.OpenSlide(slide.path), _RawTiles(slide.path)
    contenders: dict[str, Callable[[Any], Any]] = {
        "mitosis": lambda box: slide.read_region((box.x0, box.y0), 0, box.size),
        "openslide": lambda box: np.asarray(rival.read_region((box.x0, box.y0), 0, box.size).convert("RGB")),
        "decoding": lambda stream: simplejpeg.decode_jpeg(stream, "RGB", strict=True),
    }
    work = [{"mitosis": boxes, "openslide": boxes, "decoding": tiles.touched(boxes)} for boxes in rounds]
    seconds = _take_turns(contenders, work)
    for box in (box for boxes in rounds for box in boxes):
        _check_pixels(contenders["mitosis"](box), contenders["openslide"](box))
    rival.close()
    megapixels = statistics.mean(sum(b.size[0] * b.size[1] for b in boxes) for boxes in rounds) / 1e6
    cost = {contender: 1000 * value / megapixels for contender, value in seconds.items()}
    for baseline in ("openslide", "decoding"):
        ratio = cost[baseline] / cost["mitosis"]
        yield Figure(f"{name}, against {baseline}", cost["mitosis"], "CPU ms/Mpx", cost[baseline], ratio)


class _InFull(TiffSlide):
    """A slide whose tiles are never decoded smaller than they are."""

    def reductions(self, level: int) -> tuple[int, ...]:  # noqa: ARG002 (signature of Slide)
        return ()


def _half_figures(path: Path, mpp: float) -> Iterator[Figure]:
    """Time to read windows at 0.5 µm/px of a slide of `mpp`, beside reading without reduction and beside decoding."""
    tiles, side = _RawTiles(path), int(REGION * 0.5 / mpp)
    with TiffSlide(path, mpp) as slide, _InFull(path, mpp) as in_full:
        contenders: dict[str, Callable[[Any], Any]] = {
            "mitosis": lambda box: read_at_mpp(slide, box, 0.5),
            "full tiles": lambda box: read_at_mpp(in_full, box, 0.5),
            "decoding": lambda stream: simplejpeg.decode_jpeg(stream, "RGB", strict=True),
        }
        width, height = grid_dimensions(slide.dimensions, mpp, 0.5)
        places = np.random.default_rng(0).integers(0, (width - REGION, height - REGION), (ROUNDS, N_REGIONS // 4, 2))
        rounds = [[Box(x, y, x + REGION, y + REGION) for x, y in some] for some in places.tolist()]
        full = [[Box(*(int(edge * 0.5 / mpp) for edge in box)) for box in boxes] for boxes in rounds]
        work: list[dict[str, Sequence[Any]]] = [
            {"mitosis": boxes, "full tiles": boxes, "decoding": tiles.touched(touched)}
            for boxes, touched in zip(rounds, full, strict=True)
        ]
        seconds = _take_turns(contenders, work)
        _check_likeness(contenders["mitosis"](rounds[0][0]), contenders["full tiles"](rounds[0][0]))
    cost = {contender: 1000 * value / (N_REGIONS // 4 * side**2 / 1e6) for contender, value in seconds.items()}
    for baseline in ("full tiles", "decoding"):
        name = f"{mpp:g} at 0.5 µm/px, against {baseline}"
        yield Figure(name, cost["mitosis"], "CPU ms/Mpx", cost[baseline], cost[baseline] / cost["mitosis"])


def _take_turns(
    contenders: Mapping[str, Callable[[Any], Any]], rounds: Sequence[Mapping[str, Sequence[Any]]]
) -> dict[str, float]:
    """Median CPU seconds a round of each contender; what they return is dropped at once, as a consumer would."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for number, work in enumerate(rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            start = time.process_time()
            for item in work[name]:
                contenders[name](item)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _check_pixels(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    difference = np.abs(ours.astype(np.int16) - theirs).max()
    if difference > 1:
        raise SystemExit(f"pixels differ from OpenSlide's by {difference}: the times say nothing.")


def _check_likeness(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    difference = np.abs(ours.astype(np.int16) - theirs).mean()
    if difference > 3:
        raise SystemExit(f"reduced pixels differ by {difference:.1f} levels in the mean: the times say nothing.")


def load(arguments: argparse.Namespace) -> list[Figure]:
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
        seconds = _take_turns(contenders, [dict.fromkeys(contenders, draws) for draws in rounds])
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


def evaluate(arguments: argparse.Namespace) -> list[Figure]:
    """Time to score detections against a tenth as many marks, against looking for each mark's nearest detection."""
    n = arguments.detections
    contenders: dict[str, Callable[[Any], Any]] = {
        name: partial(_score, protocol) for name, protocol in PROTOCOLS.items()
    }
    contenders["every threshold"] = lambda scene: DetectionCurve.of([_slide_scores(*scene)]).average_precision
    contenders["nearest"] = lambda scene: cKDTree(scene[1]).query(scene[0])
    scenes = [_scene(n, seed) for seed in range(EVALUATE_ROUNDS)]
    seconds = _take_turns(contenders, [{name: [scene] for name in contenders} for scene in scenes])
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


def hotspot(arguments: argparse.Namespace) -> list[Figure]:  # noqa: ARG001 (every benchmark takes them)
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
    seconds = _take_turns(contenders, [{name: [points] for name in contenders}])
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


class _Contender(NamedTuple):
    """A network to time at the µm/px that it sees."""

    network: UNet
    mpp: float

    @property
    def halo(self) -> int:
        """What surrounds the core of a tile when a slide is counted, px on each side."""
        stride = self.network.stride
        return -(-(reach_px(self.mpp) + self.network.margin) // stride) * stride

    def per_mm2(self, side: int) -> float:
        """How many squares of `side` px are a mm²."""
        return 1 / area_mm2(side**2, self.mpp)

    def gflop_per_mm2(self) -> float:
        """Without what surrounds tiles."""
        shapes = {name: weight.shape for name, weight in self.network.state_dict().items()}
        return network_cost(shapes).gflop_per_mm2(self.mpp)


def network(arguments: argparse.Namespace) -> list[Figure]:  # noqa: ARG001 (every benchmark takes them)
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
    rng, field = np.random.default_rng(0), _stained_noise(2 * count.tile_size)
    corners = rng.integers(0, count.tile_size, (ROUNDS + 1, count.batch_size, 2)).tolist()
    batches = [
        np.stack([field[y : y + count.tile_size, x : x + count.tile_size] for x, y in places]) for places in corners
    ]
    for engine in contenders.values():
        engine(batches[0])  # the first makes an engine ready
    seconds = _take_turns(contenders, [{name: [batch] for name in contenders} for batch in batches[1:]])
    return {name: value / count.batch_size for name, value in seconds.items()}


def slide(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Time and memory from a slide's file to its count; see `benchmark_slide`."""
    sides = arguments.sides or [arguments.side or SLIDE_SIDE]
    return benchmark_slide(sides, arguments.cache, arguments.model, load_config().count, SLIDE_ROUNDS)


class _RawTiles:
    """Complete JPEG streams of a slide's level 0, ready to decode."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            if page.compression != tifffile.COMPRESSION.JPEG or not page.is_tiled:
                raise SystemExit(f"{path}: this benchmark needs a slide of JPEG tiles.")
            self._offsets, self._counts, self._tables = page.dataoffsets, page.databytecounts, page.jpegtables
            self.side = (page.tilewidth, page.tilelength)
            self._across = -(-page.imagewidth // page.tilewidth)

    def touched(self, boxes: Sequence[Box]) -> list[bytes]:
        """Streams of the tiles that each box touches; a tile touched by two boxes comes twice."""
        width, height = self.side
        return [
            self._stream(row * self._across + column)
            for box in boxes
            for row in range(box.y0 // height, -(-box.y1 // height))
            for column in range(box.x0 // width, -(-box.x1 // width))
        ]

    def _stream(self, index: int) -> bytes:
        raw = self._data[self._offsets[index] : self._offsets[index] + self._counts[index]]
        return self._tables[:-2] + raw[2:] if self._tables else raw


def _tiles_in_order(slide: Slide) -> list[list[Box]]:
    """Every whole tile of level 0 once, row by row, dealt to the rounds in runs."""
    width, height = _RawTiles(slide.path).side
    columns, rows = slide.dimensions[0] // width, slide.dimensions[1] // height
    places = [(column * width, row * height) for row in range(rows) for column in range(columns)]
    run = len(places) // ROUNDS
    boxes = [Box(x, y, x + width, y + height) for x, y in places]
    return [boxes[n * run : (n + 1) * run] for n in range(ROUNDS)]


def _random_regions(slide: Slide) -> list[list[Box]]:
    rng = np.random.default_rng(0)
    highest = np.subtract(slide.dimensions, REGION)
    corners = rng.integers(0, highest, (ROUNDS, N_REGIONS, 2), endpoint=True).tolist()
    return [[Box(x, y, x + REGION, y + REGION) for x, y in places] for places in corners]


def write_example_slide(path: Path, side: int = 8192) -> Path:
    """Write a pyramid like an Aperio scan: JPEG tiles of 256 px, quality 80, 4:2:0, three levels, stained noise."""
    field = _stained_noise(2048)
    repeats = -(-side // len(field))
    image = np.tile(field, (repeats, repeats, 1))[:side, :side]
    description = f"Aperio Image Library\n{side}x{side} ({TILE}x{TILE}) JPEG/YCC Q=80|AppMag = 40|MPP = 0.25"
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 4, 16):
            level = np.ascontiguousarray(image[::factor, ::factor])
            _write_tiles(writer, level, description)
            if factor == 1:  # where an SVS has its thumbnail
                writer.write(image[::32, ::32], photometric="rgb", compression="jpeg", metadata=None)
    return path


def _write_tiles(writer: tifffile.TiffWriter, image: NDArray[np.uint8], description: str) -> None:
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
    tiles = (
        simplejpeg.encode_jpeg(np.ascontiguousarray(padded[y : y + TILE, x : x + TILE]), 80, "RGB", "420")
        for y in range(0, height, TILE)
        for x in range(0, width, TILE)
    )
    writer.write(
        tiles,
        shape=image.shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        description=description,
        metadata=None,
    )


def _stained_noise(side: int) -> NDArray[np.uint8]:
    """Dark round blots on pink, [side, side, 3]: compresses about like H&E at 0.25 µm/px."""
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), 1.2, mode="wrap") * 3.5
    nuclei = gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), 8, mode="wrap") * 30
    stain = np.clip(nuclei - 0.5, 0, 1) + 0.12 * texture
    pink, purple = np.array([232, 188, 214], np.float32), np.array([96, 62, 140], np.float32)
    image = pink + stain[..., None] * (purple - pink)
    rounded: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return rounded


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Iterable[Figure]]] = {
    "evaluate": evaluate,
    "hotspot": hotspot,
    "load": load,
    "network": network,
    "read": read,
    "slide": slide,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    parser.add_argument("--slide", type=Path, help="read: a slide of JPEG tiles instead of the drawn one")
    parser.add_argument(
        "--side", type=int, help=f"read, slide: side of the drawn slide in px ({READ_SIDE}, {SLIDE_SIDE})"
    )
    parser.add_argument("--sides", type=int, nargs="+", help="slide: several, to see whether memory grows")
    parser.add_argument("--cache", type=Path, help="slide: a folder that keeps the drawn slides for the next time")
    parser.add_argument("--model", help="slide: name or folder of a model instead of the shipped one or a random one")
    parser.add_argument("--patches", type=Path, help="load: a folder of patches instead of sample_patches/")
    parser.add_argument("--detections", type=int, default=1_000_000, help="evaluate: how many")
    parsed = parser.parse_args(arguments)
    for figure in BENCHMARKS[parsed.name](parsed):
        if parsed.json:
            print(json.dumps(asdict(figure)))
        else:
            print(
                f"{figure.name:<50} {figure.value:>8.2f} {figure.unit:<11} {figure.baseline:>8.2f} x{figure.ratio:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
