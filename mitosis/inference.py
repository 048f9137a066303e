"""A slide and a model to detections and a mitotic count, tile by tile."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitosis.checkpoints import ModelCard, VerifierCard, load_model, load_verifier
from mitosis.cohort import SlideSource
from mitosis.config import CountConfig
from mitosis.counting import CountReport, mitotic_count
from mitosis.detections import Detections, concatenate, find_peaks, merge, reach_px
from mitosis.engines import Engine, average_views, build_engine, choose_engine, describe_engine
from mitosis.errors import ConfigError, SlideError
from mitosis.files import make_folder, sha256
from mitosis.geometry import Tile, grid_dimensions, tile_grid
from mitosis.report import write_report, write_summary
from mitosis.runtime import choose_device, versions
from mitosis.slides import Slide, open_slide, read_at_mpp
from mitosis.stain import StainLevels, measure_stain
from mitosis.tissue import TissueMask, find_tissue
from mitosis.unet import UNet
from mitosis.verification import verify
from mitosis.verifier import Verifier

__all__ = ["Model", "SlideCount", "SlideResult", "count_slide", "count_slides", "detect"]


@dataclass(frozen=True)
class Model:
    """A network ready to run, with what must be known of it, and the second stage if it is to have one."""

    engine: Engine
    card: ModelCard
    stride: int
    margin: int
    second: Verifier | None = None
    runs_on: str = ""

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
        return replace(cls.of(network, card, config), second=second.to(choose_device()) if second else None)


@dataclass(frozen=True)
class SlideCount:
    """The report on a slide, every candidate above the floor, and where tissue was found."""

    report: CountReport
    candidates: Detections
    tissue: TissueMask


@dataclass(frozen=True)
class SlideResult:
    """What came of one slide of many: its report, or why there is none."""

    name: str
    report: CountReport | None = None
    error: str = ""

    @property
    def status(self) -> str:
        """`ok`, `degraded`, `no_tissue` or `failed`."""
        return self.report.status if self.report else "failed"

    def to_dict(self) -> dict[str, Any]:
        """A row of the summary."""
        return self.report.to_dict() if self.report else {"slide": self.name, "status": "failed", "error": self.error}


def count_slides(
    sources: Sequence[SlideSource],
    model: Model,
    out: Path,
    config: CountConfig,
    *,
    overwrite: bool = False,
    on_tiles: Callable[[str, int, int], None] = lambda _name, _done, _all: None,
) -> Iterator[SlideResult]:
    """Count slide after slide into ``out/SLIDE/``, then write ``out/summary.csv``; a bad slide stops no other.

    Parameters
    ----------
    overwrite : bool
        Replace results that `out` holds already.
    on_tiles : callable
        Told (slide, tiles done, tiles in all) after each batch.

    Raises
    ------
    ConfigError
        `out` holds results and `overwrite` is not set; `tile_size` does not fit the network.
    OutputError
        `out` cannot be written to.
    """
    summary = out / "summary.csv"
    if summary.exists() and not overwrite:
        raise ConfigError(f"{out}: holds results already. Choose another --out, or add --overwrite to replace them.")
    make_folder(out)
    results = []
    for source in sources:
        results.append(_count_source(source, model, out, config, on_tiles))
        yield results[-1]
    write_summary(summary, [result.to_dict() for result in results])


def _count_source(
    source: SlideSource, model: Model, out: Path, config: CountConfig, on_tiles: Callable[[str, int, int], None]
) -> SlideResult:
    name = source.slide_id
    (out / name / "count.json").unlink(missing_ok=True)  # if this slide fails now, an old count must not stand for it
    try:
        with open_slide(source.path, source.mpp) as slide:
            digest = sha256(source.path)
            counted = count_slide(slide, name, model, config, digest, partial(on_tiles, name))
            report = replace(
                counted.report,
                case_id=source.case_id,
                domain=source.domain,
                seen_in_training=model.card.has_seen(source.case_id, digest),
                training_cases=tuple(model.card.training.get("cases", ())),
            )
            write_report(out / name, slide, report, counted.candidates, counted.tissue)
    except SlideError as error:
        return SlideResult(name, error=str(error))
    return SlideResult(name, report)


def count_slide(
    slide: Slide,
    name: str,
    model: Model,
    config: CountConfig,
    source_sha256: str = "",
    on_tiles: Callable[[int, int], None] = lambda _done, _all: None,
) -> SlideCount:
    """Count the mitotic figures of a slide.

    Parameters
    ----------
    name : str
        What the report calls the slide.
    on_tiles : callable
        Told (tiles done, tiles in all) after each batch.

    Raises
    ------
    SlideError
        More of the tissue than `max_bad_fraction` lies in damaged tiles, or the slide cannot be read any more.
    ConfigError
        `tile_size` does not fit the network.
    """
    tissue = find_tissue(slide)
    second = _second_card(model, config)
    found = _candidates(slide, tissue, model, config, on_tiles)
    bad_tiles = sorted(set(slide.bad_tiles), key=lambda bad: (bad.level, bad.box))
    readable = tissue.without(bad.box for bad in bad_tiles)
    unreadable = 1 - readable.area_mm2 / tissue.area_mm2 if tissue.area_mm2 else 0.0
    if unreadable > config.max_bad_fraction:
        raise SlideError(
            f"{slide.path}: {unreadable:.1%} of the tissue lies in damaged tiles, over {config.max_bad_fraction:.1%} "
            f"(first: {bad_tiles[0].reason}). Copy the file again, or raise count.max_bad_fraction."
        )
    candidates = found[readable.contains(found.xy)]
    threshold = config.threshold or model.card.threshold_for(config.objective, verified=second is not None)
    report = mitotic_count(
        candidates,
        tissue,
        slide=name,
        threshold=threshold,
        mpp=model.card.mpp,
        **config.window(),
        calibration=() if second else model.card.calibration_at(threshold),
        bad_tiles=bad_tiles,
        model_sha256=model.card.weights_sha256,
        verifier_sha256=second.weights_sha256 if second else "",
        source_sha256=source_sha256,
        settings=config.model_dump(mode="json"),
        versions=versions() | ({"engine": model.runs_on} if model.runs_on else {}),
    )
    return SlideCount(report, candidates, tissue)


def _second_card(model: Model, config: CountConfig) -> VerifierCard | None:
    """The card of the second stage, if one is to give the final scores."""
    return model.card.verifier if config.verify and model.second is not None else None


def _candidates(
    slide: Slide, tissue: TissueMask, model: Model, config: CountConfig, on_tiles: Callable[[int, int], None]
) -> Detections:
    """All candidates, merged, with their final scores."""
    card, low = _second_card(model, config), config
    if card is not None:
        low = config.model_copy(update={"score_floor": config.verify_floor or card.settings.score_floor})
    found = merge(concatenate(detect(slide, tissue, model, low, on_tiles)), slide.mpp, config.merge_um)
    if card is None or model.second is None or not len(found):
        return found
    stain = measure_stain(slide, tissue, model.card.mpp) if model.card.network.normalise_stain else None
    found = verify(slide, found, model.second, card.settings, stain, views=config.views)
    return found[found.score >= config.score_floor]


def detect(
    slide: Slide,
    tissue: TissueMask,
    model: Model,
    config: CountConfig,
    on_tiles: Callable[[int, int], None] = lambda _done, _all: None,
) -> Iterator[Detections]:
    """Candidates on the tissue of a slide, in pieces as its tiles are done, not yet merged.

    Each tile's window holds its core, what peaks need around it (`reach_px`) and what the network needs around that, so
    the pieces together are the same for every tile size.

    Raises
    ------
    ConfigError
        `tile_size` does not fit the network.
    """
    mpp = model.card.mpp
    reach = reach_px(mpp)
    margin = -(-(reach + model.margin) // model.stride) * model.stride
    if config.tile_size % model.stride or config.tile_size <= 2 * margin:
        raise ConfigError(
            f"count.tile_size = {config.tile_size}: this model needs a multiple of {model.stride} above {2 * margin}."
        )
    dimensions = grid_dimensions(slide.dimensions, slide.mpp, mpp)
    tiles = [
        tile
        for tile in tile_grid(dimensions, mpp, config.tile_size, margin)
        if tissue.area_mm2_in([edge * mpp / slide.mpp for edge in tile.core.grown(reach)]) > 0
    ]
    inner = slice(margin - reach, config.tile_size - margin + reach)
    engine = average_views(model.engine, config.views)
    stain = measure_stain(slide, tissue, mpp) if model.card.network.normalise_stain else None
    n_done = 0
    for batch, images in _read_ahead(slide, tiles, config, stain):
        for tile, probability in zip(batch, engine(images), strict=True):
            window = tile.window.grown(reach - margin)
            found = find_peaks(probability[inner, inner], window, tile.core, mpp, slide.mpp, config.score_floor)
            yield found[tissue.contains(found.xy)]
        n_done += len(batch)
        on_tiles(n_done, len(tiles))


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
