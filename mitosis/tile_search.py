"""Tiles of a slide through the network: a model ready to run, and what it finds in any set of tiles."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mitosis.checkpoints import ModelCard, VerifierCard, load_gate, load_model, load_verifier
from mitosis.config import CountConfig
from mitosis.covering import cover
from mitosis.detections import Detections, concatenate, find_peaks, reach_px
from mitosis.engines import Engine, build_engine, choose_engine, describe_engine
from mitosis.errors import ConfigError, ModelError
from mitosis.gate import Gate
from mitosis.geometry import Box, Tile, grid_dimensions
from mitosis.looks import crop_engine
from mitosis.openvino_runner import streams
from mitosis.quantization import Ranges, check_processor, quantize
from mitosis.runtime import choose_device, versions
from mitosis.second_engine import second_in_engine
from mitosis.slides import BadTile, Slide, read_at_mpp
from mitosis.stain import StainLevels
from mitosis.threads import in_threads
from mitosis.tissue import TissueMask
from mitosis.unet import UNet
from mitosis.verifier import Verifier, gate_settings
from mitosis.views import average_views

__all__ = ["Finder", "Found", "Judge", "Model", "check_tile_size", "find_in_tiles", "read_ahead", "tiles_on"]


@dataclass(frozen=True)
class Model:
    """A network ready to run, with what must be known of it, and the second stage if it is to have one.

    Attributes
    ----------
    stride, radius : int
        Those of the network, px.
    runs_on : str
        Name, version and precision of the engine.
    folder : Path or None
        Where it was loaded from.
    gate : Gate or None
        Drops candidates before the second stage looks at them.
    in_flight : int
        How many batches the engine may be given at once: with more than 1, by as many threads. On a GPU one batch is
        on its way there or back while another is computed; in OpenVINO none waits for another.
    """

    engine: Engine
    card: ModelCard
    stride: int
    radius: int
    second: Verifier | None = None
    runs_on: str = ""
    folder: Path | None = None
    gate: Gate | None = None
    in_flight: int = 1

    @classmethod
    def of(
        cls, network: UNet, card: ModelCard, config: CountConfig | None = None, process: int | None = None
    ) -> "Model":
        """Run `network` on the best device with the engine and the precision that `config` names.

        Parameters
        ----------
        process : int or None
            Number of this process among those that share the GPUs of the machine, as in `choose_device`.

        Raises
        ------
        ConfigError
            There is no such engine, a package of it is not installed, or it cannot run in this precision.
        ModelError
            The precision is int8, for which the card lacks the ranges.
        """
        config, device = config or CountConfig(), choose_device(process)
        name, precision = choose_engine(config.engine, device, config.precision), config.precision
        if precision == "int8":
            network = quantize(network, card.int8_ranges)
            check_processor(name)
        engine, runs_on = build_engine(network, device, name, precision), describe_engine(name, precision)
        in_flight = streams() if name == "openvino" else 2 if device.type == "cuda" and name == "torch" else 1
        return cls(engine, card, network.stride, network.radius, runs_on=runs_on, in_flight=in_flight)

    @classmethod
    def load(cls, path: Path, config: CountConfig | None = None, process: int | None = None) -> "Model":
        """The stages of the model in a folder that `config` asks for, to run as it says; `process` as in `of`.

        Raises
        ------
        ModelError
            A file is missing or damaged, or they do not belong together; or the card lacks the ranges for int8.
        """
        config = config or CountConfig()
        network, card = load_model(path)
        second = load_verifier(path, card) if config.verify else None
        glance = load_gate(path, card) if config.verify and config.gate else None
        gate = None
        try:
            model = cls.of(network, card, config, process)
            if second is not None and card.verifier is not None:
                second = model._ready(second, config, process, card.verifier.int8_ranges)
                if glance is not None:
                    side, least = gate_settings(card.verifier.settings, card.mpp).crop, card.verifier.settings.gate_from
                    ready = model._ready(glance, config, process, card.verifier.gate_int8_ranges)
                    gate = Gate(crop_engine(ready), side, least)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        return replace(model, second=second, folder=path, gate=gate)

    def _ready(self, network: Verifier, config: CountConfig, process: int | None, ranges: Ranges) -> Verifier:
        """A classifier in the engine of the first stage."""
        name = self.runs_on.split()[0]
        if name == "torch":  # the others run on the processor
            network = network.to(choose_device(process))
        return second_in_engine(network, name, config.precision, ranges)

    def gate_for(self, config: CountConfig) -> Gate | None:
        """The gate, if it is to drop candidates."""
        return self.gate if config.gate and self.second_card(config) is not None else None

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
            "card_sha256": self.card.sha256,
            "versions": versions() | ({"engine": self.runs_on} if self.runs_on else {}),
        }


class Found(NamedTuple):
    """What some tiles of a slide hold, or what became of some candidates.

    Attributes
    ----------
    n_tiles : int
    detections : Detections
        Of a `Finder` not yet merged, on tissue or not.
    bad_tiles : tuple of BadTile
        Damaged tiles that were met where the file was opened anew; an open slide knows its own.
    """

    n_tiles: int
    detections: Detections
    bad_tiles: tuple[BadTile, ...] = ()


Finder = Callable[[Slide, Sequence[Tile], Model, CountConfig, StainLevels | None], Iterable[Found]]
"""Looks at tiles of an open slide, brought to the usual stain levels if its own are given; all tiles, in any order."""

Judge = Callable[[Slide, Detections, Model, CountConfig, StainLevels | None], Iterable[Found]]
"""Gives candidates on an open slide, of which there may be none, the final scores of both stages; all, in any order."""


def check_tile_size(model: Model, config: CountConfig) -> None:
    """Raise a ConfigError if `tile_size` does not fit the network."""
    margin = _margin(model)
    if config.tile_size % model.stride or config.tile_size <= 2 * margin:
        raise ConfigError(
            f"count.tile_size = {config.tile_size}: this model needs a multiple of {model.stride} above {2 * margin}."
        )


def _margin(model: Model) -> int:
    """What a tile's window holds around its core, px: what peaks need, and what networks need around that.

    The centre of a spot lies closer to its peak than what peaks need.
    """
    around = max(model.radius, model.gate.side // 2 + 1 if model.gate else 0)
    return -(-(reach_px(model.card.mpp) + around) // model.stride) * model.stride


def tiles_on(tissue: TissueMask, model: Model, config: CountConfig) -> tuple[Tile, ...]:
    """Tiles whose cores hold all tissue and what lies within `reach_px` of it, no place twice.

    They are no larger than the tissue needs, have gaps between them where there is none (`mitosis.covering`), and are
    no larger than `tile_size` with what is around them. Corners of cores are multiples of the network's stride. Those
    that go through the network together, made as large as the largest of them, are of about one size. What follows each
    other lies close together, as far as that goes: neighbours share pixels that a slide then need not decode again.
    """
    mpp, margin, stride = model.card.mpp, _margin(model), model.stride
    dimensions = grid_dimensions(tissue.dimensions, tissue.slide_mpp, mpp)
    side, ratio = (config.tile_size - 2 * margin) // stride, tissue.mpp / mpp
    unit = stride * min(math.ceil(ratio / stride), side)  # px of the grid that tiles are made of
    used = tissue.mask
    for n_px in dimensions[::-1]:
        places = unit * np.arange(-(-n_px // unit))
        first, last = places - reach_px(mpp) - 1, places + unit + reach_px(mpp) + 1
        used = _any_between(used, np.floor(first / ratio), np.ceil(last / ratio)).T
    tiles = []
    for box in cover(used, side * stride // unit, margin / unit):
        x0, y0, x1, y1 = (edge * unit for edge in box)
        core = Box(x0, y0, min(x1, dimensions[0]), min(y1, dimensions[1]))
        width, height = (-(-size // stride) * stride + 2 * margin for size in core.size)
        tiles.append(Tile(Box(x0 - margin, y0 - margin, x0 - margin + width, y0 - margin + height), core, mpp))
    numbers = sorted(range(len(tiles)), key=lambda number: tiles[number].window.size[::-1], reverse=True)
    batches = [numbers[start : start + config.batch_size] for start in range(0, len(numbers), config.batch_size)]
    batches.sort(key=lambda batch: (len(batch) < config.batch_size, batch[0]))
    return tuple(tiles[number] for batch in batches for number in batch)


def _any_between(mask: NDArray[np.bool_], first: NDArray[Any], last: NDArray[Any]) -> NDArray[np.bool_]:
    """Bool [N, W]: whether any of the rows from each `first` to before `last` is set; rows beyond the mask are not."""
    until = np.concatenate([np.zeros((1, mask.shape[1]), np.int32), np.cumsum(mask, axis=0, dtype=np.int32)])
    first, last = (np.clip(rows, 0, len(mask)).astype(np.int64) for rows in (first, last))
    between: NDArray[np.bool_] = until[last] > until[first]
    return between


def find_in_tiles(
    slide: Slide, tiles: Sequence[Tile], model: Model, config: CountConfig, stain: StainLevels | None
) -> Iterator[Found]:
    """Run the network over tiles, batch by batch: the `Finder` of this process.

    Each tile's window holds its core, what peaks need around it (`reach_px`) and what the network needs around that, so
    the pieces together are the same for every tile size. While the network works on a batch, threads read the next one
    and look for the peaks of the last one, which a gate may thin out.
    """
    mpp, reach, margin = model.card.mpp, reach_px(model.card.mpp), _margin(model)
    inner = slice(margin - reach, reach - margin or None)
    engine, gate = average_views(model.engine, config.views), model.gate_for(config)

    def search(seen: tuple[list[Tile], NDArray[np.uint8], NDArray[np.float32]]) -> Found:
        parts = []
        for tile, image, probability in zip(*seen, strict=True):
            window = tile.window.grown(reach - margin)
            part = find_peaks(probability[inner, inner], window, tile.core, mpp, slide.mpp, config.score_floor)
            if gate is not None:
                part = part[gate.passes(image, part.xy * (slide.mpp / mpp) - tile.window[:2])]
            parts.append(part)
        return Found(len(seen[0]), concatenate(parts))

    def run(
        batch: tuple[list[Tile], NDArray[np.uint8]],
    ) -> tuple[list[Tile], NDArray[np.uint8], NDArray[np.float32]]:
        return *batch, engine(batch[1])

    lanes = model.in_flight if model.in_flight > 1 else 0
    # Peaks and a gate take as long as a small network does.
    n = max(lanes, config.workers if lanes else 1) if config.workers else 0
    seen = in_threads(run, read_ahead(slide, tiles, config, stain), lanes, ahead=lanes)
    yield from in_threads(search, seen, n, ahead=n)


def read_ahead(
    slide: Slide, tiles: Sequence[Tile], config: CountConfig, stain: StainLevels | None
) -> Iterator[tuple[list[Tile], NDArray[np.uint8]]]:
    """Batches of tiles and their pixels, uint8 [B, height, width, 3], read by `workers` threads, a batch ahead each.

    The windows of a batch are made as large as the largest of it: cores keep their place, so nothing else changes.

    Parameters
    ----------
    stain : StainLevels or None
        The slide's, to bring it to the usual ones.
    """
    size = config.batch_size
    batches = (list(tiles[start : start + size]) for start in range(0, len(tiles), size))

    def read(batch: list[Tile]) -> tuple[list[Tile], NDArray[np.uint8]]:
        width, height = (max(tile.window.size[axis] for tile in batch) for axis in (0, 1))
        windows = (Box(x, y, x + width, y + height) for x, y in (tile.window[:2] for tile in batch))
        batch = [replace(tile, window=window) for tile, window in zip(batch, windows, strict=True)]
        images = [read_at_mpp(slide, tile.window, tile.mpp) for tile in batch]
        if stain:
            images = [stain.normalise(image) for image in images]
        return batch, images[0][np.newaxis] if len(images) == 1 else np.stack(images)

    return in_threads(read, batches, config.workers, ahead=config.workers)
