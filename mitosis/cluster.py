"""Parts of slides to the workers of a dask.distributed cluster (the extra `cluster`).

A part is a region, a run of tiles that follow each other on the slide, or some candidates for the second stage. What
comes back is what `find_in_tiles` and `judge_candidates` give, and the count is made here, as ever. A part whose worker
is lost is given to another one by dask. Batches of tiles are cut as they are without a cluster, and the score of a
candidate, which is rounded to 1e-4, hangs on its own pixels alone; so results are the same to the byte, if the engine
is the same and has as many threads.
"""

import json
import math
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mitosis.cluster_work import Order, find_region, judge_part
from mitosis.config import CountConfig
from mitosis.detections import Detections
from mitosis.errors import ClusterError, ConfigError, MitosisError, SlideError
from mitosis.geometry import Tile
from mitosis.slides import Slide
from mitosis.stain import StainLevels
from mitosis.tile_search import Found, Model

__all__ = ["AHEAD", "TILES", "Cluster", "open_cluster"]

AHEAD = 2
"""Slides to start while one is waited for, so that workers have work while its report is written."""

TILES = 4
"""Tiles of a region, at most about 1.4 mm²: a second or two of work, so that its way to a worker does not show."""

CANDIDATES = 256
"""Candidates that a worker looks at again in one go: a quarter of a second to a second of work."""

RETRIES = 2
"""How often a part that failed is tried again; shared folders stumble. Lost workers do not count."""

PATIENCE_S = 30.0

_UNWATCHED = {
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.profile.enabled": False,
}
"""Of a cluster that nobody watches: that dask watches itself takes the command 4 % of a core by default."""

_ROW_PX = 1024
"""Candidates are handed out by rows of this height, so that workers seldom read the same tiles."""


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
            if address is None:
                stack.enter_context(import_module("dask").config.set(_UNWATCHED))
            place = (
                stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=processes,
                        threads_per_worker=1,
                        dashboard_address=None,
                        # Even without one it answers by HTTP: at any free port, and on this machine alone.
                        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                        memory_limit=None,
                        silence_logs="CRITICAL",  # errors are raised here; the rest is talk of how it ends
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
class Cluster:
    """Workers that look at parts of slides.

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
        return len(self.client.scheduler_info(n_workers=-1).get("workers", ()))  # without, the scheduler is lost

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
        size = max(1, self.tiles // config.batch_size) * config.batch_size
        regions = [tiles[start : start + size] for start in range(0, len(tiles), size)]
        regions.sort(key=_n_pixels, reverse=True)  # at the end workers wait for small ones
        return self._hand_out(find_region, slide.path, Order.of(slide, model, config, stain), regions)

    def judge(
        self, slide: Slide, candidates: Detections, model: Model, config: CountConfig, stain: StainLevels | None
    ) -> Iterable[Found]:
        """Hand candidates to the workers, before any tiles: a `Judge`. Raises as `find`."""
        x, y = candidates.xy.T
        near = candidates[np.lexsort((x, y // _ROW_PX))]
        with _own_errors(slide.path):
            n_busy = max(1, min(self.n_workers, len(near) // CANDIDATES))
        n_parts = max(1, -(-len(near) // (CANDIDATES * n_busy))) * n_busy  # as many for each worker, of one size
        parts = [near[some] for some in np.array_split(np.arange(len(near)), n_parts)]
        return self._hand_out(judge_part, slide.path, Order.of(slide, model, config, stain), parts, priority=1)

    def _hand_out(
        self, work: Callable[[Order, Any], Found], path: Path, order: Order, parts: Sequence[Any], priority: int = 0
    ) -> Iterable[Found]:
        with _own_errors(path):
            futures = self.client.map(partial(work, order), parts, pure=False, retries=RETRIES, priority=priority)
        return _gather(self.client, path, futures)


def _n_pixels(region: Sequence[Tile]) -> int:
    return sum(math.prod(tile.window.size) for tile in region)


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
            f"{path}: {error.allowed_failures + 1} workers ended while they looked at one part of it, for want of "
            "memory or because the file is damaged. Count it without a cluster to see which."
        ) from error
    except (*lost, ImportError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ClusterError(
            f"The cluster failed while it looked at {path} ({reason}). Start the cluster again, "
            "with this version of mitosis-toolkit on every worker, and give the same command."
        ) from error
