"""Regions of slides on the workers of a dask.distributed cluster (the extra `cluster`).

A region is a run of tiles that follow each other on the grid. Workers open the slide themselves, at the path that it
has here, and load the network once a process; what comes back is what `find_in_tiles` gives, and the count is made
here, as ever. A region whose worker is lost is given to another one by dask. Batches are cut as they are without a
cluster, so results are the same to the byte, if the engine is the same and has as many threads.
"""

import json
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitosis.checkpoints import load_model
from mitosis.config import CountConfig
from mitosis.detections import concatenate
from mitosis.engines import Engine
from mitosis.errors import ClusterError, ConfigError, MitosisError, ModelError, SlideError, SlideNotFoundError
from mitosis.geometry import Tile
from mitosis.runtime import versions
from mitosis.slides import Slide, open_slide
from mitosis.stain import StainLevels
from mitosis.tile_search import Found, Model, find_in_tiles

__all__ = ["AHEAD", "TILES", "Cluster", "open_cluster"]

AHEAD = 2
"""Slides to start while one is waited for, so that workers have work while its report is written."""

TILES = 4
"""Tiles of a region, at most about 1.4 mm²: a second or two of work, so that its way to a worker does not show."""

RETRIES = 2
"""How often a region that failed is tried again; shared folders stumble. Lost workers do not count."""

PATIENCE_S = 30.0

_LOADING = threading.Lock()


@contextmanager
def open_cluster(address: str | None = None, processes: int = 1, tiles: int = TILES) -> Iterator["Cluster"]:
    """Join a cluster, or start one on this machine for as long as the block lasts.

    Parameters
    ----------
    address : str or None
        Of a running scheduler, ``tcp://host:8786``, or the path of the scheduler file that it wrote.
    processes : int
        Without an address: how many worker processes to start here, of one thread each.
    tiles : int
        About how many tiles a region has.

    Raises
    ------
    ConfigError
        The package `distributed` is not installed.
    ClusterError
        No scheduler answers at the address.
    """
    distributed = _distributed()
    with ExitStack() as stack:
        try:
            # Nobody watches a cluster of our own, and only the system may end a worker for the memory it takes.
            place = (
                stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=processes,
                        threads_per_worker=1,
                        dashboard_address=None,
                        # Even without one it answers by HTTP: at any free port, and on this machine alone.
                        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                        memory_limit=None,
                        silence_logs="ERROR",
                    )
                )
                if address is None
                else _address(address)
            )
            client = stack.enter_context(distributed.Client(place, timeout=PATIENCE_S, set_as_default=False))
        except ClusterError:
            raise
        except (OSError, RuntimeError) as error:
            raise ClusterError(f"{address or 'Worker processes'}: no cluster comes up ({error}). Try again.") from error
        yield Cluster(client, tiles)


def _distributed() -> Any:
    """The package, which only counting on a cluster needs."""
    try:
        return import_module("distributed")
    except ImportError as error:
        raise ConfigError(
            'Counting on a cluster needs dask.distributed. Run: pip install "mitosis-toolkit[cluster]"'
        ) from error


def _address(given: str) -> str:
    """Address of a scheduler that answers."""
    try:
        path = Path(given)
        address = str(json.loads(path.read_text(encoding="utf-8"))["address"]) if path.is_file() else given
        host, port = _distributed().comm.get_address_host_port(address)
        with socket.create_connection((host, port), PATIENCE_S):
            return address
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ClusterError(
            f"--scheduler {given}: no scheduler answers there ({error}). Start one with dask scheduler, and give the "
            "address that it prints, or the path of its --scheduler-file."
        ) from error


@dataclass(frozen=True)
class _Order:
    """What a worker must know to look at regions of a slide.

    Attributes
    ----------
    n_bytes, dimensions
        Of the slide, so that another file under its path is noticed.
    folder, weights_sha256, runs_on
        The model, and the engine that runs it here.
    version : str
        Of this package.
    """

    path: Path
    n_bytes: int
    dimensions: tuple[int, int]
    mpp: float
    stain: StainLevels | None
    folder: Path
    weights_sha256: str
    runs_on: str
    version: str
    config: CountConfig


@dataclass(frozen=True)
class Cluster:
    """Workers that look at regions of slides.

    Attributes
    ----------
    client : distributed.Client
    tiles : int
        About how many tiles a region has; it is rounded to whole batches.
    """

    client: Any
    tiles: int = TILES

    @property
    def n_workers(self) -> int:
        """How many workers there are now."""
        return len(self.client.scheduler_info(n_workers=-1)["workers"])

    def find(
        self, slide: Slide, tiles: Sequence[Tile], model: Model, config: CountConfig, stain: StainLevels | None
    ) -> Iterable[Found]:
        """Hand tiles to the workers, and give what they find as it comes: a `Finder` that has begun when it returns.

        Raises
        ------
        ConfigError
            The model was not loaded from a folder, so that workers cannot load it.
        SlideError
            Workers cannot read the slide, or end while they try.
        ModelError
            Workers cannot load the model.
        ClusterError
            The scheduler is lost, or workers have other versions.
        """
        if model.folder is None:
            raise ConfigError("A cluster needs a model that is loaded from a folder, from which workers load it too.")
        # Whatever `auto` would be there, it is the engine that was chosen here.
        engine = model.runs_on.split()[0]
        order = _Order(
            path=slide.path.absolute(),
            n_bytes=slide.path.stat().st_size,
            dimensions=slide.dimensions,
            mpp=slide.mpp,
            stain=stain,
            folder=model.folder.absolute(),
            weights_sha256=model.card.weights_sha256,
            runs_on=model.runs_on,
            version=versions()["mitosis-toolkit"],
            config=config.model_copy(update={"engine": engine}),
        )
        size = max(1, self.tiles // config.batch_size) * config.batch_size
        regions = [tuple(tiles[start : start + size]) for start in range(0, len(tiles), size)]
        submit = partial(self.client.submit, _find_region, order, pure=False, retries=RETRIES)
        with _own_errors(slide.path):
            futures = [submit(region) for region in regions]
        return _gather(self.client, slide.path, futures)


def _gather(client: Any, path: Path, futures: list[Any]) -> Iterator[Found]:
    try:
        with _own_errors(path):
            for _, found in _distributed().as_completed(futures, loop=client.loop, with_results=True):
                if isinstance(found, Exception):  # how it says that the scheduler is lost
                    raise found
                yield found
    finally:
        with suppress(Exception):  # a cluster that is lost has nothing to cancel
            client.cancel([future for future in futures if not future.done()])


@contextmanager
def _own_errors(path: Path) -> Iterator[None]:
    """What dask raises while a slide is looked at, as errors of this package."""
    distributed = _distributed()
    lost = (CancelledError, distributed.comm.CommClosedError, distributed.client.ClosedClientError, TimeoutError)
    try:
        yield
    except MitosisError:
        raise
    except distributed.KilledWorker as error:
        raise SlideError(
            f"{path}: {error.allowed_failures + 1} workers ended while they looked at one of its regions, for want of "
            "memory or because the file is damaged. Count it without a cluster to see which."
        ) from error
    except (*lost, ImportError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ClusterError(
            f"The cluster failed while it looked at {path} ({reason}). Start the cluster again, "
            "with this version of mitosis-toolkit on every worker, and give the same command."
        ) from error


def _find_region(order: _Order, tiles: Sequence[Tile]) -> Found:
    """Look at some tiles of a slide; runs on a worker."""
    here = socket.gethostname()
    if versions()["mitosis-toolkit"] != order.version:
        raise ClusterError(
            f"{here} has mitosis-toolkit {versions()['mitosis-toolkit']}, and the command {order.version}. "
            "Install the same on both."
        )
    with _LOADING:
        settings = order.config.engine, order.config.precision
        model = _load(order.folder, order.weights_sha256, order.runs_on, *settings, _process())
    try:
        opened = open_slide(order.path, order.mpp)
    except SlideNotFoundError as error:
        raise SlideNotFoundError(f"{order.path}: not to be seen on {here}. Workers need the same paths.") from error
    with opened as slide:
        if (order.path.stat().st_size, slide.dimensions) != (order.n_bytes, order.dimensions):
            raise SlideError(f"{order.path}: is another file on {here}. Workers need the same files at the same paths.")
        pieces = list(find_in_tiles(slide, tiles, model, order.config, order.stain))
        return Found(len(tiles), concatenate(piece.detections for piece in pieces), slide.bad_tiles)


def _process() -> int | None:
    """Which of the worker processes started here this is: each takes a GPU. Other clusters show each worker its own."""
    with suppress(ValueError):  # raised where this is no worker
        name = _distributed().get_worker().name
        return name if isinstance(name, int) else None
    return None


@lru_cache(maxsize=1)
def _load(folder: Path, weights_sha256: str, runs_on: str, engine: str, precision: Any, process: int | None) -> Model:
    """The first stage of a model, once a process."""
    here = socket.gethostname()
    try:
        network, card = load_model(folder)
    except ModelError as error:
        raise ModelError(f"On {here}: {error} Workers need the model at the same path.") from error
    model = Model.of(network, card, CountConfig(engine=engine, precision=precision), process)
    if card.weights_sha256 != weights_sha256:
        raise ModelError(f"{folder}: is another model on {here}. Copy the model anew.")
    if model.runs_on != runs_on:
        raise ClusterError(
            f"{here} runs networks with {model.runs_on}, and the command with {runs_on}. Install the same."
        )
    return replace(model, engine=_one_at_a_time(model.engine))


def _one_at_a_time(engine: Engine) -> Engine:
    """An engine for the threads of a worker that has several: not every one may be called by two at once."""
    lock = threading.Lock()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with lock:
            return engine(images)

    return run
