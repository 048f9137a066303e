"""What a worker of a cluster does: its part of a slide, with the model and the file that it finds at the same paths."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mitosis.config import CountConfig
from mitosis.detections import Detections, concatenate
from mitosis.engines import Engine
from mitosis.errors import ClusterError, ConfigError, ModelError, SlideError, SlideNotFoundError
from mitosis.geometry import Tile
from mitosis.inference import judge_candidates
from mitosis.runtime import versions
from mitosis.slides import Slide, open_slide
from mitosis.stain import StainLevels
from mitosis.tile_search import Found, Model, find_in_tiles

__all__ = ["Order", "find_region", "judge_part"]

_LOADING = threading.Lock()


@dataclass(frozen=True)
class Order:
    """What a worker must know to look at parts of a slide.

    Attributes
    ----------
    n_bytes, dimensions
        Of the slide, so that another file under its path is noticed.
    folder, card_sha256, runs_on
        The model, its weights and those of its second stage, and the engine that runs it here.
    version : str
        Of this package.
    """

    path: Path
    n_bytes: int
    dimensions: tuple[int, int]
    mpp: float
    stain: StainLevels | None
    folder: Path
    card_sha256: str
    runs_on: str
    version: str
    config: CountConfig

    @classmethod
    def of(cls, slide: Slide, model: Model, config: CountConfig, stain: StainLevels | None) -> "Order":
        """To look at a slide with a model."""
        if model.folder is None:
            raise ConfigError("A cluster needs a model that is loaded from a folder, from which workers load it too.")
        return cls(
            path=slide.path.absolute(),
            n_bytes=slide.path.stat().st_size,
            dimensions=slide.dimensions,
            mpp=slide.mpp,
            stain=stain,
            folder=model.folder.absolute(),
            card_sha256=model.card.sha256,
            runs_on=model.runs_on,
            version=versions()["mitosis-toolkit"],
            # Whatever `auto` would be there, it is the engine that was chosen here.
            config=config.model_copy(update={"engine": model.runs_on.split()[0]}),
        )


def find_region(order: Order, tiles: Sequence[Tile]) -> Found:
    """Look at some tiles of a slide; runs on a worker."""
    with _at_work(order) as (slide, model):
        pieces = list(find_in_tiles(slide, tiles, model, order.config, order.stain))
        return Found(len(tiles), concatenate(piece.detections for piece in pieces), slide.bad_tiles)


def judge_part(order: Order, candidates: Detections) -> Found:
    """Look again at some candidates on a slide; runs on a worker."""
    with _at_work(order) as (slide, model):
        (found,) = judge_candidates(slide, candidates, model, order.config, order.stain)
        return found._replace(bad_tiles=slide.bad_tiles)


@contextmanager
def _at_work(order: Order) -> Iterator[tuple[Slide, Model]]:
    """The slide, opened here, and the model."""
    here = socket.gethostname()
    if versions()["mitosis-toolkit"] != order.version:
        raise ClusterError(
            f"{here} has mitosis-toolkit {versions()['mitosis-toolkit']}, and the command {order.version}. "
            "Install the same on both."
        )
    with _LOADING:
        model = _load(order.folder, order.card_sha256, order.runs_on, order.config, _process())
    try:
        opened = open_slide(order.path, order.mpp)
    except SlideNotFoundError as error:
        raise SlideNotFoundError(f"{order.path}: not to be seen on {here}. Workers need the same paths.") from error
    with opened as slide:
        if (order.path.stat().st_size, slide.dimensions) != (order.n_bytes, order.dimensions):
            raise SlideError(f"{order.path}: is another file on {here}. Workers need the same files at the same paths.")
        yield slide, model


def _process() -> int | None:
    """Which of the worker processes started here this is: each takes a GPU. Other clusters show each worker its own."""
    with suppress(ValueError):  # raised where this is no worker
        name = import_module("distributed").get_worker().name
        return name if isinstance(name, int) else None
    return None


@lru_cache(maxsize=1)
def _load(folder: Path, card_sha256: str, runs_on: str, config: CountConfig, process: int | None) -> Model:
    """A model, once a process."""
    here = socket.gethostname()
    try:
        model = Model.load(folder, config, process)
    except ModelError as error:
        raise ModelError(f"On {here}: {error} Workers need the model at the same path.") from error
    if model.card.sha256 != card_sha256:
        raise ModelError(f"{folder}: is another model on {here}. Copy the model anew.")
    if model.runs_on != runs_on:
        raise ClusterError(
            f"{here} runs networks with {model.runs_on}, and the command with {runs_on}. Install the same."
        )
    return model if model.in_flight > 1 else replace(model, engine=_one_at_a_time(model.engine))


def _one_at_a_time(engine: Engine) -> Engine:
    """An engine for the threads of a worker that has several: not every one may be called by two at once."""
    lock = threading.Lock()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with lock:
            return engine(images)

    return run
