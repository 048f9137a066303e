"""Tiles of a slide through the network: a model ready to run, and what it finds in any set of tiles."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mitosis.checkpoints import ModelCard, VerifierCard, load_model, load_verifier
from mitosis.config import CountConfig
from mitosis.detections import Detections, concatenate, find_peaks, reach_px
from mitosis.engines import Engine, average_views, build_engine, choose_engine, describe_engine
from mitosis.errors import ConfigError
from mitosis.geometry import Tile, grid_dimensions, tile_grid
from mitosis.runtime import choose_device, versions
from mitosis.slides import BadTile, Slide, read_at_mpp
from mitosis.stain import StainLevels
from mitosis.tissue import TissueMask
from mitosis.unet import UNet
from mitosis.verifier import Verifier

__all__ = ["Finder", "Found", "Model", "check_tile_size", "find_in_tiles", "tiles_on"]


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
    """The tiles of the slide's grid that tissue reaches, row by row."""
    mpp, reach, ratio = model.card.mpp, reach_px(model.card.mpp), model.card.mpp / tissue.slide_mpp
    dimensions = grid_dimensions(tissue.dimensions, tissue.slide_mpp, mpp)
    return tuple(
        tile
        for tile in tile_grid(dimensions, mpp, config.tile_size, _margin(model))
        if tissue.area_mm2_in([edge * ratio for edge in tile.core.grown(reach)]) > 0
    )


def find_in_tiles(
    slide: Slide, tiles: Sequence[Tile], model: Model, config: CountConfig, stain: StainLevels | None
) -> Iterator[Found]:
    """Run the network over tiles, batch by batch: the `Finder` of this process.

    Each tile's window holds its core, what peaks need around it (`reach_px`) and what the network needs around that, so
    the pieces together are the same for every tile size.
    """
    mpp, reach, margin = model.card.mpp, reach_px(model.card.mpp), _margin(model)
    inner = slice(margin - reach, config.tile_size - margin + reach)
    engine = average_views(model.engine, config.views)
    for batch, images in _read_ahead(slide, tiles, config, stain):
        parts = []
        for tile, probability in zip(batch, engine(images), strict=True):
            window = tile.window.grown(reach - margin)
            parts.append(find_peaks(probability[inner, inner], window, tile.core, mpp, slide.mpp, config.score_floor))
        yield Found(len(batch), concatenate(parts))


def _read_ahead(
    slide: Slide, tiles: Sequence[Tile], config: CountConfig, stain: StainLevels | None
) -> Iterator[tuple[list[Tile], NDArray[np.uint8]]]:
    """Batches of tiles and their pixels, uint8 [B, size, size, 3], read by threads while the network works."""
    size = config.batch_size
    batches = [list(tiles[start : start + size]) for start in range(0, len(tiles), size)]

    def read(batch: list[Tile]) -> NDArray[np.uint8]:
        images = np.stack([read_at_mpp(slide, tile.window, tile.mpp) for tile in batch])
        return stain.normalise(images) if stain else images

    if not config.workers:
        yield from ((batch, read(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(config.workers) as pool:
        waiting: deque[tuple[list[Tile], Future[NDArray[np.uint8]]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(read, batch)))
            if len(waiting) > config.workers:
                done, future = waiting.popleft()
                yield done, future.result()
        yield from ((done, future.result()) for done, future in waiting)
