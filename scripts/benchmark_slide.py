"""A whole slide from its file to its count, beside the parts of that work alone: `benchmark.py slide`.

Run as a script it counts one slide in a process of its own and says what that took: so memory is measured.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from benchmark_figure import Figure, peak_mb
from large_slides import write_large_slide
from numpy.typing import NDArray
from scipy.special import expit

from mitosis.checkpoints import ModelCard, VerifierCard, load_model, save_model, save_verifier
from mitosis.config import CountConfig, NetworkConfig, VerifierConfig, load_config
from mitosis.crops import CLASSES
from mitosis.detections import concatenate, find_peaks
from mitosis.engines import to_input
from mitosis.geometry import Tile
from mitosis.inference import count_slide
from mitosis.models import find_model, shipped_models
from mitosis.slides import Slide, open_slide
from mitosis.stain import StainLevels, measure_stain
from mitosis.threads import in_threads, share_heap
from mitosis.tile_search import Model, read_ahead, tiles_on
from mitosis.tissue import find_tissue
from mitosis.unet import UNet
from mitosis.verifier import Verifier

__all__ = ["SLIDE_MM2", "TILINGS", "benchmark_slide", "count_apart", "save_random_model"]

SLIDE_MM2 = 150.0
"""Tissue of a resected tumour's slide."""
MEMORY_MB = 1500.0
"""What counting may take."""
TILINGS = ((512, 4), (1024, 1), (1280, 1), (2048, 1))
"""Tile and batch sizes to compare; the first is what others are held against."""
CANDIDATES_PER_MM2 = 100.0  # what first stages of trained models give above the floor on drawn and real tumours
N_SAMPLE = 6  # tiles to set a random network by


def benchmark_slide(
    sides: Sequence[int],
    folder: Path | None,
    model: str | None,
    config: CountConfig,
    rounds: int,
    tissue: Path | None = None,
) -> Iterator[Figure]:
    """Time and memory of counting slides that are drawn, or put together of pictures of tissue.

    On the first slide: time from file to count, without and with the second stage, against the slower of the network
    alone (pixels in memory) and reading alone; what that is a mm² and for a slide of 1.5 cm² of tissue; the first two
    for a random network of the shape that is trained by default; CPU time and memory for other tiles. On each further
    slide: peak memory and CPU time a mm² against those of the first.

    Parameters
    ----------
    sides : sequence of int
        px of 0.25 µm.
    folder : Path or None
        Where the slides are kept; None draws them anew and keeps nothing.
    model : str or None
        Name or folder of a model. None takes the shipped one or, if there is none, a random U-Net of width 8 and
        depth 3, set to find `CANDIDATES_PER_MM2`.
    rounds : int
        Of which medians are taken.
    tissue : Path or None
        A folder of pictures of tissue.
    """
    with tempfile.TemporaryDirectory() as scratch:
        paths = [write_large_slide(folder or Path(scratch), side, tissue=tissue) for side in sides]
        weights = find_model(model or "default") if model or shipped_models() else Path(scratch) / "model"
        if not model and not shipped_models():
            save_random_model(weights, paths[0], NetworkConfig(width=8, depth=3))
        yield from _time_figures(paths[0], weights, config, rounds)
        usual = Path(scratch) / "usual"
        save_random_model(usual, paths[0], NetworkConfig())
        yield from _usual_figures(paths[0], usual, config, rounds)
        yield from _tiling_figures(paths[0], weights, config, rounds)
        yield from _growth_figures(paths, weights, config)


@dataclass(frozen=True)
class Taken:
    """What a piece of work took."""

    wall_s: float
    cpu_s: float

    @classmethod
    def by(cls, work: Callable[[], object]) -> "Taken":
        """Measure."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)


def _take_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Taken]:
    """Medians; the order changes from round to round."""
    taken: dict[str, list[Taken]] = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(rounds):
        turn = number % len(order)
        for name in order[turn:] + order[:turn]:
            taken[name].append(Taken.by(contenders[name]))
    return {
        name: Taken(statistics.median(one.wall_s for one in each), statistics.median(one.cpu_s for one in each))
        for name, each in taken.items()
    }


def _time_figures(path: Path, weights: Path, config: CountConfig, rounds: int) -> Iterator[Figure]:
    stages = {"one stage": config.model_copy(update={"verify": False})}
    if load_model(weights)[1].verifier is not None:
        stages["two stages"] = config.model_copy(update={"verify": True})
    taken, tissue_mm2 = _taken_by(path, weights, config, stages, rounds)
    network, reading = taken["network"], taken["reading"]
    yield Figure.less_is_better("reading alone, against the network alone", reading.wall_s, "s", network.wall_s)
    for name in stages:
        yield from _against_parts(name, taken)
        per_mm2 = np.array([taken[name].wall_s, max(network.wall_s, reading.wall_s)]) / tissue_mm2
        yield Figure.less_is_better(f"{name}, time a mm² of tissue", per_mm2[0], "s/mm²", per_mm2[1])
        minutes = (per_mm2 * SLIDE_MM2 / 60).tolist()
        yield Figure.less_is_better(f"{name}, a slide of {SLIDE_MM2:g} mm² of tissue", minutes[0], "min", minutes[1])


def _usual_figures(path: Path, weights: Path, config: CountConfig, rounds: int) -> Iterator[Figure]:
    name = "one stage of the shape that is trained by default"
    precision = "bfloat16" if config.precision == "int8" else config.precision  # for int8 it would lack the ranges
    config = config.model_copy(update={"verify": False, "precision": precision})
    yield from _against_parts(name, _taken_by(path, weights, config, {name: config}, rounds)[0])


def _against_parts(name: str, taken: Mapping[str, Taken]) -> Iterator[Figure]:
    """A count against the network alone and reading alone."""
    network, reading = taken["network"], taken["reading"]
    slower, both = max(network.wall_s, reading.wall_s), network.cpu_s + reading.cpu_s
    yield Figure.less_is_better(f"{name}, against the slower of both", taken[name].wall_s, "s", slower)
    yield Figure.less_is_better(f"{name}, CPU time against that of both", taken[name].cpu_s, "CPU s", both)


def _taken_by(
    path: Path, weights: Path, config: CountConfig, counts: Mapping[str, CountConfig], rounds: int
) -> tuple[dict[str, Taken], float]:
    """What counts of a slide took, the network alone (`network`) and reading alone (`reading`), and its tissue, mm²."""
    with open_slide(path) as slide:
        work = _Work.of(slide, Model.load(weights, config), config)
        contenders: dict[str, Callable[[], object]] = {
            name: lambda settings=settings: count_slide(slide, path.stem, work.model, settings)  # type: ignore[misc]  # mypy infers no types of defaults
            for name, settings in counts.items()
        }
        taken = _take_turns(contenders | {"network": work.run_network, "reading": work.read}, rounds)
    return taken, work.tissue_mm2


@dataclass(frozen=True)
class _Work:
    """What there is to do on a slide, and its parts alone."""

    slide: Slide
    model: Model
    config: CountConfig
    tissue_mm2: float
    tiles: tuple[Tile, ...]
    stain: StainLevels | None

    @classmethod
    def of(cls, slide: Slide, model: Model, config: CountConfig) -> "_Work":
        tissue = find_tissue(slide)
        tiles = tiles_on(tissue, model, config)
        stain = measure_stain(slide, tissue, model.card.mpp) if model.card.network.normalise_stain else None
        work = cls(slide, model, config, tissue.area_mm2, tiles, stain)
        work.run_network(1)  # the first makes an engine ready
        return work

    def read(self) -> None:
        """All that is read, and nothing done with it."""
        for _ in read_ahead(self.slide, self.tiles, self.config, self.stain):
            pass

    def run_network(self, n_batches: int | None = None) -> None:
        """The network for windows like those of all batches, or of the first ones; it takes as long for any pixels."""
        size, lanes = self.config.batch_size, self.model.in_flight

        def run(start: int) -> None:
            windows = [tile.window.size for tile in self.tiles[start : start + size]]
            width, height = (max(sides) for sides in zip(*windows, strict=True))
            self.model.engine(np.full((len(windows), height, width, 3), 255, np.uint8))

        for _ in in_threads(run, range(0, len(self.tiles), size)[:n_batches], lanes, ahead=lanes):
            pass


def _tiling_figures(path: Path, weights: Path, config: CountConfig, rounds: int) -> Iterator[Figure]:
    """CPU time and peak memory by tile and batch size, each count in a process of its own."""
    counts: dict[tuple[int, int], list[Apart]] = {tiling: [] for tiling in TILINGS}
    for number in range(rounds):
        turn = number % len(TILINGS)
        for tile_size, batch_size in TILINGS[turn:] + TILINGS[:turn]:
            settings = config.model_copy(update={"tile_size": tile_size, "batch_size": batch_size, "verify": False})
            counts[tile_size, batch_size].append(count_apart(path, weights, settings))
    usual = statistics.median(count.cpu_s_per_mm2 for count in counts[TILINGS[0]])
    for (tile_size, batch_size), each in counts.items():
        name = f"tiles of {tile_size} px, {batch_size} at once"
        cost = statistics.median(count.cpu_s_per_mm2 for count in each)
        yield Figure.less_is_better(name, cost, "CPU s/mm²", usual)
        yield Figure.less_is_better(f"{name}, peak memory", max(count.peak_mb for count in each), "MB", MEMORY_MB)


def _growth_figures(paths: Sequence[Path], weights: Path, config: CountConfig) -> Iterator[Figure]:
    """Peak memory and CPU time a mm² of each slide against the first."""
    first: Apart | None = None
    for path in paths:
        count = count_apart(path, weights, config)
        first = first or count
        yield Figure.less_is_better(f"slide of {path.stem} px, peak memory", count.peak_mb, "MB", first.peak_mb)
        cost, baseline = count.cpu_s_per_mm2, first.cpu_s_per_mm2
        yield Figure.less_is_better(f"slide of {path.stem} px, {count.tissue_mm2:.0f} mm²", cost, "CPU s/mm²", baseline)


@dataclass(frozen=True)
class Apart:
    """What counting a slide took in a process of its own; loading the model is not in the times."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    tissue_mm2: float
    n_candidates: int

    @property
    def cpu_s_per_mm2(self) -> float:
        """CPU seconds a mm² of tissue."""
        return self.cpu_s / self.tissue_mm2


def count_apart(path: Path, weights: Path, config: CountConfig) -> Apart:
    """Count a slide in a fresh process."""
    words = [sys.executable, __file__, str(path), str(weights), config.model_dump_json()]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return Apart(**json.loads(done.stdout.splitlines()[-1]))


def _count_here(path: Path, weights: Path, config: CountConfig) -> Apart:
    share_heap()  # as the command does
    model = Model.load(weights, config)
    model.engine(np.full((config.batch_size, config.tile_size, config.tile_size, 3), 255, np.uint8))
    with open_slide(path) as slide:
        counts = []
        taken = Taken.by(lambda: counts.append(count_slide(slide, path.stem, model, config)))
    return Apart(
        **asdict(taken),
        peak_mb=peak_mb(),
        tissue_mm2=counts[0].tissue.area_mm2,
        n_candidates=len(counts[0].candidates),
    )


def save_random_model(folder: Path, path: Path, shape: NetworkConfig) -> ModelCard:
    """Save a random U-Net that finds `CANDIDATES_PER_MM2` on a slide, and a random second stage.

    Half of what the first stage finds is above its threshold.
    """
    torch.manual_seed(0)
    settings, mpp = VerifierConfig(), load_config().extract.mpp
    network, classes = UNet.from_config(shape), ("background", "mitotic figure")
    with open_slide(path) as slide:
        threshold = _set_by(network, slide, ModelCard(network=shape, classes=classes, mpp=mpp, threshold=0.5))
    folder.mkdir(exist_ok=True)
    second = VerifierCard(settings=settings, classes=CLASSES, threshold=0.5, count_threshold=0.5)
    second = save_verifier(folder, Verifier.from_config(settings), second)
    card = ModelCard(network=shape, classes=classes, mpp=mpp, threshold=threshold, verifier=second)
    return save_model(folder, network.state_dict(), card)


@torch.no_grad()
def _set_by(network: UNet, slide: Slide, card: ModelCard) -> float:
    """Set the statistics and the last layer of a network by tiles of a slide; gives a threshold."""
    config, model = CountConfig(tile_size=512), Model.of(network, card)
    tissue = find_tissue(slide)
    tiles = tiles_on(tissue, model, config)
    stain = measure_stain(slide, tissue, card.mpp)
    numbers = np.unique(np.linspace(0, len(tiles) - 1, N_SAMPLE).round().astype(int))
    chosen = [tiles[number] for number in numbers]
    images = [to_input(torch.from_numpy(pixels)) for _, pixels in read_ahead(slide, chosen, config, stain)]
    network.train()
    for _ in range(10):  # the running statistics of batch normalisation come near those of the slide
        for batch in images:
            network(batch)
    network.eval()
    odds = [logits[0, 1] - logits[0, 0] for logits in map(network, images)]
    spread, mean = torch.std_mean(torch.cat([each.flatten() for each in odds]))
    margins = [((each - mean) * (4 / spread)).numpy() for each in odds]
    ratio = card.mpp / slide.mpp
    mm2 = sum(tissue.area_mm2_in([edge * ratio for edge in tile.core]) for tile in chosen)
    shift, threshold = _shift_for(margins, chosen, CANDIDATES_PER_MM2 * mm2, config.score_floor)
    network.head.weight.mul_(4 / spread)
    bias: torch.Tensor = network.head.bias  # type: ignore[assignment]  # torch allows for layers without
    bias.mul_(4 / spread)
    bias[1] += shift - 4 * mean / spread
    return threshold


def _shift_for(
    margins: Sequence[NDArray[np.float32]], tiles: Sequence[Tile], wanted: float, floor: float
) -> tuple[float, float]:
    """What to add to the log odds of tiles, [height, width], for so many peaks above the floor; their median score."""

    def scores(shift: float) -> NDArray[np.float64]:
        found = (
            find_peaks(expit(margin + shift), tile.window, tile.core, tile.mpp, tile.mpp, floor)
            for margin, tile in zip(margins, tiles, strict=True)
        )
        return concatenate(found).score

    low, high = -max(float(margin.max()) for margin in margins) - 5, 0.0  # with the first nothing is near the floor
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if len(scores(middle)) < wanted else (low, middle)
    return high, float(np.median(scores(high)))


def _main(words: Sequence[str]) -> None:
    path, weights, settings = words
    print(json.dumps(asdict(_count_here(Path(path), Path(weights), CountConfig.model_validate_json(settings)))))


if __name__ == "__main__":
    _main(sys.argv[1:])
