"""One worker process against two on the same slide: `benchmark.py workers`.

Each worker reads and computes on one thread, so that what is measured is not parallel already. The clusters stand
before the clock starts, and take turns.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from benchmark_figure import Figure
from large_slides import write_large_slide

from mitosis.cluster import Cluster, open_cluster
from mitosis.config import CountConfig, load_config
from mitosis.inference import SlideCount, count_slide, finish_slide, start_slide
from mitosis.models import find_model
from mitosis.slides import open_slide
from mitosis.tile_search import Model

__all__ = ["WORKERS_SIDE", "benchmark_workers"]

WORKERS_SIDE = 40_000
"""Side of the drawn slide, px; of a small one, what is done once a slide is a large part."""
N_WORKERS = (1, 2)
TILES = 2  # a region: many regions, so that no worker waits long for the last


def benchmark_workers(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Time from file to count by one worker and by two, and whether the reports are the same."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which are not started yet
    torch.set_num_threads(1)
    config = load_config().count.model_copy(update={"workers": 0})
    model = Model.load(find_model(arguments.model or "default"), config)
    with ExitStack() as stack:
        folder = arguments.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = write_large_slide(folder, arguments.side or WORKERS_SIDE)
        clusters = {n: stack.enter_context(open_cluster(processes=n, tiles=TILES)) for n in N_WORKERS}
        with open_slide(path) as slide:
            reports = {_text(count_slide(slide, path.stem, model, config))}
        taken: dict[int, list[float]] = {n: [] for n in N_WORKERS}
        for round_ in range(arguments.rounds + 1):
            for n in N_WORKERS[:: 1 if round_ % 2 else -1]:
                seconds, counted = _count(path, model, config, clusters[n])
                reports.add(_text(counted))
                if round_:  # in the first, workers load the model
                    taken[n].append(seconds)
    one, two = (statistics.median(taken[n]) for n in N_WORKERS)
    yield Figure.less_is_better("two workers, against one", two, "s", one)
    yield Figure("different reports, this process and one and two workers", len(reports), "", 1, 1 / len(reports))


def _text(counted: SlideCount) -> str:
    return json.dumps(counted.report.to_dict()) + counted.candidates.xy.tobytes().hex()


def _count(path: Path, model: Model, config: CountConfig, cluster: Cluster) -> tuple[float, SlideCount]:
    start = time.perf_counter()
    with open_slide(path) as slide:
        started = start_slide(slide, model, config, find=cluster.find, judge=cluster.judge)
        counted = finish_slide(started, path.stem, model, config)
    return time.perf_counter() - start, counted
