"""Measure the toolkit beside what else does the same job, in turn, in one run.

Usage: python scripts/benchmark.py read [--slide FILE] [--json]
       python scripts/benchmark.py load [--patches FOLDER] [--json]
       python scripts/benchmark.py evaluate [--detections N] [--json]
       python scripts/benchmark.py hotspot [--json]
       python scripts/benchmark.py network [--json]
       python scripts/benchmark.py slide [--side N | --sides N N ...] [--cache FOLDER] [--model MODEL]
                                      [--precision int8] [--tissue FOLDER] [--json]
       python scripts/benchmark.py workers [--side N] [--model MODEL] [--cache FOLDER] [--rounds N] [--json]
       python scripts/benchmark.py extract [--side N] [--peer-python PATH] [--rounds N] [--json]
       python scripts/benchmark.py gpu [--side N] [--model MODEL] [--rounds N] [--json]
       python scripts/benchmark.py engine [--side N] [--model MODEL] [--peer-python PATH] [--rounds N] [--json]

Figures are medians over rounds in which the contenders take turns on fresh work, as CPU time, so a busy machine
disturbs the ratios little; `slide`, `extract` and `engine` give wall times too, for which the machine must be idle;
`gpu` and `workers` give nothing else. `extract` and `engine` compare with packages that the toolkit does not need: PATH
is the interpreter of an environment that has them (`pip install tiatoolbox pyvips pyvips-binary pydantic`). A benchmark
is a function and a line in `BENCHMARKS`.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmark_engine import ENGINE_SIDE, benchmark_engine
from benchmark_extract import EXTRACT_SIDE, benchmark_extract
from benchmark_figure import Figure
from benchmark_gpu import GPU_SIDE, benchmark_gpu
from benchmark_load import benchmark_load
from benchmark_network import benchmark_network
from benchmark_points import benchmark_evaluate, benchmark_hotspot
from benchmark_read import READ_SIDE, benchmark_read
from benchmark_slide import benchmark_slide
from benchmark_workers import WORKERS_SIDE, benchmark_workers

from mitosis.config import load_config

__all__ = ["BENCHMARKS", "main"]

ROUNDS, SLIDE_SIDE = 3, 20_000


def slide(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Time and memory from a slide's file to its count; see `benchmark_slide`."""
    sides = arguments.sides or [arguments.side or SLIDE_SIDE]
    config = load_config(None, (f"count.precision={arguments.precision}",)).count
    return benchmark_slide(sides, arguments.cache, arguments.model, config, arguments.rounds, arguments.tissue)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Iterable[Figure]]] = {
    "engine": benchmark_engine,
    "evaluate": benchmark_evaluate,
    "extract": benchmark_extract,
    "gpu": benchmark_gpu,
    "hotspot": benchmark_hotspot,
    "load": benchmark_load,
    "network": benchmark_network,
    "read": benchmark_read,
    "slide": slide,
    "workers": benchmark_workers,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark and print its figures."""
    parsed = _parser().parse_args(arguments)
    for figure in BENCHMARKS[parsed.name](parsed):
        if parsed.json:
            print(json.dumps(asdict(figure)), flush=True)
        else:
            print(
                f"{figure.name:<50} {figure.value:>8.2f} {figure.unit:<12} {figure.baseline:>8.2f} x{figure.ratio:.2f}",
                flush=True,
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    parser.add_argument("--slide", type=Path, help="read: a slide of JPEG tiles instead of the drawn one")
    sides = {"read": READ_SIDE, "slide": SLIDE_SIDE, "extract": EXTRACT_SIDE, "engine": ENGINE_SIDE, "gpu": GPU_SIDE}
    sides["workers"] = WORKERS_SIDE
    usual = ", ".join(f"{name} {side}" for name, side in sides.items())
    parser.add_argument("--side", type=int, help=f"side of the drawn slide in px ({usual})")
    parser.add_argument("--sides", type=int, nargs="+", help="slide: several, to see whether memory grows")
    parser.add_argument("--cache", type=Path, help="slide, workers: a folder that keeps the drawn slides")
    pictures = (
        "slide: a folder of pictures of tissue, 0.25 µm/px, that slides are put together of instead of drawn tissue"
    )
    parser.add_argument("--tissue", type=Path, help=pictures)
    model = "slide, engine, gpu, workers: name or folder of a model instead of the shipped one or a random one"
    parser.add_argument("--model", help=model)
    parser.add_argument("--precision", default="float32", help="slide: what networks multiply in, such as int8")
    parser.add_argument("--patches", type=Path, help="load: a folder of patches instead of sample_patches/")
    parser.add_argument("--detections", type=int, default=1_000_000, help="evaluate: how many")
    parser.add_argument("--peer-python", type=Path, help="extract, engine: the interpreter that has the peers")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of those with --rounds: how many ({ROUNDS})")
    return parser


if __name__ == "__main__":
    main()
