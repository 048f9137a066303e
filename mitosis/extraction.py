"""Slides and marks to a folder of patches that a person can open and a network can learn from.

The folder holds ``index.csv`` (a row a patch), ``images/SLIDE/*.png``, ``masks/SLIDE/*.png``, ``marks/SLIDE.csv``
(the marks as points), ``settings.yaml`` and ``slides/SLIDE.json`` (what was done: a second run need not do it again).
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mitosis.annotations import AnnotationSet, find_annotations, load_annotations
from mitosis.cohort import SlideSource
from mitosis.config import Config, ExtractConfig, load_config, save_config
from mitosis.errors import AnnotationError, MitosisError, OutputError, PatchIndexError
from mitosis.files import dump_json, make_folder, sha256, sole_writer, write_text
from mitosis.patch_cutter import PatchCutter
from mitosis.patches import Patch, PatchIndex
from mitosis.regions import region_at
from mitosis.slides import Slide, open_slide
from mitosis.splits import assign_splits

__all__ = ["PatchCutter", "SlideRecord", "extract_patches"]


@dataclass(frozen=True)
class SlideRecord:
    """What came of one slide.

    Attributes
    ----------
    patches : tuple of Patch
    n_outside, n_ignored : int
        Marks left out because they lie outside the slide or its region of interest, or are of a class that is
        neither figure nor look-alike.
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
    `workers` processes do a slide each; where there are fewer slides than workers, the others help as threads.
    The index is written at the end, and only if no slide failed. Slides that an earlier run finished, from the same
    files with the same settings, are not done again.

    Raises
    ------
    PatchIndexError
        `out` holds patches that were cut with other settings.
    OutputError
        `out` cannot be written to, another command is writing there, or a worker died.
    """
    with sole_writer(out):
        _keep_settings(out, config)
        records = []
        for record in _run(sources, out, config, workers):
            records.append(record)
            yield record
        if not any(record.error for record in records):
            _write_index(out, records, config)


def _run(sources: Sequence[SlideSource], out: Path, config: ExtractConfig, workers: int) -> Iterator[SlideRecord]:
    n = min(workers, len(sources))
    threads = workers // max(1, n)
    if n <= 1:
        yield from (_extract_slide(source, out, config, threads) for source in sources)
        return
    try:
        with ProcessPoolExecutor(n, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(_extract_slide, source, out, config, threads) for source in sources]
            for future in as_completed(futures):
                yield future.result()
    except BrokenProcessPool as error:
        raise OutputError(
            f"{out}: a worker was ended from outside, perhaps for want of memory. Run again with fewer --workers; "
            "slides that are done stay done."
        ) from error


def _keep_settings(out: Path, config: ExtractConfig) -> None:
    """Write the settings beside the patches, or refuse if patches of other ones are there."""
    path = out / "settings.yaml"
    settings = Config(extract=config)
    if path.exists() and any((out / "slides").glob("*.json")):
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


def _extract_slide(source: SlideSource, out: Path, config: ExtractConfig, threads: int) -> SlideRecord:
    try:
        return _reuse_or_cut(source, out, config, threads)
    except MitosisError as error:
        return SlideRecord(source.slide_id, error=str(error))


def _reuse_or_cut(source: SlideSource, out: Path, config: ExtractConfig, threads: int) -> SlideRecord:
    with open_slide(source.path, source.mpp) as slide:
        marks = find_annotations(source.annotations, source.slide_id) if source.annotations else ()
        key = {
            "source_sha256": sha256(source.path),
            "case_id": source.case_id,
            "domain": source.domain,
            "mpp": slide.mpp,
            "marks_sha256": [_digest(path) for path in marks],
            **({"roi_sha256": _digest(source.region)} if source.region else {}),
        }
        return _earlier(out, source.slide_id, key) or _cut(slide, source, out, config, key, threads)


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


def _cut(
    slide: Slide, source: SlideSource, out: Path, config: ExtractConfig, key: dict[str, Any], threads: int
) -> SlideRecord:
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
    region = region_at(source.region)
    marks = region.holding(loaded.annotations) if region else loaded.annotations
    cutter = PatchCutter(slide, source, out, config, key["source_sha256"], marks, workers=threads)
    places = list(cutter.places(cutter.tissue))
    patches = cutter.cut(places)
    n_outside = loaded.n_outside + len(loaded.annotations) - len(marks)
    record = SlideRecord(source.slide_id, patches, n_outside, loaded.n_ignored, len(places) - len(patches))
    make_folder(journal.parent)
    write_text(journal, dump_json({"key": key, "record": asdict(record)}))
    return record
