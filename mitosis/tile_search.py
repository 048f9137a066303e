"""Tiles of a slide through the network: a model ready to run, and what it finds in any set of tiles."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mitosis.checkpoints import ModelCard, VerifierCard, load_model, load_verifier
from mitosis.config import CountConfig
from mitosis.detections import Detections, concatenate, find_peaks, reach_px
from mitosis.engines import Engine, average_views, build_engine, choose_engine, describe_engine
from mitosis.errors import ConfigError
from mitosis.geometry import Box, Tile, grid_dimensions
from mitosis.runtime import choose_device, versions
from mitosis.slides import BadTile, Slide, read_at_mpp
from mitosis.stain import StainLevels
from mitosis.tissue import TissueMask
from mitosis.unet import UNet
from mitosis.verifier import Verifier

__all__ = ["Finder", "Found", "Model", "check_tile_size", "find_in_tiles", "read_ahead", "tiles_on"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Model:
    """A network ready to run, with what must be known of it, and the second stage if it is to have one.

    Attributes
    ----------
    runs_on : str
        Name, version and precision of the engine.
    folder : Path or None
        Where it was loaded from.
    """

    engine: Engine
    card: ModelCard
    stride: int
    margin: int
    second: Verifier | None = None
    runs_on: str = ""
    folder: Path | None = None

    @classmethod
    def of(cls, network: UNet, card: ModelCard, config: CountConfig | None = None) -> "Model":
        """Run `network` on the best device with the engine and the precision that `config` names.

        Raises
        ------
        ConfigError
            There is no such engine, or a package of it is not installed.
        """
        config, device = config or CountConfig(), choose_device()
        name, precision = choose_engine(config.engine, device, config.precision), config.precision
        engine = build_engine(network, device, name, precision)
        return cls(engine, card, network.stride, network.margin, runs_on=describe_engine(name, precision))

    @classmethod
    def load(cls, path: Path, config: CountConfig | None = None) -> "Model":
        """Both stages of the model in a folder, the first to run as `config` says, the second with PyTorch.

        Raises
        ------
        ModelError
            A file is missing or damaged, or they do not belong together.
        """
        network, card = load_model(path)
        second = load_verifier(path, card)
        return replace(
            cls.of(network, card, config), second=second.to(choose_device()) if second else None, folder=path
        )

    def second_card(self, config: CountConfig) -> VerifierCard | None:
        """The card of the second stage, if one is to give the final scores."""
        return self.card.verifier if config.verify and self.second is not None else None

    def provenance(self, config: CountConfig) -> dict[str, Any]:
        """What a report says of what made it, by the names of `mitosis.counting.CountReport`."""
        second = self.second_card(config)
        return {
            "settings": config.model_dump(mode="json"),
            "model_sha256": self.card.weights_sha256,
            "verifier_sha256": second.weights_sha256 if second else "",
            "card_sha256": hashlib.sha256(self.card.model_dump_json().encode()).hexdigest(),
            "versions": versions() | ({"engine": self.runs_on} if self.runs_on else {}),
        }


class Found(NamedTuple):
    """What some tiles of a slide hold.

    Attributes
    ----------
    n_tiles : int
    detections : Detections
        Not yet merged, on tissue or not.
    bad_tiles : tuple of BadTile
        Damaged tiles that were met where the file was opened anew; an open slide knows its own.
    """

    n_tiles: int
    detections: Detections
    bad_tiles: tuple[BadTile, ...] = ()


Finder = Callable[[Slide, Sequence[Tile], Model, CountConfig, StainLevels | None], Iterable[Found]]
"""Looks at tiles of an open slide, brought to the usual stain levels if its own are given; all tiles, in any order."""


def check_tile_size(model: Model, config: CountConfig) -> None:
    """Raise a ConfigError if `tile_size` does not fit the network."""
    margin = _margin(model)
    if config.tile_size % model.stride or config.tile_size <= 2 * margin:
        raise ConfigError(
            f"count.tile_size = {config.tile_size}: this model needs a multiple of {model.stride} above {2 * margin}."
        )


def _margin(model: Model) -> int:
    """What a tile's window holds around its core, px: what peaks need, and what the network needs around that."""
    return -(-(reach_px(model.card.mpp) + model.margin) // model.stride) * model.stride


def tiles_on(tissue: TissueMask, model: Model, config: CountConfig) -> tuple[Tile, ...]:
    """Tiles whose cores hold all tissue and what lies within `reach_px` of it, no place twice; row by row.

    A row of tiles begins where there is tissue again below the one before, and a tile where there is tissue again to
    the right of the one before: so fewer are needed than of a grid from the slide's corner. Corners of cores are
    multiples of the network's stride. Windows are no larger than the slide needs.
    """
    mpp, margin, stride = model.card.mpp, _margin(model), model.stride
    width, height = grid_dimensions(tissue.dimensions, tissue.slide_mpp, mpp)
    size = min(config.tile_size, -(-max(width, height) // stride) * stride + 2 * margin)
    side, reach, ratio = size - 2 * margin, reach_px(mpp), tissue.mpp / mpp

    def starts(used: NDArray[np.bool_], end: int) -> Iterator[int]:
        """Where to begin a core, px, for cores up to `end` to hold the used rows or columns of the mask."""
        held = 0  # all before it is in a core, or not used
        for place in np.flatnonzero(used).tolist():
            first, last = int(place * ratio) - reach, min(math.ceil((place + 1) * ratio) + reach, end)
            while held < last:
                start = max(held, first // stride * stride)
                yield start
                held = start + side

    tiles = []
    for y in starts(np.logical_or.reduce(tissue.mask, axis=1), height):
        rows = slice(max(0, int((y - reach) / ratio)), math.ceil((y + side + reach) / ratio))
        for x in starts(np.logical_or.reduce(tissue.mask[rows], axis=0), width):
            window = Box(x - margin, y - margin, x + side + margin, y + side + margin)
            tiles.append(Tile(window, Box(x, y, min(x + side, width), min(y + side, height)), mpp))
    return tuple(tiles)


def find_in_tiles(
    slide: Slide, tiles: Sequence[Tile], model: Model, config: CountConfig, stain: StainLevels | None
) -> Iterator[Found]:
    """Run the network over tiles, batch by batch: the `Finder` of this process.

    Each tile's window holds its core, what peaks need around it (`reach_px`) and what the network needs around that, so
    the pieces together are the same for every tile size. While the network works on a batch, threads read the next one
    and look for the peaks of the last one.
    """
    mpp, reach, margin = model.card.mpp, reach_px(model.card.mpp), _margin(model)
    inner = slice(margin - reach, reach - margin or None)
    engine = average_views(model.engine, config.views)

    def search(seen: tuple[list[Tile], NDArray[np.float32]]) -> Found:
        parts = []
        for tile, probability in zip(*seen, strict=True):
            window = tile.window.grown(reach - margin)
            parts.append(find_peaks(probability[inner, inner], window, tile.core, mpp, slide.mpp, config.score_floor))
        return Found(len(seen[0]), concatenate(parts))

    batches = read_ahead(slide, tiles, config, stain)
    yield from _in_threads(search, ((batch, engine(images)) for batch, images in batches), min(config.workers, 1))


def read_ahead(
    slide: Slide, tiles: Sequence[Tile], config: CountConfig, stain: StainLevels | None
) -> Iterator[tuple[list[Tile], NDArray[np.uint8]]]:
    """Batches of tiles and their pixels, uint8 [B, size, size, 3], read by `workers` threads, a batch ahead each.

    Parameters
    ----------
    stain : StainLevels or None
        The slide's, to bring it to the usual ones.
    """
    size = config.batch_size
    batches = (list(tiles[start : start + size]) for start in range(0, len(tiles), size))

    def read(batch: list[Tile]) -> tuple[list[Tile], NDArray[np.uint8]]:
        images = np.stack([read_at_mpp(slide, tile.window, tile.mpp) for tile in batch])
        return batch, stain.normalise(images) if stain else images

    return _in_threads(read, batches, config.workers)


def _in_threads(work: Callable[[Item], Result], items: Iterable[Item], n: int) -> Iterator[Result]:
    """What `work` makes of each item, in order, by `n` threads that are up to `n` items ahead; with 0 by the caller."""
    if not n:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(n) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > n:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
