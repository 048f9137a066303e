"""The worst mistakes as image crops: figures that were missed, and false alarms."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from mitosis.cohort import SlideSource
from mitosis.geometry import Box
from mitosis.matching import MATCH_RADIUS_UM, match
from mitosis.ranking import SlideScores
from mitosis.slides import Slide, open_slide, read_at_mpp

__all__ = ["Mistake", "crop", "worst_mistakes"]

CROP_UM, CROP_MPP = 32.0, 0.25


@dataclass(frozen=True, slots=True)
class Mistake:
    """A missed figure or a false alarm.

    Attributes
    ----------
    slide : str
    x, y : float
        Level-0 px.
    score : float
        Of the false alarm; of a missed figure that of the best candidate on it, 0 where there is none.
    on_look_alike : bool
        A false alarm that lies on a marked look-alike.
    image : str
        The crop as a ``data:`` address of a PNG; empty where the slide is not at hand.
    """

    slide: str
    x: float
    y: float
    score: float
    on_look_alike: bool = False
    image: str = ""


def worst_mistakes(
    slides: Sequence[SlideScores],
    thresholds: Mapping[str, float],
    n: int = 24,
    radius_um: float = MATCH_RADIUS_UM,
) -> tuple[list[Mistake], list[Mistake]]:
    """The `n` misses with the lowest scores and the `n` false alarms with the highest, one to one in the radius."""
    misses, alarms = list[Mistake](), list[Mistake]()
    for slide in slides:
        radius = radius_um / slide.slide_mpp
        figures = np.asarray(slide.figures, dtype=np.float64).reshape(-1, 2)
        found = slide.candidates[slide.candidates.score >= thresholds[slide.slide]]
        matching = match(figures, found.xy, radius)
        missed, wrong = figures[matching.unmatched_truth], found[matching.unmatched_found]
        on_look_alikes = _near(np.asarray(slide.look_alikes, dtype=np.float64).reshape(-1, 2), wrong.xy, radius)
        misses += [Mistake(slide.slide, x, y, _best_score(slide, (x, y), radius)) for x, y in missed.tolist()]
        alarms += [
            Mistake(slide.slide, x, y, score, bool(on))
            for (x, y), score, on in zip(wrong.xy.tolist(), wrong.score.tolist(), on_look_alikes, strict=True)
        ]
    misses.sort(key=lambda one: (one.score, one.slide, one.y, one.x))
    alarms.sort(key=lambda one: (-one.score, one.slide, one.y, one.x))
    return misses[:n], alarms[:n]


def crop(mistakes: Sequence[Mistake], sources: Mapping[str, SlideSource]) -> list[Mistake]:
    """The same mistakes with their crops, of the slides that are at hand."""
    images = dict[Mistake, str]()
    for name in sorted({one.slide for one in mistakes} & set(sources)):
        with open_slide(sources[name].path, sources[name].mpp) as slide:
            images |= {one: _image(slide, one.x, one.y) for one in mistakes if one.slide == name}
    return [Mistake(one.slide, one.x, one.y, one.score, one.on_look_alike, images.get(one, "")) for one in mistakes]


def _near(places: np.ndarray, xy: np.ndarray, radius: float) -> list[bool]:
    if not len(places) or not len(xy):
        return [False] * len(xy)
    return [bool(near) for near in cKDTree(places).query(xy)[0] <= radius]


def _best_score(slide: SlideScores, place: tuple[float, float], radius: float) -> float:
    near = np.hypot(*(slide.candidates.xy - place).T) <= radius
    return float(slide.candidates.score[near].max(initial=0.0))


def _image(slide: Slide, x: float, y: float) -> str:
    """A square of 32 µm round a place, as a ``data:`` address."""
    mpp = max(slide.mpp, CROP_MPP)
    side = round(CROP_UM / mpp)
    x0, y0 = (round(v * slide.mpp / mpp - side / 2) for v in (x, y))
    stream = io.BytesIO()
    Image.fromarray(read_at_mpp(slide, Box(x0, y0, x0 + side, y0 + side), mpp)).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
