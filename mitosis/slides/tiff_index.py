"""What a TIFF file says about itself: its directories checked, its pyramid, its pixel size and its origin.

Everything here is small beside the pixels, whatever the file claims: a directory is judged before tifffile reads it.
"""

import html
import math
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mitosis.errors import SlideError
from mitosis.slides import MPP_RANGE, UnsupportedSlideError

__all__ = ["check_directories", "downsample", "measured_mpp", "properties", "pyramid_pages"]

MAX_PAGES, MAX_TAGS, MAX_SEGMENTS = 1000, 4096, 4_000_000
SUB_DIRECTORIES = 330
SEGMENT_TAGS = (273, 279, 324, 325)
NDPI_MAGNIFICATION = 65421
ELSEWHERE = {"is_philips": "Philips", "is_bif": "Ventana", "is_scn": "Leica SCN"}
UM_PER_UNIT = {2: 25400.0, 3: 10000.0}  # of TIFF's ResolutionUnit: inch, centimetre
UM_PER_OME_UNIT = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}  # both Unicode spellings of micro


def check_directories(path: Path, file: int) -> int:
    """Walk the chain of directories of an open file and count its pages.

    Raises
    ------
    SlideError
        The chain leaves the file, runs in a circle or claims more than any slide has.
    """
    layout = _Layout(path, file)
    seen: set[int] = set()
    offset = layout.first
    while offset:
        if offset in seen or len(seen) >= MAX_PAGES:
            raise layout.damaged("its directories run in a circle" if offset in seen else "it has too many pages")
        seen.add(offset)
        offset, subs = layout.directory(offset)
        for sub in subs:
            layout.directory(sub)
    if not seen:
        raise layout.damaged("it holds no image")
    return len(seen)


class _Layout:
    """Byte order and field widths of classic TIFF, BigTIFF and NDPI (classic with 64-bit links)."""

    def __init__(self, path: Path, file: int) -> None:
        self.path, self.file, self.size = path, file, os.fstat(file).st_size
        head = self.read(0, 16)
        self.order = "<" if head[:2] == b"II" else ">"
        self.big = head[2:4] in (b"+\0", b"\0+")
        ndpi = path.suffix.lower() == ".ndpi" and not self.big
        self.link = "Q" if self.big or ndpi else "I"
        self.count, self.entry = ("Q", "HHQ8s") if self.big else ("H", "HHI4s")
        (self.first,) = struct.unpack_from(self.order + self.link, head, 8 if self.big else 4)

    def damaged(self, reason: str) -> SlideError:
        return SlideError(f"{self.path}: damaged TIFF file, {reason}. Copy it again from its source.")

    def read(self, offset: int, n: int) -> bytes:
        data = os.pread(self.file, n, offset) if offset + n <= self.size else b""
        if len(data) < n:
            raise self.damaged(f"it ends after {self.size} bytes, in the middle of its index")
        return data

    def directory(self, offset: int) -> tuple[int, tuple[int, ...]]:
        """Offset of the next directory, and of those that hang on this one."""
        width, entry = struct.calcsize("<" + self.count), struct.calcsize("<" + self.entry)
        (n,) = struct.unpack(self.order + self.count, self.read(offset, width))
        if n > MAX_TAGS:
            raise self.damaged("a directory claims more fields than there can be")
        link = struct.calcsize("<" + self.link)
        data = self.read(offset + width, n * entry + link)
        subs: tuple[int, ...] = ()
        for tag, kind, count, value in struct.iter_unpack(self.order + self.entry, data[: n * entry]):
            if tag in SEGMENT_TAGS and count > MAX_SEGMENTS:
                raise self.damaged(f"it claims {count} tiles")
            if tag == SUB_DIRECTORIES:
                subs = self._links(kind, count, value)
        return struct.unpack(self.order + self.link, data[n * entry :])[0], subs

    def _links(self, kind: int, count: int, value: bytes) -> tuple[int, ...]:
        if count > MAX_PAGES:
            raise self.damaged("it has too many pages")
        letter = "Q" if kind in (16, 18) else "I"
        n = count * struct.calcsize("<" + letter)
        if n > len(value):
            value = self.read(struct.unpack(self.order + ("Q" if self.big else "I"), value)[0], n)
        return struct.unpack(f"{self.order}{count}{letter}", value[:n])


def pyramid_pages(path: Path, file: Any, n_pages: int) -> list[Any]:
    """Pages of an open tifffile that show the slide, finest first: the largest image of the file, and its levels.

    Raises
    ------
    UnsupportedSlideError
        Pages of this kind of file do not simply lie on one plane.
    SlideError
        There are several images of the largest size, none of which is the slide.
    """
    pages = [file.pages[i] for i in range(n_pages)]
    own = pages[0].is_svs or NDPI_MAGNIFICATION in pages[0].tags
    base = pages[0] if own else max(pages, key=lambda page: page.imagewidth * page.imagelength)
    for flag, name in ELSEWHERE.items():
        if getattr(file, flag):
            raise UnsupportedSlideError(f"{path}: a {name} file; only OpenSlide places its tiles.")
    if base.software.startswith("MedScan"):
        raise UnsupportedSlideError(f"{path}: a Trestle file; only OpenSlide places its tiles.")
    alike = sum(page.shape == base.shape for page in pages)
    if alike > 1 and base.samplesperpixel == 1:
        raise SlideError(f"{path}: channels or planes on separate pages. Export it as an RGB image.")
    if alike > 1 and not own:
        raise SlideError(f"{path}: holds {alike} images of one size, planes or fields. Save each as a file of its own.")
    others = list(base.pages) if base.subifds else [page for page in pages if page is not base]
    levels = [base]
    for page in sorted(others, key=lambda page: -page.imagewidth):
        if _is_level(page, base) and page.imagewidth < levels[-1].imagewidth:
            levels.append(page)
    return levels


def _is_level(page: Any, base: Any) -> bool:
    if NDPI_MAGNIFICATION in base.tags:  # -1 marks the macro image, -2 the map; levels may be striped
        return bool(page.tags.valueof(NDPI_MAGNIFICATION, 0) > 0)
    # an SVS keeps its label, macro and thumbnail in strips beside tiled levels
    alike = page.is_tiled == base.is_tiled and page.samplesperpixel == base.samplesperpixel
    flagged = page.is_tiled or page.is_reduced
    if not (alike and flagged and page.imagewidth and page.imagelength):
        return False
    across, down = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
    return bool(abs(across - down) <= across / page.imagewidth + down / page.imagelength)


def downsample(full: tuple[int, int], reduced: tuple[int, int]) -> float:
    """Level-0 pixels a pixel of a level of size `reduced` spans.

    Sizes are rounded to whole pixels when a pyramid is made, so their quotient is a little off (2.0005); over a wide
    slide that adds up to tens of pixels. A whole number is taken where the sizes agree with it.
    """
    factor = (full[0] / reduced[0] + full[1] / reduced[1]) / 2
    for n in (2 ** round(math.log2(factor)), round(factor)):
        if all(abs(part * n - whole) < n for whole, part in zip(full, reduced, strict=True)):
            return float(n)
    return factor


def measured_mpp(page: Any, ome: str) -> tuple[float, float] | None:
    """(x, y) µm/px that the file gives, the first plausible source; an implausible one only where there is no other.

    `ome` is the XML of an OME-TIFF, or empty.
    """
    found = [pair for pair in (_aperio_mpp(page), _ome_mpp(page, ome), _resolution_mpp(page)) if pair]
    plausible = [pair for pair in found if all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in pair)]
    return next(iter(plausible or found), None)


def _aperio_mpp(page: Any) -> tuple[float, float] | None:
    try:
        mpp = float(_aperio_fields(page)["MPP"].replace(",", "."))
    except (KeyError, ValueError):
        return None
    return mpp, mpp


def _ome_mpp(page: Any, ome: str) -> tuple[float, float] | None:
    """Of the image that is as large as the page: label and macro have pixel sizes of their own."""
    shape = [str(page.imagewidth), str(page.imagelength)]
    images = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", ome)
    if len(images) != 1:
        images = [image for image in images if [_attribute(image, f"Size{axis}") for axis in "XY"] == shape]
    image = next(iter(images), "")
    sizes = []
    for axis in "XY":
        size = _attribute(image, f"PhysicalSize{axis}")
        unit = UM_PER_OME_UNIT.get(_attribute(image, f"PhysicalSize{axis}Unit") or "µm")
        try:
            sizes.append(float(size or "") * (unit or math.nan))
        except ValueError:
            return None
    return sizes[0], sizes[1]


def _attribute(xml: str, name: str) -> str | None:
    """First attribute of that name; by a regular expression, as no entity can bomb it."""
    match = re.search(rf"\b{name}\s*=\s*[\"']([^\"']*)[\"']", xml)
    return html.unescape(match[1]) if match else None


def _resolution_mpp(page: Any) -> tuple[float, float] | None:
    unit = UM_PER_UNIT.get(page.tags.valueof(296, 2))
    try:
        values = [unit * d / n for n, d in (page.tags.valueof(282), page.tags.valueof(283))]
    except (TypeError, ValueError, ZeroDivisionError):  # no unit, no tag, not a fraction
        return None
    return values[0], values[1]


def _aperio_fields(page: Any) -> dict[str, str]:
    if not page.is_svs:
        return {}
    pairs = (field.partition("=") for field in page.description.split("|")[1:])
    return {key.strip(): value.strip() for key, _, value in pairs}


def properties(pages: Sequence[Any], file: Any) -> dict[str, str]:
    """What `mitosis info` shows of an open tifffile whose levels are `pages`; only what the file says."""
    page, ome = pages[0], file.ome_metadata or ""
    aperio = _aperio_fields(page)
    kind, vendor = "TIFF", page.tags.valueof(271)
    if page.is_svs:
        kind, vendor = "Aperio SVS", "Aperio"
    elif ome:
        kind = "OME-TIFF"
    elif NDPI_MAGNIFICATION in page.tags:
        kind = "Hamamatsu NDPI"
    tile = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    levels = {level.offset for level in pages}
    others = [other for other in file.pages if other.offset not in levels]
    found = {
        "format": kind,
        "vendor": vendor,
        "compression": getattr(page.compression, "name", page.compression),
        "tile size": f"{tile[0]} x {tile[1]}",
        "objective power": aperio.get("AppMag")
        or _attribute(ome, "NominalMagnification")
        or page.tags.valueof(NDPI_MAGNIFICATION),
        "scanner": aperio.get("ScanScope ID") or page.tags.valueof(272),
        "software": page.software,
        "other images": ", ".join(f"{other.imagewidth} x {other.imagelength}" for other in others),
    }
    return {key: str(value).strip() for key, value in found.items() if value}
