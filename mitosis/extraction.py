"""Slides and marks to a folder of patches that a person can open and a network can learn from.

The folder holds ``index.csv`` (a row a patch), ``images/SLIDE/*.png``, ``masks/SLIDE/*.png``, ``marks/SLIDE.csv``
(the marks as points), ``settings.yaml`` and ``slides/SLIDE.json`` (what was done: a second run need not do it again).
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitosis.annotations import Annotation, Label, find_annotations, load_annotations, write_points
from mitosis.cohort import SlideSource
from mitosis.config import Config, ExtractConfig, load_config, save_config
from mitosis.errors import AnnotationError, MitosisError, PatchIndexError
from mitosis.files import atomic_write, dump_json, make_folder, sha256, write_text
from mitosis.geometry import Box, grid_dimensions, tile_grid
from mitosis.masks import IGNORE, MITOTIC_FIGURE, NON_MITOTIC_FIGURE, draw_mask, save_mask
from mitosis.patches import BACKGROUND, HARD_NEGATIVE, MITOTIC, Patch, PatchIndex
from mitosis.slides import Slide, open_slide, read_at_mpp
from mitosis.splits import assign_splits
from mitosis.tissue import TissueMask, find_tissue

__all__ = ["SlideRecord", "extract_patches"]

# A nucleus that a patch cuts must get the mask it would get whole: masks are drawn with this much more, µm.
_MASK_CONTEXT_UM = 12.0


@dataclass(frozen=True)
class SlideRecord:
    """What came of one slide.

    Attributes
    ----------
    patches : tuple of Patch
    n_outside : int
        Marks that lie outside the slide and were left out.
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
        digest = sha256(source.path)
        marks = find_annotations(source.annotations, source.slide_id) if source.annotations else ()
        key = {
            "source_sha256": digest,
            "case_id": source.case_id,
            "domain": source.domain,
            "mpp": slide.mpp,
            "marks_sha256": [_digest(path) for path in marks],
        }
        journal = out / "slides" / f"{source.slide_id}.json"
        record = _earlier(journal, key, out)
        if record:
            return record
        return _cut(slide, source, digest, out, config, journal, key)


def _digest(marks: Path) -> str:
    try:
        return sha256(marks)
    except OSError as error:
        raise AnnotationError(f"{marks}: cannot be read ({error.strerror}). Check the path.") from error


def _earlier(journal: Path, key: dict[str, Any], out: Path) -> SlideRecord | None:
    """The record of an earlier run, if it was made of the same files and its patches are all there."""
    try:
        content = json.loads(journal.read_text(encoding="utf-8"))
        patches = tuple(Patch(**row) for row in content["patches"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    complete = all(
        (out / patch.image).is_file() and (not patch.mask or (out / patch.mask).is_file()) for patch in patches
    )
    if content.get("key") != key or not complete:
        return None
    return SlideRecord(journal.stem, patches, content["n_outside"], content["n_unreadable"], reused=True)


def _cut(
    slide: Slide,
    source: SlideSource,
    digest: str,
    out: Path,
    config: ExtractConfig,
    journal: Path,
    key: dict[str, Any],
) -> SlideRecord:
    marks: tuple[Annotation, ...] = ()
    n_outside = 0
    if source.annotations:
        loaded = load_annotations(source.annotations, source.slide_id, slide.dimensions, slide.mpp)
        marks, n_outside = loaded.annotations, loaded.n_outside
    # What an earlier run noted must not vouch for what is written from here on.
    for note in (journal, out / "index.csv"):
        note.unlink(missing_ok=True)
    images, masks = (make_folder(out / part / source.slide_id) for part in ("images", "masks"))
    for folder in (images, masks):
        shutil.rmtree(folder)
        folder.mkdir()
    points = make_folder(out / "marks") / f"{source.slide_id}.csv"
    write_points(points, marks)
    patches, n_unreadable = [], 0
    for name, box, on_grid in _places(slide, marks, find_tissue(slide), config, source.slide_id):
        patch = _cut_patch(slide, source, digest, out, name, box, on_grid, marks, config)
        if patch:
            patches.append(patch)
        else:
            n_unreadable += 1
    make_folder(journal.parent)
    content = {
        "key": key,
        "n_outside": n_outside,
        "n_unreadable": n_unreadable,
        "patches": [asdict(p) for p in patches],
    }
    write_text(journal, dump_json(content))
    return SlideRecord(source.slide_id, tuple(patches), n_outside, n_unreadable)


def _places(
    slide: Slide, marks: Sequence[Annotation], tissue: TissueMask, config: ExtractConfig, slide_id: str
) -> Iterator[tuple[str, Box, bool]]:
    """(name, box on the grid at config.mpp, on_grid) of each patch."""
    ratio = config.mpp / slide.mpp
    centres = np.array([(mark.x / ratio, mark.y / ratio) for mark in marks]).reshape(-1, 2)
    for tile in tile_grid(grid_dimensions(slide.dimensions, slide.mpp, config.mpp), config.mpp, config.size):
        box = tile.window
        level0 = tuple(edge * ratio for edge in box)
        if _inside(box, centres).any() or tissue.covers(level0) >= config.min_tissue:
            yield f"tile_x{box.x0:06d}_y{box.y0:06d}", box, True
    rng = np.random.default_rng([config.seed, *slide_id.encode()])
    for number, (x, y) in enumerate(centres):
        dx, dy = rng.integers(-config.jitter, config.jitter, 2, endpoint=True)
        x0, y0 = int(x + dx) - config.size // 2, int(y + dy) - config.size // 2
        label = "figure" if marks[number].label is Label.MITOTIC_FIGURE else "lookalike"
        yield f"{label}_{number:05d}", Box(x0, y0, x0 + config.size, y0 + config.size), False


def _inside(box: Box, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = np.all((points >= box[:2]) & (points < box[2:]), axis=1)
    return inside


def _cut_patch(
    slide: Slide,
    source: SlideSource,
    digest: str,
    out: Path,
    name: str,
    box: Box,
    on_grid: bool,
    marks: Sequence[Annotation],
    config: ExtractConfig,
) -> Patch | None:
    """Write image and mask; None where the slide file is damaged."""
    ratio = config.mpp / slide.mpp
    margin = round(_MASK_CONTEXT_UM / config.mpp)
    pixels = read_at_mpp(slide, box.grown(margin), config.mpp)
    if _touches_bad_tile(slide, box, ratio):
        return None
    mask = draw_mask(marks, box.grown(margin), config.mpp, slide.mpp, pixels)[margin:-margin, margin:-margin]
    image_name = f"images/{source.slide_id}/{name}.png"
    mask_name = f"masks/{source.slide_id}/{name}.png" if source.annotations else ""
    with atomic_write(out / image_name) as stream:
        Image.fromarray(np.ascontiguousarray(pixels[margin:-margin, margin:-margin])).save(
            stream, "PNG", compress_level=1
        )
    if mask_name:
        save_mask(out / mask_name, mask)
    here = [mark for mark in marks if _inside(box, np.array([[mark.x / ratio, mark.y / ratio]]))[0]]
    n_mitotic = sum(mark.label is Label.MITOTIC_FIGURE for mark in here)
    kind = MITOTIC if n_mitotic else HARD_NEGATIVE if here else BACKGROUND
    return Patch(
        patch_id=f"{source.slide_id}/{name}",
        slide_id=source.slide_id,
        case_id=source.case_id,
        domain=source.domain,
        x=box.x0 * ratio,
        y=box.y0 * ratio,
        size=config.size,
        mpp=config.mpp,
        slide_mpp=slide.mpp,
        kind=kind,
        on_grid=on_grid,
        n_mitotic=n_mitotic,
        n_non_mitotic=len(here) - n_mitotic,
        px_mitotic=int((mask == MITOTIC_FIGURE).sum()),
        px_non_mitotic=int((mask == NON_MITOTIC_FIGURE).sum()),
        px_ignore=int((mask == IGNORE).sum()),
        image=image_name,
        mask=mask_name,
        split="",
        source_sha256=digest,
    )


def _touches_bad_tile(slide: Slide, box: Box, ratio: float) -> bool:
    x0, y0, x1, y1 = (edge * ratio for edge in box)
    return any(b.box.x0 < x1 and b.box.x1 > x0 and b.box.y0 < y1 and b.box.y1 > y0 for b in slide.bad_tiles)
