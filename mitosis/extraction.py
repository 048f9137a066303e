"""Slides and marks to a folder of patches that a person can open and a network can learn from.

The folder holds ``index.csv`` (a row a patch), ``images/SLIDE/*.png``, ``masks/SLIDE/*.png``, ``marks/SLIDE.csv``
(the marks as points), ``settings.yaml`` and ``slides/SLIDE.json`` (what was done: a second run need not do it again).
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitosis.annotations import Annotation, AnnotationSet, Label, find_annotations, load_annotations, write_points
from mitosis.cohort import SlideSource
from mitosis.config import Config, ExtractConfig, load_config, save_config
from mitosis.errors import AnnotationError, MitosisError, PatchIndexError
from mitosis.files import atomic_write, dump_json, make_folder, sha256, write_text
from mitosis.geometry import Box, grid_dimensions, tile_grid
from mitosis.masks import IGNORE, MITOTIC_FIGURE, NON_MITOTIC_FIGURE, NUCLEUS_RADIUS_UM, draw_mask, save_mask
from mitosis.patches import BACKGROUND, HARD_NEGATIVE, MITOTIC, Patch, PatchIndex
from mitosis.slides import Slide, open_slide, read_at_mpp
from mitosis.splits import assign_splits
from mitosis.stain import measure_stain
from mitosis.tissue import TissueMask, find_tissue

__all__ = ["PatchCutter", "SlideRecord", "extract_patches"]

# A nucleus that a patch cuts must get the mask it would get whole: masks are drawn with this much more, µm.
_MASK_CONTEXT_UM = 12.0


@dataclass(frozen=True)
class SlideRecord:
    """What came of one slide.

    Attributes
    ----------
    patches : tuple of Patch
    n_outside, n_ignored : int
        Marks left out because they lie outside the slide, or are of a class that is neither figure nor look-alike.
    n_unreadable : int
        Patches left out because a tile of the slide file is damaged there.
    error : str
        Why the slide failed; empty if it did not.
    reused : bool
        Whether an earlier run had done it already.
    """

    slide_id: str
    patches: tuple[Patch, ...] = ()
    n_outside: int = 0
    n_ignored: int = 0
    n_unreadable: int = 0
    error: str = ""
    reused: bool = False


def extract_patches(
    sources: Sequence[SlideSource], out: Path, config: ExtractConfig, workers: int = 1
) -> Iterator[SlideRecord]:
    """Cut patches from each slide into the folder `out`; gives a record as each slide is done.

    Tiles over tissue cover each slide once; around every mark a further patch is cut, its centre moved at random.
    The index is written at the end, and only if no slide failed. Slides that an earlier run finished, from the same
    files with the same settings, are not done again.

    Raises
    ------
    PatchIndexError
        `out` holds patches that were cut with other settings.
    OutputError
        `out` cannot be written to.
    """
    make_folder(out)
    _keep_settings(out, config)
    records = []
    for record in _run(sources, out, config, workers):
        records.append(record)
        yield record
    if not any(record.error for record in records):
        _write_index(out, records, config)


def _run(sources: Sequence[SlideSource], out: Path, config: ExtractConfig, workers: int) -> Iterator[SlideRecord]:
    if workers <= 1 or len(sources) == 1:
        yield from (_extract_slide(source, out, config) for source in sources)
        return
    with ProcessPoolExecutor(min(workers, len(sources)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_extract_slide, source, out, config) for source in sources]
        for future in as_completed(futures):
            yield future.result()


def _keep_settings(out: Path, config: ExtractConfig) -> None:
    """Write the settings beside the patches, or refuse if other ones are there."""
    path = out / "settings.yaml"
    settings = Config(extract=config)
    if path.exists():
        before = load_config(path).extract
        changed = [
            f"{name} {old} → {new}"
            for (name, old), new in zip(before.model_dump().items(), config.model_dump().values(), strict=True)
            if old != new
        ]
        if changed:
            raise PatchIndexError(
                f"{out}: holds patches cut with other settings ({', '.join(changed)}). Choose another --out."
            )
    else:
        save_config(path, settings)


def _write_index(out: Path, records: Sequence[SlideRecord], config: ExtractConfig) -> None:
    patches = sorted((patch for record in records for patch in record.patches), key=lambda p: p.patch_id)
    figures = dict.fromkeys((patch.case_id for patch in patches), 0)
    for patch in patches:
        figures[patch.case_id] += patch.n_mitotic
    splits = assign_splits(figures, config.val_fraction, config.seed)
    index = PatchIndex(out, tuple(replace(patch, split=splits[patch.case_id]) for patch in patches))
    index.check_splits()
    text = index.to_csv()
    path = out / "index.csv"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _extract_slide(source: SlideSource, out: Path, config: ExtractConfig) -> SlideRecord:
    try:
        return _reuse_or_cut(source, out, config)
    except MitosisError as error:
        return SlideRecord(source.slide_id, error=str(error))


def _reuse_or_cut(source: SlideSource, out: Path, config: ExtractConfig) -> SlideRecord:
    with open_slide(source.path, source.mpp) as slide:
        marks = find_annotations(source.annotations, source.slide_id) if source.annotations else ()
        key = {
            "source_sha256": sha256(source.path),
            "case_id": source.case_id,
            "domain": source.domain,
            "mpp": slide.mpp,
            "marks_sha256": [_digest(path) for path in marks],
        }
        return _earlier(out, source.slide_id, key) or _cut(slide, source, out, config, key)


def _journal(out: Path, slide_id: str) -> Path:
    return out / "slides" / f"{slide_id}.json"


def _digest(marks: Path) -> str:
    try:
        return sha256(marks)
    except OSError as error:
        raise AnnotationError(f"{marks}: cannot be read ({error.strerror}). Check the path.") from error


def _earlier(out: Path, slide_id: str, key: dict[str, Any]) -> SlideRecord | None:
    """The record of an earlier run, if it was made of the same files and its patches are all there."""
    try:
        content = json.loads(_journal(out, slide_id).read_text(encoding="utf-8"))
        record = SlideRecord(**content["record"] | {"reused": True})
        patches = tuple(Patch(**row) for row in content["record"]["patches"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    files = [file for patch in patches for file in (patch.image, patch.mask) if file]
    if content.get("key") != key or not all((out / file).is_file() for file in files):
        return None
    return replace(record, patches=patches)


def _cut(slide: Slide, source: SlideSource, out: Path, config: ExtractConfig, key: dict[str, Any]) -> SlideRecord:
    """Cut all patches of a slide, then note in its journal what was done."""
    loaded = AnnotationSet(())
    if source.annotations:
        loaded = load_annotations(source.annotations, source.slide_id, slide.dimensions, slide.mpp)
    journal = _journal(out, source.slide_id)
    # What an earlier run noted must not vouch for what is written from here on.
    for note in (journal, out / "index.csv"):
        note.unlink(missing_ok=True)
    for part in ("images", "masks"):
        shutil.rmtree(make_folder(out / part / source.slide_id))
    cutter = PatchCutter(slide, source, out, config, key["source_sha256"], loaded.annotations)
    places = list(cutter.places(find_tissue(slide)))
    patches = cutter.cut(places)
    record = SlideRecord(source.slide_id, patches, loaded.n_outside, loaded.n_ignored, len(places) - len(patches))
    make_folder(journal.parent)
    write_text(journal, dump_json({"key": key, "record": asdict(record)}))
    return record


@dataclass(frozen=True)
class PatchCutter:
    """Cuts patches of one slide, whose masks show `marks` and ignore the nuclei at `unclear` ((x, y), level-0 px)."""

    slide: Slide
    source: SlideSource
    out: Path
    config: ExtractConfig
    sha256: str
    marks: tuple[Annotation, ...]
    unclear: tuple[tuple[float, float], ...] = ()

    @cached_property
    def stain(self) -> str:
        """Stain levels of the slide, as text."""
        return str(measure_stain(self.slide, find_tissue(self.slide), self.config.mpp))

    @property
    def ratio(self) -> float:
        """Level-0 px in a px of the patches."""
        return self.config.mpp / self.slide.mpp

    def places(self, tissue: TissueMask) -> Iterator[tuple[str, Box, bool]]:
        """(name, box in px at config.mpp, on_grid) of each patch."""
        dimensions = grid_dimensions(self.slide.dimensions, self.slide.mpp, self.config.mpp)
        for box in (tile.window for tile in tile_grid(dimensions, self.config.mpp, self.config.size)):
            if self.marks_in(box) or tissue.covers([edge * self.ratio for edge in box]) >= self.config.min_tissue:
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
        x0, y0, x1, y1 = (edge * self.ratio for edge in box)
        return [mark for mark in self.marks if x0 <= mark.x < x1 and y0 <= mark.y < y1]

    def cut(self, places: Iterable[tuple[str, Box, bool]]) -> tuple[Patch, ...]:
        """Write the marks, and image and mask of each place as `places` gives it, unless the file is damaged there."""
        for part in ("images", "masks"):
            make_folder(self.out / part / self.source.slide_id)
        write_points(make_folder(self.out / "marks") / f"{self.source.slide_id}.csv", self.marks)
        return tuple(patch for place in places if (patch := self._cut(*place)))

    def _cut(self, name: str, box: Box, on_grid: bool) -> Patch | None:
        margin = round(_MASK_CONTEXT_UM / self.config.mpp)
        pixels = read_at_mpp(self.slide, box.grown(margin), self.config.mpp)
        if self._is_damaged(box):
            return None
        inner = slice(margin, -margin)
        mask = draw_mask(self.marks, box.grown(margin), self.config.mpp, self.slide.mpp, pixels)[inner, inner]
        rows, columns = np.ogrid[box.y0 : box.y1, box.x0 : box.x1]
        for x, y in self.unclear:
            distance = np.hypot(columns + 0.5 - x / self.ratio, rows + 0.5 - y / self.ratio)
            mask[(mask == 0) & (distance <= NUCLEUS_RADIUS_UM / self.config.mpp)] = IGNORE
        file = f"{self.source.slide_id}/{name}.png"
        with atomic_write(self.out / "images" / file) as stream:
            Image.fromarray(np.ascontiguousarray(pixels[inner, inner])).save(stream, "PNG", compress_level=1)
        if self.source.annotations:
            save_mask(self.out / "masks" / file, mask)
        return self._row(name, box, on_grid, mask)

    def _is_damaged(self, box: Box) -> bool:
        x0, y0, x1, y1 = (edge * self.ratio for edge in box)
        bad = (tile.box for tile in self.slide.bad_tiles)
        return any(b.x0 < x1 and b.x1 > x0 and b.y0 < y1 and b.y1 > y0 for b in bad)

    def _row(self, name: str, box: Box, on_grid: bool, mask: NDArray[np.uint8]) -> Patch:
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
            px_mitotic=int((mask == MITOTIC_FIGURE).sum()),
            px_non_mitotic=int((mask == NON_MITOTIC_FIGURE).sum()),
            px_ignore=int((mask == IGNORE).sum()),
            image=f"images/{file}",
            mask=f"masks/{file}" if self.source.annotations else "",
            split="",
            source_sha256=self.sha256,
            stain=self.stain,
        )
