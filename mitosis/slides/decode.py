"""Encoded tiles of a TIFF page to RGB.

8-bit JPEG goes through simplejpeg, whose strict mode notices damage that other decoders paint grey; everything else
goes through tifffile's decoder of the page (imagecodecs).

JPEG tiles are also decoded at a half, a quarter or an eighth of their size: a block of 8 x 8 px is transformed back at
4 x 4, 2 x 2 or 1 x 1 from its lower frequencies. Nothing outside the tile takes part, and every bit of it is read as
ever, so the same damage is noticed.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

__all__ = ["Decoder", "has_plain_rows", "is_photograph", "on_white", "refusal", "tile_decoder", "to_8_bit"]

Read = Callable[[int], bytes]
"""Bytes of a page's segment (tile or strip)."""
Pixels = NDArray[np.uint8]

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
SAMPLES = {MIN_IS_WHITE: (1,), MIN_IS_BLACK: (1, 2), RGB: (3, 4), PALETTE: (1,), YCBCR: (3,)}
NONE, JPEG, APERIO_JP2000_YCBCR = 1, 7, 33003
JPEG_KINDS = (6, 7, 34892, 33007)
ASSOCIATED_ALPHA = 1
# By subsampling of colour. Where colour is halved along one axis alone, the decoder leaves it at half the resolution of
# the result: on H&E 1 level off in the mean at a half (0.9 for 4:2:0), but 2.4 at a quarter and 3.5 at an eighth.
REDUCTIONS = {"444": (2, 4, 8), "420": (2, 4, 8), "Gray": (2, 4, 8), "422": (2,), "440": (2,)}
# Start of a frame of lossless JPEG, Huffman or arithmetic: libjpeg-turbo writes it in full, whatever scale it was asked
# for, beyond the end of a smaller buffer. In other streams these bytes hardly ever meet.
LOSSLESS = re.compile(b"\xff[\xc3\xcb]")  # five times as fast as two searches for two bytes
SOI, EOI = b"\xff\xd8", b"\xff\xd9"
LAST_MARKERS = {bytes([0xFF, code]) for code in range(0xD0, 0xDA)}  # restart and end of image
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # APP14; its last byte names the colour transform


@dataclass(frozen=True, slots=True)
class Decoder:
    """How the tiles or strips of a page are decoded.

    Attributes
    ----------
    full : (index) -> uint8 [h, w, 3]
        RGB of a tile; raises some error where the data is damaged.
    reduced : (index, factor) -> uint8 [h / factor, w / factor, 3] or None
        The same, decoded at a fraction of its size; None where that tile has to be decoded in full.
    reductions : tuple[int, ...]
        Factors that `reduced` takes, from the smallest.
    """

    full: Callable[[int], Pixels]
    reduced: Callable[[int, int], Pixels | None] = lambda _, __: None
    reductions: tuple[int, ...] = ()


def is_photograph(page: Any) -> bool:
    """Whether samples are plain numbers of up to 16 bits, not measurements (floats, signed numbers)."""
    known = page.dtype is not None and page.dtype.kind in "bu"
    return known and isinstance(page.bitspersample, int) and page.bitspersample <= 16 and page.imagedepth == 1


def refusal(page: Any) -> str | None:
    """Why the colours of a tifffile page cannot become RGB here, or None where they can."""
    photometric, samples = int(page.photometric), page.samplesperpixel
    if samples not in SAMPLES.get(photometric, ()):
        return f"colours of the kind {getattr(page.photometric, 'name', photometric)} with {samples} samples a pixel"
    if page.compression in JPEG_KINDS and (samples in (2, 4) or (photometric == YCBCR and page.planarconfig != 1)):
        return "JPEG tiles with transparency or separate planes"
    return None


def has_plain_rows(page: Any) -> bool:
    """Whether strips are nothing but rows of pixels, so that any run of rows can be read alone."""
    plain = page.compression == NONE and page.predictor == 1 and page.fillorder == 1 and page.planarconfig == 1
    return plain and not page.is_tiled and page.bitspersample in (8, 16)


def tile_decoder(page: Any, read: Read, probes: Iterable[int]) -> Decoder:
    """Choose how the tiles or strips of a page are decoded; `probes` are some that hold data."""
    fits = page.compression == JPEG and page.bitspersample == 8 and page.planarconfig == 1
    if fits and (int(page.photometric), page.samplesperpixel) in {(MIN_IS_BLACK, 1), (RGB, 3), (YCBCR, 3)}:
        join = _jpeg_stream(page)
        for index in probes:
            with suppress(ValueError):  # no JPEG, or one that is cut off
                return _jpeg_decoder(page, join, read, subsampling=_frame(join(read(index)))[2])
    return Decoder(_row_decoder(page, read) if has_plain_rows(page) else _page_decoder(page, read))


def _jpeg_stream(page: Any) -> Callable[[bytes], bytes]:
    """Make each tile a complete JPEG stream that says its own colour space, as TIFF's tags have it."""
    if page.jpegheader is not None:  # NDPI: the tile is what stands between two restart markers of one large JPEG
        header = page.jpegheader
        return lambda raw: header + (raw[:-2] if raw[-2:] in LAST_MARKERS else raw) + EOI
    tables = (page.jpegtables or SOI + EOI)[:-2]
    head = tables + ADOBE + bytes([int(page.photometric) == YCBCR])

    def join(raw: bytes) -> bytes:
        if raw[:2] != SOI:
            raise ValueError("not a JPEG stream")
        return head + raw[2:]

    return join


def _jpeg_decoder(page: Any, join: Callable[[bytes], bytes], read: Read, subsampling: str) -> Decoder:
    shape = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    size = shape[0] * shape[1] * 3

    def full(index: int) -> Pixels:
        # the buffer also bounds what a forged header can ask for
        buffer = np.empty(size, np.uint8)
        tile: Pixels = simplejpeg.decode_jpeg(join(read(index)), "RGB", strict=True, buffer=buffer)
        return tile

    def reduced(index: int, factor: int) -> Pixels | None:
        stream = join(read(index))
        if _frame(stream) != (*shape, subsampling) or LOSSLESS.search(stream):
            return None
        least = {"min_height": shape[0] // factor, "min_width": shape[1] // factor, "min_factor": factor}
        buffer = np.empty(size // factor**2, np.uint8)
        tile: Pixels = simplejpeg.decode_jpeg(stream, "RGB", strict=True, buffer=buffer, **least)
        return tile

    whole_blocks = shape[0] % 8 == 0 == shape[1] % 8
    return Decoder(full, reduced, REDUCTIONS.get(subsampling, ()) if whole_blocks else ())


def _frame(stream: bytes) -> tuple[int, int, str]:
    """Height, width and subsampling of colour of a JPEG stream; ValueError where it is none."""
    try:
        height, width, _, subsampling = simplejpeg.decode_jpeg_header(stream)
    except KeyError:  # simplejpeg has no name for the subsampling
        return 0, 0, "unknown"
    return height, width, subsampling


def _row_decoder(page: Any, read: Read) -> Callable[[int], Pixels]:
    dtype, to_rgb = page.dtype.newbyteorder(page.parent.byteorder), _to_rgb(page)
    shape = (-1, page.imagewidth, page.samplesperpixel)
    return lambda index: to_rgb(np.frombuffer(read(index), dtype).reshape(shape))


def _page_decoder(page: Any, read: Read) -> Callable[[int], Pixels]:
    decode_segment, to_rgb = page.decode, _to_rgb(page)
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    n_planes = page.samplesperpixel if page.planarconfig == 2 else 1
    n_tiles = len(page.dataoffsets) // n_planes

    def decode(index: int) -> NDArray[np.uint8]:
        segments = [index + plane * n_tiles for plane in range(n_planes)]
        planes = [decode_segment(read(i), i, **tables)[0][0] for i in segments]
        return to_rgb(planes[0] if n_planes == 1 else np.concatenate(planes, axis=-1))

    return decode


def _to_rgb(page: Any) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """Function from samples [h, w, s] as tifffile decodes them to RGB."""
    photometric, bits, samples = int(page.photometric), page.bitspersample, page.samplesperpixel
    if photometric == PALETTE:
        colours = np.asarray(page.colormap).T
        # some programs write 8-bit values into these 16-bit fields
        table = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
        return lambda tile: table[tile[..., 0]]
    if photometric == YCBCR and page.compression not in JPEG_KINDS:
        return lambda tile: _from_ycbcr(to_8_bit(tile, bits))
    alpha = page.extrasamples[0] if samples in (2, 4) and page.extrasamples else 0

    def convert(tile: NDArray[Any]) -> NDArray[np.uint8]:
        tile = to_8_bit(tile, bits)
        if photometric == MIN_IS_WHITE:
            tile = ~tile
        colour = tile if samples == 3 else tile[..., :3] if samples == 4 else np.repeat(tile[..., :1], 3, axis=2)
        return on_white(colour, tile[..., -1:], premultiplied=alpha == ASSOCIATED_ALPHA) if alpha else colour

    return convert


def to_8_bit(samples: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Scale unsigned samples of `bits` bits so that the largest becomes 255."""
    if bits == 8:
        return samples.astype(np.uint8, copy=False)
    most = 2**bits - 1
    scaled: NDArray[np.uint8] = ((samples.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)
    return scaled


def on_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8], premultiplied: bool = False) -> NDArray[np.uint8]:
    """Lay uint8 [h, w, 3] with opacity `alpha` uint8 [h, w, 1] on a white ground."""
    if (alpha == 255).all():
        return np.ascontiguousarray(colour)
    white = 255 - alpha.astype(np.uint32)
    light = colour if premultiplied else (colour * alpha.astype(np.uint32) + 127) // 255
    laid: NDArray[np.uint8] = np.minimum(light + white, 255).astype(np.uint8)
    return laid


def _from_ycbcr(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Full-range YCbCr of ITU-R BT.601, as JPEG File Interchange Format 1.02 has it."""
    y, cb, cr = np.moveaxis(tile.astype(np.float32) - np.array([0, 128, 128], np.float32), -1, 0)
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    rounded: NDArray[np.uint8] = np.rint(rgb).clip(0, 255).astype(np.uint8)
    return rounded
