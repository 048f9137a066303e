"""The patches of a folder: what ``index.csv`` says of each, and how to read them."""

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitosis.annotations import Label, read_annotations
from mitosis.errors import PatchIndexError
from mitosis.geometry import Box
from mitosis.masks import load_mask
from mitosis.splits import TRAIN, VAL, check_leakage
from mitosis.stain import USUAL, StainLevels

__all__ = ["BACKGROUND", "HARD_NEGATIVE", "MITOTIC", "Patch", "PatchIndex"]

MITOTIC, HARD_NEGATIVE, BACKGROUND = "mitotic", "hard negative", "background"


@dataclass(frozen=True, slots=True)
class Patch:
    """One row of the index.

    Attributes
    ----------
    x, y : float
        Top-left corner, level-0 px.
    size : int
        Side, px at `mpp`.
    slide_mpp : float
        µm/px of the slide at level 0.
    kind : str
        `mitotic` (holds a mitotic figure), `hard negative` (holds a look-alike only) or `background`.
    on_grid : bool
        Whether it is a tile of the grid that covers the slide's tissue once, not a patch centred on a mark.
    n_mitotic, n_non_mitotic : int
        Marks whose centre lies in the patch.
    px_mitotic, px_non_mitotic, px_ignore : int
        Pixels of the mask.
    image, mask : str
        Files, relative to the folder; `mask` is empty where the slide has no marks file.
    split : str
        `train` or `val`.
    stain : str
        Stain levels of the slide, as `StainLevels` writes them; empty if they were not measured.
    """

    patch_id: str
    slide_id: str
    case_id: str
    domain: str
    x: float
    y: float
    size: int
    mpp: float
    slide_mpp: float
    kind: str
    on_grid: bool
    n_mitotic: int
    n_non_mitotic: int
    px_mitotic: int
    px_non_mitotic: int
    px_ignore: int
    image: str
    mask: str
    split: str
    source_sha256: str
    stain: str = ""

    @property
    def box(self) -> Box:
        """Where it lies on the grid at `mpp`, px."""
        ratio = self.mpp / self.slide_mpp
        column, row = round(self.x / ratio), round(self.y / ratio)
        return Box(column, row, column + self.size, row + self.size)


_PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: lambda text: {"0": False, "1": True}[text],
}
_FIELDS = dataclasses.fields(Patch)


@dataclass(frozen=True)
class PatchIndex:
    """A folder of patches and the rows of its index."""

    folder: Path
    patches: tuple[Patch, ...]

    @classmethod
    def read(cls, folder: Path) -> "PatchIndex":
        """Read ``folder/index.csv``.

        Raises
        ------
        PatchIndexError
            There is none, it is damaged, or it lists no patch.
        """
        path = folder / "index.csv"
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream, strict=True))
        except FileNotFoundError as error:
            raise PatchIndexError(
                f"{path}: no such file. Cut patches first: mitosis extract ... --out {folder}"
            ) from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise PatchIndexError(f"{path}: not readable ({error}). Cut the patches anew.") from error
        if not rows:
            raise PatchIndexError(f"{path}: lists no patch. Cut the patches anew.")
        return cls(folder, tuple(_parse(path, number, row) for number, row in enumerate(rows, 2)))

    @classmethod
    def join(cls, indexes: "Sequence[PatchIndex]") -> "PatchIndex":
        """Several folders, at least one, as one index: that of the first folder, with the rows of all.

        A case is on that side of the split on which the first folder that has it put it.

        Raises
        ------
        PatchIndexError
            The patches differ in size or µm/px, or two have the same patch_id.
        """
        first, rows, splits = indexes[0], list[Patch](), dict[str, str]()
        for number, index in enumerate(indexes):
            for before in indexes[:number]:
                _check_fit(before, index)
            # Resolved, because ".." behind a link leads elsewhere than the name says.
            prefix = os.path.relpath(index.folder.resolve(), first.folder.resolve())
            rows += [_moved(patch, prefix, splits.get(patch.case_id, patch.split)) for patch in index.patches]
            splits = {patch.case_id: patch.split for patch in index.patches} | splits
        return cls(first.folder, tuple(rows))

    def to_csv(self) -> str:
        """The text of ``index.csv``."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(field.name for field in _FIELDS)
        for patch in self.patches:
            writer.writerow(_text(getattr(patch, field.name)) for field in _FIELDS)
        return stream.getvalue()

    def where(self, keep: Callable[[Patch], bool]) -> "PatchIndex":
        """The patches for which `keep` holds."""
        return PatchIndex(self.folder, tuple(patch for patch in self.patches if keep(patch)))

    def with_val_cases(self, cases: Sequence[str]) -> "PatchIndex":
        """The same patches, with these cases and no others for validation.

        Raises
        ------
        PatchIndexError
            A case has no patch here.
        """
        self.check_cases(cases)
        return PatchIndex(
            self.folder,
            tuple(dataclasses.replace(patch, split=VAL if patch.case_id in cases else TRAIN) for patch in self.patches),
        )

    def check_cases(self, cases: Sequence[str]) -> Sequence[str]:
        """Give `cases` back if each has a patch here, else raise PatchIndexError."""
        unknown = sorted(set(cases) - set(self.cases))
        if unknown:
            raise PatchIndexError(
                f"{self.folder}: no patches of case {', '.join(unknown)}. Cases here: {', '.join(self.cases)}."
            )
        return cases

    @property
    def cases(self) -> list[str]:
        """Its cases, sorted."""
        return sorted({patch.case_id for patch in self.patches})

    def n_pixels(self, classes: int) -> list[int]:
        """Pixels of each class over all masks; with 2 classes look-alikes are background."""
        total: Counter[str] = Counter()
        for patch in self.patches:
            total["all"] += patch.size**2 - patch.px_ignore
            total["mitotic"] += patch.px_mitotic
            total["non-mitotic"] += patch.px_non_mitotic
        background = total["all"] - total["mitotic"]
        if classes == 2:
            return [background, total["mitotic"]]
        return [background - total["non-mitotic"], total["mitotic"], total["non-mitotic"]]

    def check_splits(self) -> None:
        """Refuse a case or an image on both sides (LeakageError)."""
        check_leakage((patch.split, patch.case_id, patch.source_sha256) for patch in self.patches)

    def read_image(self, patch: Patch) -> NDArray[np.uint8]:
        """The patch, uint8 [size, size, 3]."""
        path = self.folder / patch.image
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise PatchIndexError(f"{path}: not readable ({error}). Cut the patches anew.") from error
        if pixels.shape != (patch.size, patch.size, 3):
            raise PatchIndexError(f"{path}: is {pixels.shape[1]}x{pixels.shape[0]} px, the index says {patch.size}.")
        return pixels

    def stain(self, patch: Patch) -> StainLevels:
        """Stain levels of the slide that a patch comes from; `USUAL` if they were not measured."""
        return _parse_stain(patch.stain) if patch.stain else USUAL

    def read_mask(self, patch: Patch) -> NDArray[np.uint8]:
        """Its mask, uint8 [size, size]: 0 background, 1 mitotic figure, 2 non-mitotic figure, 255 ignore."""
        return load_mask(self.folder / patch.mask, (patch.size, patch.size))

    def figures(self, slide_id: str) -> NDArray[np.float64]:
        """Centres of the mitotic figures of a slide, level-0 px [N, 2]."""
        # images/SLIDE/*.png; of a joined index, behind the way to the folder that has the slide
        image = next((patch.image for patch in self.patches if patch.slide_id == slide_id), f"images/{slide_id}/none")
        folder = self.folder / Path(image).parents[2]
        marks = read_annotations(folder / "marks" / f"{slide_id}.csv", slide_id, format="points")
        points = [(mark.x, mark.y) for mark in marks.annotations if mark.label is Label.MITOTIC_FIGURE]
        return np.array(points, dtype=np.float64).reshape(-1, 2)


def _check_fit(before: PatchIndex, index: PatchIndex) -> None:
    """Refuse to join two folders whose patches differ in kind, or of which some are the same."""
    kinds = {(patch.size, patch.mpp): None for patch in (*before.patches, *index.patches)}
    if len(kinds) > 1:
        found = " and ".join(f"{size} px at {mpp:g} µm/px" for size, mpp in kinds)
        raise PatchIndexError(
            f"{before.folder} and {index.folder}: patches of {found} do not go together. Cut all with the same "
            "settings."
        )
    twice = {patch.patch_id for patch in before.patches} & {patch.patch_id for patch in index.patches}
    if twice:
        raise PatchIndexError(
            f"{before.folder} and {index.folder}: both hold the patch {min(twice)} ({len(twice)} in all). "
            "Name each folder once."
        )


def _moved(patch: Patch, prefix: str, split: str) -> Patch:
    """The row of a patch as seen from another folder."""
    image, mask = (Path(prefix, file).as_posix() if file else "" for file in (patch.image, patch.mask))
    return dataclasses.replace(patch, image=image, mask=mask, split=split)


@cache
def _parse_stain(text: str) -> StainLevels:
    return StainLevels.parse(text)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _parse(path: Path, line: int, row: dict[str, str]) -> Patch:
    try:
        return Patch(**{field.name: _PARSERS[field.type](row[field.name]) for field in _FIELDS})
    except (KeyError, TypeError, ValueError) as error:
        raise PatchIndexError(f"{path}, line {line}: not as written by mitosis extract ({error}). Cut anew.") from error
