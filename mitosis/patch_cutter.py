"""Patches out of an open slide: where they lie, their pixels and their masks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import fpng
import numpy as np
import shapely
from numpy.typing import NDArray

from mitosis.annotations import Annotation, Label, write_points
from mitosis.cohort import SlideSource
from mitosis.config import ExtractConfig
from mitosis.files import atomic_write, make_folder
from mitosis.geometry import Box, area_mm2, grid_dimensions, tile_grid
from mitosis.masks import IGNORE, MITOTIC_FIGURE, NON_MITOTIC_FIGURE, NUCLEUS_RADIUS_UM, draw_mask, save_mask
from mitosis.patches import BACKGROUND, HARD_NEGATIVE, MITOTIC, Patch
from mitosis.regions import Region, region_at
from mitosis.slides import Slide, read_at_mpp
from mitosis.stain import measure_stain
from mitosis.threads import in_threads
from mitosis.tissue import TissueMask, find_tissue

__all__ = ["PatchCutter"]

Place = tuple[str, Box, bool]

# A nucleus that a patch cuts must get the mask it would get whole: masks are drawn with this much more, µm. No point
# changes the mask further away than that.
_MASK_CONTEXT_UM = 12.0
_WRITERS = 4  # threads that wait until the disk has a file for good, 6 ms each: one after the other is half of all time


class _Piece(NamedTuple):
    """A patch before it is written: where it lies, its image as PNG, its mask."""

    place: Place
    png: bytes
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class PatchCutter:
    """Cuts patches of one slide, whose masks show `marks` and ignore the nuclei at `unclear` ((x, y), level-0 px).

    `workers` threads read, draw masks and encode; what is written is the same for any number.
    """

    slide: Slide
    source: SlideSource
    out: Path
    config: ExtractConfig
    sha256: str
    marks: tuple[Annotation, ...]
    unclear: tuple[tuple[float, float], ...] = ()
    workers: int = 1

    @cached_property
    def all_tissue(self) -> TissueMask:
        """Tissue of the slide, also outside a region of interest: stain is that of the slide, however one was drawn."""
        return find_tissue(self.slide)

    @cached_property
    def tissue(self) -> TissueMask:
        """Tissue of the slide, or of its region of interest."""
        return self.region.tissue_in(self.all_tissue) if self.region else self.all_tissue

    @cached_property
    def region(self) -> Region | None:
        """The region of interest: nobody looked at what lies outside, so masks ignore it."""
        return region_at(self.source.region)

    @property
    def ratio(self) -> float:
        """Level-0 px in a px of the patches."""
        return self.config.mpp / self.slide.mpp

    def places(self, tissue: TissueMask) -> Iterator[Place]:
        """(name, box in px at config.mpp, on_grid) of each patch."""
        dimensions = grid_dimensions(self.slide.dimensions, self.slide.mpp, self.config.mpp)
        boxes = [tile.window for tile in tile_grid(dimensions, self.config.mpp, self.config.size)]
        edges = np.multiply(boxes, self.ratio)
        sizes = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
        shares = np.round(tissue.areas_mm2_in(edges) / (sizes * area_mm2(1, self.slide.mpp)), 9)
        for box, share in zip(boxes, shares.tolist(), strict=True):
            if share >= self.config.min_tissue or self.marks_in(box):
                yield f"tile_x{box.x0:06d}_y{box.y0:06d}", box, True
        rng = np.random.default_rng([self.config.seed, *self.source.slide_id.encode()])
        for number, mark in enumerate(self.marks):
            label = "figure" if mark.label is Label.MITOTIC_FIGURE else "lookalike"
            yield f"{label}_{number:05d}", self.box_around(mark.x, mark.y, rng), False

    def box_around(self, x: float, y: float, rng: np.random.Generator) -> Box:
        """Box, px at config.mpp, whose centre is a place (level-0 px) moved by up to the jitter."""
        dx, dy = rng.integers(-self.config.jitter, self.config.jitter, 2, endpoint=True)
        x0, y0 = (int(centre) - self.config.size // 2 for centre in (x / self.ratio + dx, y / self.ratio + dy))
        return Box(x0, y0, x0 + self.config.size, y0 + self.config.size)

    def marks_in(self, box: Box) -> list[Annotation]:
        """The marks whose centre lies in a box."""
        corners = np.reshape(box, (2, 2)) * self.ratio
        inside = np.all((self._centres >= corners[0]) & (self._centres < corners[1]), axis=1)
        return [self.marks[number] for number in np.flatnonzero(inside)]

    @cached_property
    def _centres(self) -> NDArray[np.float64]:
        """[N, 2], level-0 px."""
        return np.array([(mark.x, mark.y) for mark in self.marks], np.float64).reshape(-1, 2)

    @cached_property
    def _reach(self) -> NDArray[np.float64]:
        """How far the mask of a mark may reach, (x0, y0, x1, y1) in level-0 px, [N, 4]."""
        boxes = [
            shapely.total_bounds(mark.outlines) if mark.outlines else (mark.x, mark.y, mark.x, mark.y)
            for mark in self.marks
        ]
        context = _MASK_CONTEXT_UM / self.slide.mpp
        reach: NDArray[np.float64] = np.reshape(boxes, (-1, 4)) + np.array([-context, -context, context, context])
        return reach

    def cut(self, places: Iterable[Place]) -> tuple[Patch, ...]:
        """Write the marks, and image and mask of each place as `places` gives it, unless the file is damaged there."""
        for part in ("images", "masks"):
            make_folder(self.out / part / self.source.slide_id)
        write_points(make_folder(self.out / "marks") / f"{self.source.slide_id}.csv", self.marks)
        write = partial(self._write, str(measure_stain(self.slide, self.all_tissue, self.config.mpp)))
        pieces = (piece for piece in self._looked_at(places) if piece)
        return tuple(in_threads(write, pieces, _WRITERS, ahead=2 * _WRITERS))

    def _looked_at(self, places: Iterable[Place]) -> Iterator[_Piece | None]:
        n = self.workers if self.workers > 1 else 0
        return in_threads(self._look_at, places, n, ahead=2 * n)

    def _look_at(self, place: Place) -> _Piece | None:
        """What there is to write; a damaged place gives nothing."""
        _, box, _ = place
        x0, y0, x1, y1 = (edge * self.ratio for edge in box)
        left, top, right, bottom = self._reach.T
        near = np.flatnonzero((left < x1) & (right > x0) & (top < y1) & (bottom > y0))
        margin = round(_MASK_CONTEXT_UM / self.config.mpp) if len(near) else 0
        whole, inner = box.grown(margin), slice(margin, margin + self.config.size)
        pixels = read_at_mpp(self.slide, whole, self.config.mpp)
        if self._is_damaged(box):
            return None
        marks = [self.marks[number] for number in near]
        mask = draw_mask(marks, whole, self.config.mpp, self.slide.mpp, pixels)[inner, inner]
        self._ignore_unclear(mask, box)
        if self.region:
            mask[~self.region.pixels_in(box, self.ratio)] = IGNORE
        return _Piece(place, fpng.from_ndarray(np.ascontiguousarray(pixels[inner, inner])), mask)

    def _ignore_unclear(self, mask: NDArray[np.uint8], box: Box) -> None:
        radius = NUCLEUS_RADIUS_UM / self.config.mpp
        rows, columns = np.ogrid[box.y0 : box.y1, box.x0 : box.x1]
        for x, y in ((x / self.ratio, y / self.ratio) for x, y in self.unclear):
            if box.x0 - radius <= x <= box.x1 + radius and box.y0 - radius <= y <= box.y1 + radius:
                distance = np.hypot(columns + 0.5 - x, rows + 0.5 - y)
                mask[(mask == 0) & (distance <= radius)] = IGNORE

    def _is_damaged(self, box: Box) -> bool:
        x0, y0, x1, y1 = (edge * self.ratio for edge in box)
        bad = (tile.box for tile in self.slide.bad_tiles)
        return any(b.x0 < x1 and b.x1 > x0 and b.y0 < y1 and b.y1 > y0 for b in bad)

    def _write(self, stain: str, piece: _Piece) -> Patch:
        file = f"{self.source.slide_id}/{piece.place[0]}.png"
        with atomic_write(self.out / "images" / file) as stream:
            stream.write(piece.png)
        if self.source.annotations:
            save_mask(self.out / "masks" / file, piece.mask)
        return self._row(piece, stain)

    def _row(self, piece: _Piece, stain: str) -> Patch:
        (name, box, on_grid), mask = piece.place, piece.mask
        n_px = np.bincount(mask.ravel(), minlength=256) if mask.any() else np.zeros(256, np.int64)
        here = self.marks_in(box)
        n_mitotic = sum(mark.label is Label.MITOTIC_FIGURE for mark in here)
        file = f"{self.source.slide_id}/{name}.png"
        return Patch(
            patch_id=f"{self.source.slide_id}/{name}",
            slide_id=self.source.slide_id,
            case_id=self.source.case_id,
            domain=self.source.domain,
            x=box.x0 * self.ratio,
            y=box.y0 * self.ratio,
            size=self.config.size,
            mpp=self.config.mpp,
            slide_mpp=self.slide.mpp,
            kind=MITOTIC if n_mitotic else HARD_NEGATIVE if here else BACKGROUND,
            on_grid=on_grid,
            n_mitotic=n_mitotic,
            n_non_mitotic=len(here) - n_mitotic,
            px_mitotic=int(n_px[MITOTIC_FIGURE]),
            px_non_mitotic=int(n_px[NON_MITOTIC_FIGURE]),
            px_ignore=int(n_px[IGNORE]),
            image=f"images/{file}",
            mask=f"masks/{file}" if self.source.annotations else "",
            split="",
            source_sha256=self.sha256,
            stain=stain,
        )
