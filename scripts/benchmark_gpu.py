"""A GPU: the network alone on the card, a slide from its file to its count, and training: `benchmark.py gpu`."""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, product
from pathlib import Path

import torch
from benchmark_figure import Figure
from large_slides import write_large_slide
from torch import Tensor, nn

from mitosis.checkpoints import load_model
from mitosis.cohort import find_sources
from mitosis.config import CountConfig, load_config
from mitosis.dataset import PatchDataset
from mitosis.engines import Precision, torch_scorer
from mitosis.extraction import extract_patches
from mitosis.geometry import Tile, area_mm2
from mitosis.inference import count_slide
from mitosis.learner import Learner
from mitosis.loading import load_batches
from mitosis.models import find_model
from mitosis.patches import PatchIndex
from mitosis.runtime import choose_device, without_tf32
from mitosis.sampling import PatchPool, epochs
from mitosis.slides import Slide, open_slide
from mitosis.stain import StainLevels, measure_stain
from mitosis.tile_search import Model, read_ahead, tiles_on
from mitosis.tissue import find_tissue

__all__ = ["GPU_SIDE", "benchmark_gpu"]

GPU_SIDE = 10_000
"""Side of the drawn slide, px."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
BATCH_SIZES = (1, 8)
N_RUNS, N_STEPS = 20, 50
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
READERS = tuple(sorted({1, 4, CORES}))
LOADERS = tuple(sorted({0, 4, max(0, CORES - 2)}))
RECIPE = Path(__file__).parent / "release.yaml"
SAMPLES = Path(__file__).parents[1] / "sample_patches"


def benchmark_gpu(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Time of the network alone, of a count, of training, and what else they wait for.

    Raises
    ------
    SystemExit
        There is no GPU.
    """
    device = choose_device()
    if device.type != "cuda":
        raise SystemExit("gpu: PyTorch sees no GPU on this machine, so there is nothing to measure.")
    print(f"{torch.cuda.get_device_name()}, {CORES} cores, torch {torch.__version__}", file=sys.stderr)
    yield from _figures(arguments, device)


def _figures(arguments: argparse.Namespace, device: torch.device) -> Iterator[Figure]:
    folder, config, rounds = find_model(arguments.model or "default"), load_config().count, arguments.rounds
    network, card = load_model(folder)
    rates: dict[str, float] = {}
    yield from _network_figures(network, card.mpp, rates, device, rounds)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_large_slide(Path(scratch), arguments.side or GPU_SIDE)
        with open_slide(path) as slide:
            yield from _count_figures(slide, folder, rates, config, rounds)
        yield from _training_figures(Path(scratch))
    yield from _compiled_figures(network, card.mpp, rates, device, rounds)


# The network


def _network_figures(
    network: nn.Module, mpp: float, rates: dict[str, float], device: torch.device, rounds: int
) -> Iterator[Figure]:
    """mm² of pixels a second; those of single tiles, call by call, are noted in `rates` too."""
    side = load_config().count.tile_size
    for precision, size in product(PRECISIONS, BATCH_SIZES):
        mm2 = size * area_mm2(side**2, mpp)
        scorer = torch_scorer(network, device, precision)
        ways = _ways(scorer, _images(size, side, device), exact=precision == "float32")
        taken = {way: _median(run, rounds, device) for way, run in ways.items()}
        for way, seconds in taken.items():
            name = f"network alone, {precision}, {size} at once, {way}"
            yield Figure(name, mm2 / seconds, "mm²/s", mm2 / taken["eager"], taken["eager"] / seconds)
        rates.setdefault(precision, mm2 / taken["eager"])


def _images(n: int, side: int, device: torch.device) -> Tensor:
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, device=device)


def _ways(scorer: nn.Module, images: Tensor, *, exact: bool) -> dict[str, Callable[[], object]]:
    """The network on tiles that lie on the card: call by call, and as one graph of all its calls."""

    @torch.inference_mode()
    def run() -> Tensor:
        result: Tensor = without_tf32(scorer, images) if exact and images.is_cuda else scorer(images)
        return result

    if not images.is_cuda:
        return {"eager": run}
    first: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped library
    first.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(first):  # what a graph takes up has to have run before, on a stream of its own
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return {"eager": run, "graph": graph.replay}


def _median(run: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Seconds a run, the median over rounds of `N_RUNS` each."""
    taken = []
    run()
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        for _ in range(N_RUNS):
            run()
        _wait(device)
        taken.append((time.perf_counter() - start) / N_RUNS)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _compiled_figures(
    network: nn.Module, mpp: float, rates: dict[str, float], device: torch.device, rounds: int
) -> Iterator[Figure]:
    """`torch.compile`, which takes long to make ready, so it is tried last and in one precision."""
    config, precision = load_config().count, PRECISIONS[1]
    try:
        compiled, images = (
            torch.compile(torch_scorer(network, device, "bfloat16")),
            _images(1, config.tile_size, device),
        )
        start = time.perf_counter()
        with torch.no_grad():
            compiled(images)
            ready = time.perf_counter() - start
            seconds = _median(lambda: compiled(images), rounds, device)
    except Exception as error:  # it needs a compiler, and fails in as many ways as there are machines
        print(
            f"torch.compile fails here: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr
        )
        return
    rate = area_mm2(config.tile_size**2, mpp) / seconds
    name = f"network alone, {precision}, 1 at once, compiled in {ready:.0f} s"
    yield Figure(name, rate, "mm²/s", rates[precision], rate / rates[precision])


# A slide


def _count_figures(
    slide: Slide, folder: Path, rates: dict[str, float], config: CountConfig, rounds: int
) -> Iterator[Figure]:
    """mm² of tissue a second, against the network alone for as many windows of as many pixels."""
    gpu = torch.cuda.is_available()
    if gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    tissue, counted = find_tissue(slide), dict[str, int]()
    for precision in PRECISIONS:
        model = Model.load(folder, config.model_copy(update={"precision": precision}))
        tiles = tiles_on(tissue, model, config)
        seen_mm2 = sum(area_mm2(tile.window.size[0] * tile.window.size[1], tile.mpp) for tile in tiles)
        alone = rates[precision] * tissue.area_mm2 / seen_mm2
        if precision == PRECISIONS[0]:
            stain = measure_stain(slide, tissue, model.card.mpp) if model.card.network.normalise_stain else None
            yield from _reading_figures(slide, tiles, stain, config, tissue.area_mm2, alone, rounds)
        for workers, verify in product(READERS if precision == PRECISIONS[-1] else READERS[-1:], (False, True)):
            settings = config.model_copy(update={"precision": precision, "workers": workers, "verify": verify})
            rate, counted[precision] = _count_rate(slide, model, settings, tissue.area_mm2, rounds)
            name = f"{'two stages' if verify else 'one stage'}, {precision}, {workers} readers"
            yield Figure(name, rate, "mm²/s", alone, rate / alone)
        exact = counted[PRECISIONS[0]]
        yield Figure(f"figures counted, {precision}", counted[precision], "", exact, counted[precision] / max(1, exact))
    if gpu:
        peak, all_of_it = torch.cuda.max_memory_reserved() / 1e6, torch.cuda.mem_get_info()[1] / 1e6
        yield Figure.less_is_better("peak GPU memory of the counts, held", peak, "MB", all_of_it)
        used = torch.cuda.max_memory_allocated() / 1e6
        yield Figure.less_is_better("peak GPU memory of the counts, used", used, "MB", all_of_it)


def _count_rate(slide: Slide, model: Model, config: CountConfig, mm2: float, rounds: int) -> tuple[float, int]:
    """mm² a second of the whole count, and how many figures there are; the first count makes all ready."""
    n_figures = count_slide(slide, "slide", model, config).report.mitotic_count
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        count_slide(slide, "slide", model, config)
        taken.append(time.perf_counter() - start)
    return mm2 / statistics.median(taken), n_figures


def _reading_figures(
    slide: Slide,
    tiles: Sequence[Tile],
    stain: StainLevels | None,
    config: CountConfig,
    mm2: float,
    alone: float,
    rounds: int,
) -> Iterator[Figure]:
    for workers in READERS:
        settings, taken = config.model_copy(update={"workers": workers}), []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in read_ahead(slide, tiles, settings, stain):
                pass
            taken.append(time.perf_counter() - start)
        rate = mm2 / statistics.median(taken)
        yield Figure(f"reading alone, {workers} readers", rate, "mm²/s", alone, rate / alone)


# Training


def _training_figures(folder: Path) -> Iterator[Figure]:
    """Steps a second with the recipe of the shipped model, against the same batch over and over, on the card."""
    sources = find_sources([SAMPLES / "images"], annotations=SAMPLES / "masks", case_pattern=r"^case\d+")
    for record in extract_patches(sources, folder / "patches", load_config().extract):
        if record.error:
            raise SystemExit(record.error)
    index = PatchIndex.read(folder / "patches")
    config = load_config(RECIPE)
    n_classes = config.network.classes
    learner = Learner(config, index.n_pixels(n_classes), folder)
    dataset = PatchDataset(index, config.train, config.network)
    n = 1 + max(1, 5 * max(LOADERS)) + 3 * N_STEPS  # the first ones lie ready when the last loader has started
    batches = list(islice(chain.from_iterable(epochs(PatchPool.of(index), config.train)), n))
    images, masks = next(iter(load_batches(dataset, batches[:1], 0)))
    images, masks = images.to(learner.device), masks.to(learner.device)
    alone = _step_rate(learner, iter([(images, masks)] * (3 * N_STEPS + 5)), 5)
    for workers in LOADERS:
        before = 1 + 5 * workers
        rate = _step_rate(learner, load_batches(dataset, batches[: before + 3 * N_STEPS], workers), before)
        share = max(0.0, 1 - rate / alone)
        yield Figure(f"training, {workers} loaders, {share:.0%} waiting", rate, "steps/s", alone, rate / alone)


def _step_rate(learner: Learner, loaded: Iterator[tuple[Tensor, ...]], n_before: int) -> float:
    """Median over three runs of `N_STEPS`, after the first ones; a step waits for the card itself."""
    for step in range(1, n_before + 1):
        learner.step(step, *next(loaded))
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(N_STEPS):
            learner.step(n_before + 1, *next(loaded))
        taken.append(time.perf_counter() - start)
    return N_STEPS / statistics.median(taken)
