"""A slide and a model to detections and a mitotic count, tile by tile.

`count_slide` does all of it. Its two halves are for those who have many slides: `start_slide` looks for tissue and
hands the tiles on it to a `Finder`, `finish_slide` lets a `Judge` look again at what that found, and makes a count of
it. Both may run networks here (`find_in_tiles`, `judge_candidates`) or hand the work on to others (`mitosis.cluster`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mitosis.checkpoints import VerifierCard
from mitosis.config import CountConfig
from mitosis.counting import CountReport, mitotic_count
from mitosis.crowding import COUNTED_FROM, discount_crowds, tissue_around
from mitosis.detections import SCORE_STEPS, Detections, concatenate, merge
from mitosis.errors import SlideError
from mitosis.geometry import Tile
from mitosis.looks import combine_scores
from mitosis.regions import Region
from mitosis.slides import BadTile, Slide
from mitosis.stain import StainLevels, measure_stain
from mitosis.tile_search import Finder, Found, Judge, Model, check_tile_size, find_in_tiles, tiles_on
from mitosis.tissue import TissueMask, find_tissue
from mitosis.verification import verify

__all__ = ["Model", "SlideCount", "StartedSlide", "count_slide", "finish_slide", "judge_candidates", "start_slide"]


@dataclass(frozen=True)
class SlideCount:
    """The report on a slide, every candidate above the floor, and where tissue was found."""

    report: CountReport
    candidates: Detections
    tissue: TissueMask


@dataclass(frozen=True)
class StartedSlide:
    """A slide whose tiles are being looked at.

    Attributes
    ----------
    tissue : TissueMask
        In the region of interest, if there is one.
    tiles : tuple of Tile
        Those with tissue.
    stain : StainLevels or None
        Where networks see slides brought to the usual ones.
    pieces : iterable of Found
    judge : Judge
        Looks again at what is found.
    """

    slide: Slide
    tissue: TissueMask
    tiles: tuple[Tile, ...]
    stain: StainLevels | None
    pieces: Iterable[Found]
    judge: Judge
    region: Region | None = None


def count_slide(
    slide: Slide,
    name: str,
    model: Model,
    config: CountConfig,
    source_sha256: str = "",
    on_tiles: Callable[[int, int], None] = lambda _done, _all: None,
    region: Region | None = None,
    stain: StainLevels | None = None,
) -> SlideCount:
    """Count the mitotic figures of a slide.

    Parameters
    ----------
    name : str
        What the report calls the slide.
    on_tiles : callable
        Told (tiles done, tiles in all) after each batch.
    region : Region or None
        Tissue outside it is left out.
    stain : StainLevels or None
        Those of the slide, where what is at hand is too small a part of it to tell; by default they are measured. A
        network that sees slides as they are has no use for them.

    Raises
    ------
    SlideError
        More of the tissue than `max_bad_fraction` lies in damaged tiles, or the slide cannot be read any more.
    ConfigError
        `tile_size` does not fit the network.
    """
    started = start_slide(slide, model, config, region, stain=stain)
    return finish_slide(started, name, model, config, source_sha256, on_tiles)


def start_slide(
    slide: Slide,
    model: Model,
    config: CountConfig,
    region: Region | None = None,
    find: Finder | None = None,
    stain: StainLevels | None = None,
    judge: Judge | None = None,
) -> StartedSlide:
    """Find the tissue of a slide and hand the tiles on it to a finder; raises as `count_slide`.

    Parameters
    ----------
    find : Finder or None
        None runs the network here, once the pieces are asked for.
    stain : StainLevels or None
        As in `count_slide`.
    judge : Judge or None
        None runs the second stage here, once the first is done.
    """
    check_tile_size(model, config)
    everywhere = find_tissue(slide)
    tissue = region.tissue_in(everywhere) if region else everywhere
    tiles = tiles_on(tissue, model, config)
    if not model.card.network.normalise_stain:
        stain = None
    elif stain is None:
        stain = measure_stain(slide, everywhere, model.card.mpp)  # however the region was drawn
    pieces = (find or find_in_tiles)(slide, tiles, model, _first_stage(model, config), stain)
    return StartedSlide(slide, tissue, tiles, stain, pieces, judge or judge_candidates, region)


def finish_slide(
    started: StartedSlide,
    name: str,
    model: Model,
    config: CountConfig,
    source_sha256: str = "",
    on_tiles: Callable[[int, int], None] = lambda _done, _all: None,
) -> SlideCount:
    """Make a count of what is found in the tiles; parameters and errors are those of `count_slide`."""
    slide, tissue, second = started.slide, started.tissue, model.second_card(config)
    found, met = _candidates(started, model, config, on_tiles)
    bad_tiles = sorted(met.union(slide.bad_tiles), key=lambda bad: (bad.level, bad.box))
    readable = tissue.without(bad.box for bad in bad_tiles)
    unreadable = 1 - readable.area_mm2 / tissue.area_mm2 if tissue.area_mm2 else 0.0
    if unreadable > config.max_bad_fraction:
        raise SlideError(
            f"{slide.path}: {unreadable:.1%} of the tissue lies in damaged tiles, over {config.max_bad_fraction:.1%} "
            f"(first: {bad_tiles[0].reason}). Copy the file again, or raise count.max_bad_fraction."
        )
    candidates = _final(found[readable.contains(found.xy)], readable, second, config)
    threshold = config.threshold or model.card.threshold_for(config.objective, verified=second is not None)
    report = mitotic_count(
        candidates,
        tissue,
        slide=name,
        threshold=threshold,
        mpp=model.card.mpp,
        **config.window(),
        calibration=model.card.calibration_at(threshold, verified=second is not None),
        bad_tiles=bad_tiles,
        source_sha256=source_sha256,
        region_sha256=started.region.sha256 if started.region else "",
        region_outlines=started.region.rings if started.region else (),
        **model.provenance(config),
    )
    return SlideCount(report, candidates, tissue)


def _first_stage(model: Model, config: CountConfig) -> CountConfig:
    """The settings of the first stage: where there is a second, it is the one that drops what scores low.

    What the second cannot bring up to `score_floor` with the surest of answers is not handed to it, unless it might
    make a crowd of others.
    """
    card = model.second_card(config)
    if card is None:
        return config
    first = np.arange(1, SCORE_STEPS + 1) / SCORE_STEPS
    best = combine_scores(np.ones_like(first), first, card.settings)
    able = first[card.score_calibration(best) >= config.score_floor]
    if card.settings.crowding:
        able = np.append(able, first[best >= COUNTED_FROM])
    least = config.verify_floor or card.settings.ask_floor or card.settings.score_floor
    return config.model_copy(update={"score_floor": max(least, able.min(initial=1.0))})


def _candidates(
    started: StartedSlide, model: Model, config: CountConfig, on_tiles: Callable[[int, int], None]
) -> tuple[Detections, set[BadTile]]:
    """All candidates on tissue, merged, as the last stage that there is scores them, and the damaged tiles met."""
    slide, tissue, card = started.slide, started.tissue, model.second_card(config)
    parts, bad_tiles, n_done = list[Detections](), set[BadTile](), 0
    for piece in started.pieces:
        parts.append(piece.detections[tissue.contains(piece.detections.xy)])
        bad_tiles.update(piece.bad_tiles)
        n_done += piece.n_tiles
        on_tiles(n_done, len(started.tiles))
    found = merge(concatenate(parts), slide.mpp, config.merge_um)
    if card is None or model.second is None or not len(found):
        return found, bad_tiles
    judged = list(started.judge(slide, found, model, config, started.stain))
    bad_tiles.update(*(piece.bad_tiles for piece in judged))
    return concatenate(piece.detections for piece in judged), bad_tiles


def _final(found: Detections, tissue: TissueMask, card: VerifierCard | None, config: CountConfig) -> Detections:
    """Candidates on readable tissue with their final scores, sorted: crowds are discounted, then scores calibrated."""
    if card is not None:
        settings = card.settings
        if settings.crowding:
            around_mm2 = tissue_around(found.xy, tissue)
            found = discount_crowds(found, around_mm2, tissue.slide_mpp, settings.crowding, settings.crowding_from)
        found = Detections(found.xy, card.score_calibration(found.score), found.area_um2)
    return found[found.score >= config.score_floor].sorted()


def judge_candidates(
    slide: Slide, candidates: Detections, model: Model, config: CountConfig, stain: StainLevels | None
) -> Iterator[Found]:
    """Let the second stage look at candidates: the `Judge` of this process."""
    card = model.second_card(config)
    if card is None or model.second is None:
        raise ValueError("the model has no second stage to judge by")
    views = max(config.views, card.settings.views)
    yield Found(0, verify(slide, candidates, model.second, card.settings, stain, views=views, workers=config.workers))
