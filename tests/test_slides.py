"""Slides: each test writes its own small files and compares with the array they were made of."""

import io
import itertools
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import mitosis.slides
from mitosis.errors import MppError, SlideError, SlideNotFoundError
from mitosis.geometry import Box, grid_dimensions
from mitosis.slides import (
    READERS,
    SLIDE_SUFFIXES,
    Slide,
    UnsupportedSlideError,
    is_slide,
    open_slide,
    read_at_mpp,
    resample,
    thumbnail,
    usable_mpp,
)
from mitosis.slides.openslide import OpenSlideSlide
from mitosis.slides.tiff import RECENT_BYTES, RECENT_REDUCED_BYTES, TiffSlide
from mitosis.slides.tiff_index import downsample

Pixels = NDArray[np.uint8]
APERIO = "Aperio Image Library v1\n300x200 (64x64) JPEG/RGB|AppMag = 40|ScanScope ID = S1|MPP = 0.2500"


def picture(width: int = 300, height: int = 200) -> Pixels:
    """Smooth colours with some noise, no symmetry."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([120 + 90 * np.sin(x / 17 + y / 31), 90 + y * 120 / height, 200 - x * 150 / width], axis=-1)
    noise = np.random.default_rng(1).integers(-12, 13, (height, width, 3))
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def write(path: Path, *images: Any, **options: Any) -> Path:
    """Write images as the levels of one TIFF file, later ones flagged as reduced."""
    options = {"photometric": "rgb", "tile": (64, 64), "metadata": None, **options}
    with tifffile.TiffWriter(path) as writer:
        for number, image in enumerate(images):
            writer.write(image, subfiletype=int(number > 0), **options)
    return path


def whole(slide: Slide, level: int = 0) -> Pixels:
    return slide.read_region((0, 0), level, slide.level_dimensions[level])


def reopened(slide: Slide) -> Slide:
    """What a worker process receives."""
    copy: Slide = ForkingPickler.loads(ForkingPickler.dumps(slide))
    return copy


def halved(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[: image.shape[0] // 2 * 2 : 2, : image.shape[1] // 2 * 2 : 2])


def damage(path: Path, index: int, page: int = 0, start: float = 0.0, stop: float = 1.0) -> None:
    """Overwrite the part from `start` to `stop` of a tile's bytes with zeros."""
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[page].dataoffsets[index], file.pages[page].databytecounts[index]
    data = bytearray(path.read_bytes())
    begin, end = offset + int(count * start), offset + int(count * stop)
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def ndpi(path: Path, image: Pixels, magnification: float = 20.0) -> None:
    """One page as Hamamatsu writes it: one JPEG with restart markers, classic TIFF with 64-bit links."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90, subsampling=0, restart_marker_blocks=4)
    jpeg = stream.getvalue()
    scan = jpeg.index(b"\xff\xda") + 2
    scan += struct.unpack(">H", jpeg[scan : scan + 2])[0]
    starts = [scan] + [i + 2 for i in range(scan, len(jpeg) - 1) if jpeg[i] == 0xFF and 0xD0 <= jpeg[i + 1] <= 0xD7]
    height, width = image.shape[:2]
    short, long, text, fraction, single = 3, 4, 2, 5, 11
    resolution = struct.pack("<II", 20_000, 1)  # px/cm: 0.5 µm
    tags: list[tuple[int, int, int, bytes]] = [
        (256, long, 1, struct.pack("<I", width)),
        (257, long, 1, struct.pack("<I", height)),
        (258, short, 3, struct.pack("<HHH", 8, 8, 8)),
        (259, short, 1, struct.pack("<H", 7)),
        (262, short, 1, struct.pack("<H", 6)),
        (271, text, 10, b"Hamamatsu\0"),
        (273, long, 1, b"JPEG"),
        (277, short, 1, struct.pack("<H", 3)),
        (278, long, 1, struct.pack("<I", height)),
        (279, long, 1, struct.pack("<I", len(jpeg))),
        (282, fraction, 1, resolution),
        (283, fraction, 1, resolution),
        (296, short, 1, struct.pack("<H", 3)),
        (65420, long, 1, struct.pack("<I", 1)),
        (65421, single, 1, struct.pack("<f", magnification)),
        (65426, long, len(starts), struct.pack(f"<{len(starts)}I", *starts)),
    ]
    begin = 12
    extra = begin + 2 + 12 * len(tags) + 8 + 4 * len(tags)
    entries, values = b"", b""
    for code, kind, count, value in tags:
        if value == b"JPEG":
            value = struct.pack("<I", extra + sum(len(v) for *_, v in tags if len(v) > 4))
        if len(value) > 4:
            entries += struct.pack("<HHII", code, kind, count, extra + len(values))
            values += value
        else:
            entries += struct.pack("<HHI4s", code, kind, count, value)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<Q", 0) + bytes(4 * len(tags))
    path.write_bytes(b"II*\0" + struct.pack("<Q", begin) + directory + values + jpeg)


# --- the door -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several kinds that show `picture()`."""
    folder, image = tmp_path_factory.mktemp("samples"), picture()
    write(folder / "a.svs", image, halved(image), description=APERIO)
    write(folder / "b.tif", image, tile=None, rowsperstrip=16)
    Image.fromarray(image).save(folder / "c.png")
    return sorted(folder.iterdir())


@pytest.fixture(params=sorted(READERS))
def opened(request: pytest.FixtureRequest, samples: list[Path]) -> Iterator[Slide]:
    """A slide opened by one reader; every reader opens at least one of the samples."""
    slides = []
    for path in samples:
        try:
            slide = READERS[request.param](path, 0.3)
        except UnsupportedSlideError:
            continue
        slides.extend([slide] if slide else [])
    assert slides, f"no sample for the reader {request.param}"
    yield slides[0]
    for slide in slides:
        slide.close()


def test_every_reader_gives_a_slide_with_the_pixels_of_the_file(opened: Slide) -> None:
    assert opened.dimensions == opened.level_dimensions[0] == (300, 200)
    assert opened.level_downsamples[0] == 1.0
    assert len(opened.level_dimensions) == len(opened.level_downsamples)
    assert opened.mpp == 0.3
    assert opened.bad_tiles == ()
    assert all(isinstance(text, str) for pair in opened.properties.items() for text in pair)
    pixels = whole(opened)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, picture())


@pytest.mark.parametrize("location", [(-40, -30), (250, 180), (-10, 60), (1000, 5), (-1000, -1000)])
def test_every_reader_is_white_outside(opened: Slide, location: tuple[int, int]) -> None:
    canvas = np.full((2400, 2400, 3), 255, np.uint8)
    canvas[1100:1300, 1100:1400] = picture()
    x, y = location[0] + 1100, location[1] + 1100
    np.testing.assert_array_equal(opened.read_region(location, 0, (90, 70)), canvas[y : y + 70, x : x + 90])


def test_every_reader_gives_pixels_of_the_callers_own(opened: Slide) -> None:
    for size in ((64, 64), (300, 200), (10, 10)):
        before = opened.read_region((0, 0), 0, size)
        before[...] = 7
        assert (opened.read_region((0, 0), 0, size) != 7).any()


def test_every_reader_gives_empty_regions_and_refuses_levels_that_are_not_there(opened: Slide) -> None:
    assert opened.read_region((3, 4), 0, (0, 5)).shape == (5, 0, 3)
    for level in (-1, len(opened.level_dimensions)):
        with pytest.raises(ValueError, match="level"):
            opened.read_region((0, 0), level, (1, 1))


def test_every_reader_survives_pickling(opened: Slide) -> None:
    with reopened(opened) as copy:
        assert type(copy) is type(opened)
        assert (copy.mpp, copy.dimensions, copy.path) == (opened.mpp, opened.dimensions, opened.path)
        np.testing.assert_array_equal(copy.read_region((5, 6), 0, (50, 40)), opened.read_region((5, 6), 0, (50, 40)))


def test_every_reader_reads_the_same_from_many_threads(opened: Slide) -> None:
    places = [(x, y) for x in range(-20, 300, 37) for y in range(-20, 200, 41)]
    serial = [opened.read_region(place, 0, (70, 70)) for place in places]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda place: opened.read_region(place, 0, (70, 70)), places * 3))
    for one, other in zip(serial * 3, parallel, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_closed_slide_says_so(samples: list[Path]) -> None:
    for reader in ("tiff", "openslide"):
        with READERS[reader](samples[0], None) as slide:  # type: ignore[union-attr]  # a.svs is for both
            pass
        with pytest.raises(SlideError, match="closed"):
            slide.read_region((0, 0), 0, (4, 4))


def test_open_slide_takes_the_first_reader_that_knows_the_file(samples: list[Path]) -> None:
    kinds = []
    for path in samples:
        with open_slide(str(path), 0.25) as slide:
            kinds.append(type(slide).__name__)
            np.testing.assert_array_equal(whole(slide), picture())
    assert kinds == ["TiffSlide", "TiffSlide", "ImageSlide"]


def test_open_slide_falls_back_on_openslide(tmp_path: Path) -> None:
    cmyk = np.zeros((128, 128, 4), np.uint8)
    path = write(tmp_path / "cmyk.tif", cmyk, photometric="separated")
    with open_slide(path, 0.25) as slide:
        assert isinstance(slide, OpenSlideSlide)
        assert (whole(slide) == 255).all()  # no ink


def files_that_are_no_slides(folder: Path) -> dict[str, Path]:
    (folder / "folder.svs").mkdir()
    (folder / "empty.svs").touch()
    (folder / "text.svs").write_text("I am a letter, not a slide.\n" * 40)
    (folder / "head.tif").write_bytes(b"II*\0")
    (folder / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "words"),
    [("folder", "folder"), ("empty", "empty"), ("text", "not a slide"), ("head", "ends after"), ("half", "damaged")],
)
def test_what_is_no_slide_is_refused_in_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    path = files_that_are_no_slides(tmp_path)[name]
    with pytest.raises(SlideError, match=words) as caught:
        open_slide(path, 0.25)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFoundError, match="no such file"):
        open_slide(tmp_path / "nowhere.svs")


def test_is_slide_goes_by_the_name(tmp_path: Path) -> None:
    assert all(is_slide(tmp_path / f"x{suffix.upper()}") for suffix in SLIDE_SUFFIXES)
    assert not any(is_slide(tmp_path / name) for name in ("x.csv", "svs", "x.svs.part", "._x.svs"))


def test_the_public_names_are_sorted_and_there() -> None:
    assert mitosis.slides.__all__ == sorted(mitosis.slides.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(mitosis.slides, name) for name in mitosis.slides.__all__)


# --- pixel size -----------------------------------------------------------------------------------------------------


def test_an_explicit_mpp_wins_over_the_file(samples: list[Path]) -> None:
    with open_slide(samples[0]) as slide, open_slide(samples[0], 0.5) as other:
        assert (slide.mpp, other.mpp) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (None, "no µm/px in the file. Pass --mpp 0.25"),
        ((352.8, 352.8), "352.8 µm/px.*--mpp"),
        ((0.01, 0.01), "0.01 µm/px.*--mpp"),
        ((float("nan"), 0.25), "--mpp"),
        ((0.25, 0.26), "not square.*--mpp"),
    ],
)
def test_an_unusable_mpp_is_refused_with_the_option_that_helps(
    measured: tuple[float, float] | None, words: str
) -> None:
    with pytest.raises(MppError, match=f"scan.tif: .*{words}"):
        usable_mpp(Path("scan.tif"), measured, None)
    assert usable_mpp(Path("scan.tif"), measured, 0.25) == 0.25


@pytest.mark.parametrize("given_mpp", [0.0, -1.0, 25.0, float("nan")])
def test_an_mpp_argument_that_no_scan_has_is_refused(given_mpp: float) -> None:
    with pytest.raises(MppError, match="--mpp"):
        usable_mpp(Path("scan.tif"), (0.25, 0.25), given_mpp)


def test_the_mean_of_nearly_equal_sides_is_taken() -> None:
    assert usable_mpp(Path("scan.tif"), (0.25, 0.252), None) == pytest.approx(0.251)


SIZES = 'PhysicalSizeX="{0}" PhysicalSizeXUnit="{1}" PhysicalSizeY="{0}" PhysicalSizeYUnit="{1}"'
OME = f"<OME><Image><Pixels {SIZES}/></Image></OME>"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"description": APERIO}, 0.25),
        ({"description": APERIO.replace("0.2500", "0,499")}, 0.499),
        ({"description": APERIO.replace("|MPP = 0.2500", "")}, None),
        ({"resolution": (40_000, 40_000), "resolutionunit": "centimeter"}, 0.25),
        ({"resolution": (50_800, 50_800), "resolutionunit": "inch"}, 0.5),
        ({"resolution": (40_000, 40_000), "resolutionunit": "none"}, None),
        ({"resolution": (72, 72), "resolutionunit": "inch"}, None),
        ({"resolution": ((0, 1), (0, 1)), "resolutionunit": "inch"}, None),
        ({"resolution": (40_000, 20_000), "resolutionunit": "centimeter"}, None),
        ({"description": OME.format(0.25, "µm").encode()}, 0.25),
        ({"description": OME.format(250, "nm").encode()}, 0.25),
        ({"description": OME.format(0.00025, "&#109;m").encode()}, 0.25),
        ({"description": OME.format(1, "pixel").encode()}, None),
        # the first plausible source counts
        ({"description": APERIO, "resolution": (72, 72), "resolutionunit": "inch"}, 0.25),
        ({"description": APERIO.replace("0.2500", "0"), "resolution": (4e4, 4e4), "resolutionunit": 3}, 0.25),
    ],
)
def test_mpp_of_a_tiff_file(tmp_path: Path, options: dict[str, Any], expected: float | None) -> None:
    path = write(tmp_path / "a.tif", picture(), **options)
    if expected is None:
        with pytest.raises(MppError):
            open_slide(path)
    else:
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx(expected)


def test_mpp_of_an_image_counts_only_where_plausible(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "scan.png", dpi=(101_600, 101_600))
    Image.fromarray(picture()).save(tmp_path / "screen.png", dpi=(72, 72))
    Image.fromarray(picture()).save(tmp_path / "photo.jpg", dpi=(50_800, 50_800))
    assert open_slide(tmp_path / "scan.png").mpp == pytest.approx(0.25, rel=1e-4)
    assert open_slide(tmp_path / "photo.jpg").mpp == pytest.approx(0.5)
    with pytest.raises(MppError, match="no µm/px"):
        open_slide(tmp_path / "screen.png")


def test_properties_say_what_info_shows(samples: list[Path]) -> None:
    with open_slide(samples[0]) as slide:
        shown = dict(slide.properties)
    assert shown == {
        "format": "Aperio SVS",
        "vendor": "Aperio",
        "compression": "NONE",
        "tile size": "64 x 64",
        "objective power": "40",
        "scanner": "S1",
        "software": "tifffile.py",
    }


# --- codecs and colours ---------------------------------------------------------------------------------------------

GREY = picture()[..., 0]
DEEP = (picture().astype(np.uint16) << 8) + 77
ALPHA = np.dstack([picture(), np.tile(np.arange(300) % 256, (200, 1)).astype(np.uint8)])
COLOURS = np.random.default_rng(2).integers(0, 65536, (3, 256)).astype(np.uint16)


def laid_on_white(colour: NDArray[Any], alpha: NDArray[Any], premultiplied: bool = False) -> NDArray[np.float64]:
    opacity = alpha[..., None] / 255
    return np.minimum(colour * (1 if premultiplied else opacity) + 255 * (1 - opacity), 255)


KINDS: dict[str, tuple[NDArray[Any], dict[str, Any], NDArray[Any]]] = {
    "uncompressed": (picture(), {}, picture()),
    "lzw": (picture(), {"compression": "lzw"}, picture()),
    "lzw with predictor": (picture(), {"compression": "lzw", "predictor": 2}, picture()),
    "deflate": (picture(), {"compression": "zlib"}, picture()),
    "packbits": (picture(), {"compression": "packbits"}, picture()),
    "zstd": (picture(), {"compression": "zstd", "predictor": True}, picture()),
    "webp": (picture(), {"compression": "webp", "compressionargs": {"lossless": True}}, picture()),
    "jpeg 2000 of aperio": (picture(), {"compression": 33005, "compressionargs": {"level": 0}}, picture()),
    "jpeg 2000": (picture(), {"compression": "jpeg2000", "compressionargs": {"level": 0}}, picture()),
    "one strip": (picture(), {"tile": None, "rowsperstrip": 200}, picture()),
    "strips": (picture(), {"tile": None, "rowsperstrip": 7}, picture()),
    "lzw strips": (picture(), {"tile": None, "rowsperstrip": 16, "compression": "lzw"}, picture()),
    "grey": (GREY, {"photometric": "minisblack"}, np.dstack([GREY] * 3)),
    "white is zero": (GREY, {"photometric": "miniswhite"}, 255 - np.dstack([GREY] * 3)),
    "bilevel": (GREY > 120, {"photometric": "minisblack"}, np.dstack([GREY > 120] * 3) * 255),
    "palette": (GREY, {"photometric": "palette", "colormap": COLOURS}, (COLOURS >> 8).T[GREY]),
    "16 bits": (DEEP, {"compression": "lzw"}, DEEP / 257),
    "16 bits big endian strips": (DEEP, {"byteorder": ">", "tile": None}, DEEP / 257),
    "separate planes": (np.moveaxis(picture(), -1, 0), {"planarconfig": "separate"}, picture()),
    "separate strips": (
        np.moveaxis(picture(), -1, 0),
        {"planarconfig": "separate", "tile": None, "rowsperstrip": 32, "compression": "lzw"},
        picture(),
    ),
    "alpha": (ALPHA, {"extrasamples": ["unassalpha"]}, laid_on_white(ALPHA[..., :3], ALPHA[..., 3])),
    "premultiplied alpha": (
        ALPHA,
        {"extrasamples": ["assocalpha"]},
        laid_on_white(ALPHA[..., :3], ALPHA[..., 3], premultiplied=True),
    ),
    "fourth sample that is no alpha": (ALPHA, {"extrasamples": ["unspecified"]}, picture()),
    "big tiff": (picture(), {"bigtiff": True}, picture()),
}


def write_kind(path: Path, kind: str) -> NDArray[Any]:
    """Write the TIFF of this kind; gives what it shows."""
    image, options, expected = KINDS[kind]
    options = {"photometric": "rgb", "tile": (64, 48), "metadata": None, **options}
    file = {key: options.pop(key) for key in ("byteorder", "bigtiff") if key in options}
    with tifffile.TiffWriter(path, **file) as writer:
        writer.write(image, **options)
    return np.asarray(expected)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_tiff_becomes_rgb(tmp_path: Path, kind: str) -> None:
    expected = write_kind(tmp_path / "a.tif", kind)
    with TiffSlide(tmp_path / "a.tif", 0.25) as slide:
        assert slide.dimensions == (300, 200)
        np.testing.assert_allclose(whole(slide), expected, atol=0.51)
        assert slide.bad_tiles == ()


def ycbcr(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).convert("YCbCr"))


@pytest.mark.parametrize("compression", [1, 33003])
def test_plain_ycbcr_becomes_rgb(tmp_path: Path, compression: int) -> None:
    """Aperio's 33003 is JPEG 2000 of YCbCr samples."""
    if compression == 1:
        tiles: Any = ycbcr(picture(128, 64))
    else:
        tiles = (
            imagecodecs.jpeg2k_encode(ycbcr(picture(128, 64))[:, x : x + 64], level=0, mct=False, codecformat="j2k")
            for x in (0, 64)
        )
    options = {"photometric": "ycbcr", "subsampling": (1, 1), "compression": compression}
    path = write(tmp_path / "a.tif", tiles, shape=(64, 128, 3), dtype=np.uint8, **options)
    with TiffSlide(path, 0.25) as slide:
        difference = np.abs(whole(slide).astype(int) - picture(128, 64))
    assert difference.max() <= 3  # Pillow rounds YCbCr to whole numbers


def jpeg_tiles(image: Pixels, encode: Callable[[Pixels], bytes]) -> list[bytes]:
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 64), (0, -width % 64), (0, 0)), mode="edge")
    return [
        encode(np.ascontiguousarray(padded[y : y + 64, x : x + 64]))
        for y in range(0, height, 64)
        for x in range(0, width, 64)
    ]


def without_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream into an abbreviated image and its tables, as TIFF's JPEGTables holds them."""
    tables, image, place = b"\xff\xd8", b"\xff\xd8", 2
    while (marker := jpeg[place + 1]) != 0xDA:
        end = place + 2 + struct.unpack(">H", jpeg[place + 2 : place + 4])[0]
        if marker in (0xDB, 0xC4):
            tables += jpeg[place:end]
        elif marker != 0xE0:  # Aperio writes no JFIF header
            image += jpeg[place:end]
        place = end
    return image + jpeg[place:], tables + b"\xff\xd9"


def as_rgb_components(tile: Pixels) -> bytes:
    """JPEG whose three components are red, green and blue, without a marker that says so."""
    jpeg: bytes = imagecodecs.jpeg8_encode(tile, level=90, colorspace="rgb", outcolorspace="rgb")
    return jpeg


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("kind", ["rgb", "ycbcr"])
def test_jpeg_tiles_have_the_colours_their_tag_says(tmp_path: Path, kind: str, tables: bool) -> None:
    """Aperio writes RGB components that a JPEG decoder alone would take for YCbCr."""
    encode = as_rgb_components if kind == "rgb" else lambda tile: simplejpeg.encode_jpeg(tile, 90, "RGB", "444")
    tiles = jpeg_tiles(picture(), encode)
    options: dict[str, Any] = {"subsampling": (1, 1)}
    if tables:
        options["jpegtables"] = without_tables(tiles[0])[1]
        tiles = [without_tables(tile)[0] for tile in tiles]
    options |= {"shape": (200, 300, 3), "dtype": np.uint8, "compression": "jpeg", "description": APERIO}
    path = write(tmp_path / "a.svs", iter(tiles), photometric="ycbcr", **options)
    patch_tag(path, 262, 2 if kind == "rgb" else 6)  # tifffile itself never calls a JPEG page RGB
    with open_slide(path) as slide, OpenSlideSlide(path) as other:
        assert isinstance(slide, TiffSlide)
        pixels = whole(slide)
        assert np.abs(pixels.astype(int) - picture()).mean() < 6
        np.testing.assert_array_equal(pixels, whole(other))


def test_jpeg_grey_and_jpeg_strips(tmp_path: Path) -> None:
    grey = write(tmp_path / "g.tif", GREY, photometric="minisblack", compression="jpeg")
    strips = write(tmp_path / "s.tif", picture(), tile=None, rowsperstrip=48, compression="jpeg")
    for path, expected in ((grey, np.dstack([GREY] * 3)), (strips, picture())):
        with TiffSlide(path, 0.25) as slide:
            assert np.abs(whole(slide).astype(int) - expected).mean() < 6
            assert slide.bad_tiles == ()


def test_jpeg_of_12_bits_goes_through_imagecodecs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", DEEP >> 4, compression="jpeg", bitspersample=12)
    with TiffSlide(path, 0.25) as slide:
        assert np.abs(whole(slide) - DEEP / 257).mean() < 6


def test_ndpi_is_read_between_its_restart_markers(tmp_path: Path) -> None:
    image = picture(320, 80)
    ndpi(tmp_path / "a.ndpi", image)
    with open_slide(tmp_path / "a.ndpi") as slide:
        assert isinstance(slide, TiffSlide)
        assert slide.mpp == pytest.approx(0.5)
        assert slide.properties["tile size"] == "32 x 8"
        assert slide.properties["objective power"] == "20.0"
        jpeg = (tmp_path / "a.ndpi").read_bytes()
        jpeg = jpeg[jpeg.index(b"\xff\xd8") :]
        np.testing.assert_array_equal(whole(slide), simplejpeg.decode_jpeg(jpeg))
        assert slide.bad_tiles == ()


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (np.zeros((200, 300, 4), np.uint8), {"photometric": "separated"}, "SEPARATED"),
        (picture(), {"photometric": "cielab"}, "CIELAB"),
        (np.zeros((200, 300, 5), np.uint8), {"photometric": "rgb"}, "5 samples"),
    ],
)
def test_other_colours_are_refused_with_their_name(
    tmp_path: Path, image: NDArray[Any], options: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "a.tif", image, **options)
    with pytest.raises(UnsupportedSlideError, match=f"a.tif: .*{words}.*Export"):
        TiffSlide(path, 0.25)


@pytest.mark.parametrize(
    ("image", "photometric", "words"),
    [
        (np.stack([GREY] * 3), "minisblack", "separate pages"),
        (picture().astype(np.float32), "rgb", "32 bits"),
        (picture().astype(np.int16), "rgb", "sample format 2"),
    ],
)
def test_what_is_no_photograph_is_refused_by_all(
    tmp_path: Path, image: NDArray[Any], photometric: str, words: str
) -> None:
    """OpenSlide would show the first channel alone, or numbers below zero as white."""
    tifffile.imwrite(tmp_path / "a.tif", image, photometric=photometric, tile=(64, 64))
    with pytest.raises(SlideError, match=f"a.tif: .*{words}.*Export"):
        open_slide(tmp_path / "a.tif", 0.25)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_every_kind_of_png_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(DEEP[..., 0])
        expected: NDArray[Any] = np.dstack([DEEP[..., 0] / 257] * 3)
    elif mode in ("RGBA", "LA"):
        image = Image.fromarray(ALPHA if mode == "RGBA" else np.dstack([GREY, ALPHA[..., 3]]))
        expected = laid_on_white(ALPHA[..., :3] if mode == "RGBA" else np.dstack([GREY] * 3), ALPHA[..., 3])
    else:
        image = Image.fromarray(picture()).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.25) as slide:
        np.testing.assert_allclose(whole(slide), expected, atol=0.51)


def test_a_png_palette_with_a_transparent_colour_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 3), 1)
    image.save(tmp_path / "a.png", transparency=0)
    pixels = whole(open_slide(tmp_path / "a.png", 0.25))
    assert pixels[3, 3].tolist() == [200, 100, 50]
    assert (pixels[0, 0] == 255).all()


def test_jpeg_and_bmp_images(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", quality=90)
    Image.fromarray(picture()).save(tmp_path / "a.bmp")
    jpeg, bmp = open_slide(tmp_path / "a.jpg", 0.25), open_slide(tmp_path / "a.bmp", 0.25)
    np.testing.assert_array_equal(whole(jpeg), np.asarray(Image.open(tmp_path / "a.jpg")))
    np.testing.assert_array_equal(whole(bmp), picture())
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "cmyk.jpg")
    with pytest.raises(SlideError, match="CMYK"):
        open_slide(tmp_path / "cmyk.jpg", 0.25)


def test_a_large_image_neither_warns_nor_touches_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with open_slide(tmp_path / "a.png", 0.25) as slide:
        assert slide.dimensions == (300, 200)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(mitosis.slides.image, "MAX_PIXELS", 1000)
    with pytest.raises(SlideError, match="too many"):
        open_slide(tmp_path / "a.png", 0.25)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path)
    data = path.read_bytes()
    for n in range(8, len(data) - 20, len(data) // 15):
        path.write_bytes(data[:n])
        with pytest.raises(SlideError, match="damaged"):
            open_slide(path, 0.25)


# --- pyramids -------------------------------------------------------------------------------------------------------


def test_levels_of_an_svs_leave_out_its_thumbnail_label_and_macro(tmp_path: Path) -> None:
    image = picture(512, 384)
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        tiled: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
        strip: dict[str, Any] = {"photometric": "rgb", "metadata": None}
        writer.write(image, **tiled, description=APERIO)
        writer.write(image[::6, ::6], **strip, description=APERIO)
        writer.write(image[::4, ::4], **tiled, description=APERIO)
        writer.write(image[:90, :80], **strip, subfiletype=1, description="Aperio label")
        writer.write(image[:100, :300], **strip, subfiletype=9, description="Aperio macro")
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.level_dimensions == ((512, 384), (128, 96))
        assert slide.level_downsamples == (1.0, 4.0)
        np.testing.assert_array_equal(whole(slide, 1), image[::4, ::4])
        np.testing.assert_array_equal(slide.read_region((256, 80), 1, (40, 30)), image[::4, ::4][20:50, 64:104])


def test_levels_in_sub_directories_are_found(tmp_path: Path) -> None:
    image = picture(256, 192)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
        size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
        writer.write(image, subifds=2, metadata={"axes": "YXS", **size}, **options)
        writer.write(image[::2, ::2], subfiletype=1, **options)
        writer.write(image[::4, ::4], subfiletype=1, **options)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert (slide.mpp, slide.properties["format"]) == (0.5, "OME-TIFF")
        assert slide.level_downsamples == (1.0, 2.0, 4.0)
        np.testing.assert_array_equal(whole(slide, 2), image[::4, ::4])


def ome_tiff(path: Path, *images: tuple[Pixels, float | None]) -> Path:
    """An OME-TIFF of several images, each with its µm/px if it has one."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        for image, mpp in images:
            size = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp} if mpp else {}
            writer.write(image, tile=(64, 64), photometric="rgb", metadata={"axes": "YXS", **size})
    return path


def test_the_largest_image_is_the_slide_and_others_are_told(tmp_path: Path) -> None:
    image = picture(256, 192)
    macro_first = ome_tiff(tmp_path / "a.ome.tif", (picture(80, 64), 2.0), (image, 0.25), (picture(64, 96), 8.0))
    with open_slide(macro_first) as slide:
        assert slide.mpp == 0.25
        np.testing.assert_array_equal(whole(slide), image)
        assert slide.level_dimensions == ((256, 192),)
        assert slide.properties["other images"] == "80 x 64, 64 x 96"


def test_the_pixel_size_of_another_image_is_not_taken(tmp_path: Path) -> None:
    path = ome_tiff(tmp_path / "a.ome.tif", (picture(256, 192), None), (picture(80, 64), 2.0))
    with pytest.raises(MppError, match="no µm/px in the file"):
        open_slide(path)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)])
def test_levels_may_stand_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    image = picture(256, 192)
    levels = [image, halved(image), halved(halved(image))]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for n in order:
            writer.write(levels[n], tile=(64, 64), photometric="rgb", metadata=None, subfiletype=int(n > 0))
    with open_slide(tmp_path / "a.tif", 0.25) as slide:
        assert slide.level_downsamples == (1.0, 2.0, 4.0)
        np.testing.assert_array_equal(whole(slide), image)
        assert "other images" not in slide.properties


def test_several_images_of_one_size_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([picture()] * 3), photometric="rgb", metadata=None)
    with pytest.raises(SlideError, match=r"stack.tif: holds 3 images of one size.*Save each as a file of its own"):
        open_slide(tmp_path / "stack.tif", 0.25)


def test_a_mirax_slide_without_its_data_is_not_its_preview(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "scan.mrxs", format="JPEG")
    with pytest.raises(SlideError, match=r"scan.mrxs: a MIRAX slide without its data.*folder scan beside it"):
        open_slide(tmp_path / "scan.mrxs", 0.25)


def test_pages_of_another_shape_are_no_levels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", picture(), picture(100, 100), halved(picture()), picture(40, 20))
    with open_slide(path, 0.25) as slide:
        assert slide.level_dimensions == ((300, 200), (150, 100))


@pytest.mark.parametrize(
    ("full", "reduced", "expected"),
    [
        ((4443, 3567), (2221, 1783), 2.0),
        ((46000, 32914), (11500, 8228), 4.0),
        ((1001, 1001), (32, 32), 32.0),
        ((300, 200), (200, 133), pytest.approx(1.502, abs=1e-3)),
        ((300, 200), (300, 200), 1.0),
    ],
)
def test_a_whole_number_is_taken_where_rounded_sizes_agree_with_it(
    full: tuple[int, int], reduced: tuple[int, int], expected: float
) -> None:
    assert downsample(full, reduced) == expected


# --- damage ---------------------------------------------------------------------------------------------------------


def jpeg_slide(path: Path) -> Path:
    """Two levels of JPEG tiles of 64 px; 5 x 4 and 3 x 2 tiles."""
    return write(path, picture(), halved(picture()), compression="jpeg", description=APERIO)


@pytest.mark.parametrize(
    ("compression", "start", "stop"),
    [("jpeg", 0.0, 1.0), ("jpeg", 0.5, 1.0), ("jpeg", 0.6, 0.65), ("zlib", 0.0, 1.0), ("zlib", 0.6, 0.65)]
    + [("lzw", 0.0, 1.0), ("jpeg2000", 0.0, 1.0)],  # these two carry no checks on what is inside
)
def test_a_damaged_tile_is_white_and_listed(tmp_path: Path, compression: str, start: float, stop: float) -> None:
    path = write(tmp_path / "a.tif", picture(), compression=compression)
    with TiffSlide(path, 0.25) as slide:
        sound = whole(slide)
    damage(path, 7, start=start, stop=stop)  # second row, third column
    with TiffSlide(path, 0.25) as slide:
        assert slide.bad_tiles == ()
        pixels = whole(slide)
        [bad] = slide.bad_tiles
        assert (bad.level, bad.box) == (0, Box(128, 64, 192, 128))
        assert bad.reason
        assert (pixels[64:128, 128:192] == 255).all()
        sound[64:128, 128:192] = 255
        np.testing.assert_array_equal(pixels, sound)
        np.testing.assert_array_equal(slide.read_region((128, 64), 0, (64, 64)), sound[64:128, 128:192])
        assert slide.bad_tiles == (bad,)  # not listed twice


def test_a_damaged_tile_of_a_coarse_level_is_listed_in_level_0_pixels(tmp_path: Path) -> None:
    path = jpeg_slide(tmp_path / "a.svs")
    damage(path, 5, page=1)
    with TiffSlide(path) as slide:
        assert (whole(slide, 1)[64:100, 128:150] == 255).all()
        assert [(bad.level, bad.box) for bad in slide.bad_tiles] == [(1, Box(256, 128, 300, 200))]
        with reopened(slide) as copy:
            assert copy.bad_tiles == ()


def test_small_regions_share_a_decoded_tile_and_large_ones_keep_none(tmp_path: Path) -> None:
    with TiffSlide(write(tmp_path / "a.tif", picture()), 0.25) as slide:
        tile = slide.read_region((64, 64), 0, (64, 64))
        slide.read_region((0, 0), 0, (128, 40))
        assert slide._recent[1].cache_info().currsize == 0
        for x in (70, 80, 90):
            part = slide.read_region((x, 70), 0, (30, 30))
            np.testing.assert_array_equal(part, tile[6:36, x - 64 : x - 34])
            part[:] = 0
        said = slide._recent[1].cache_info()
        assert (said.hits, said.misses) == (2, 1)
        assert said.maxsize is not None
        assert said.maxsize * tile.nbytes <= RECENT_BYTES


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_regions_side_by_side_share_the_tiles_at_their_edges(tmp_path: Path, factor: int) -> None:
    path = jpeg_slide(tmp_path / "a.svs")
    boxes = [Box(x // factor, 0, (x + 96) // factor, 128 // factor) for x in (0, 80, 160)]
    with TiffSlide(path) as slide:
        together = slide.read_reduced(Box(0, 0, 256 // factor, 128 // factor), 0, factor)
        slide._recent[factor].cache_clear()
        for box in boxes:
            part = slide.read_reduced(box, 0, factor)
            np.testing.assert_array_equal(part, together[:, box.x0 : box.x1])
            part[:] = 0
        said = slide._recent[factor].cache_info()
        assert (said.hits, said.misses) == (4, 8)  # columns 0 and 1, 1 and 2, 2 and 3, in two rows
        assert said.maxsize is not None
        assert said.maxsize * 3 * 64**2 // factor**2 <= RECENT_REDUCED_BYTES
    assert slide._recent[factor].cache_info().currsize == 0


def test_threads_list_a_damaged_tile_once(tmp_path: Path) -> None:
    path = jpeg_slide(tmp_path / "a.svs")
    damage(path, 0)
    with TiffSlide(path) as slide, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: whole(slide), range(24)))
        assert len(slide.bad_tiles) == 1


def test_a_slide_of_which_nothing_can_be_decoded_is_refused(tmp_path: Path) -> None:
    path = jpeg_slide(tmp_path / "a.svs")
    for index in range(20):
        damage(path, index)
    with pytest.raises(UnsupportedSlideError, match="cannot be decoded"):
        TiffSlide(path)


def test_a_jpeg_larger_than_its_tile_is_not_decoded(tmp_path: Path) -> None:
    tiles = jpeg_tiles(picture(128, 64), lambda tile: simplejpeg.encode_jpeg(tile, 90, "RGB", "444"))
    tiles[1] = simplejpeg.encode_jpeg(picture(320, 320))
    options = {"shape": (64, 128, 3), "dtype": np.uint8, "photometric": "ycbcr", "subsampling": (1, 1)}
    path = write(tmp_path / "a.tif", iter(tiles), compression="jpeg", **options)
    with TiffSlide(path, 0.25) as slide:
        assert (whole(slide)[:, 64:] == 255).all()
        assert [bad.box for bad in slide.bad_tiles] == [Box(64, 0, 128, 64)]


def test_a_tile_that_was_never_scanned_is_white_but_not_bad(tmp_path: Path) -> None:
    tiles = [picture()[:64, :64], None, picture()[:64, 128:192]]
    options = {"shape": (64, 192, 3), "dtype": np.uint8, "compression": "zlib"}
    path = write(tmp_path / "a.tif", iter(tiles), **options)
    with TiffSlide(path, 0.25) as slide:
        assert (slide.read_region((64, 0), 0, (64, 64)) == 255).all()
        np.testing.assert_array_equal(whole(slide)[:, 128:], tiles[2])
        assert slide.bad_tiles == ()


def consistent(path: Path, sound: list[Pixels]) -> int:
    """Open and read everything: 1 where that works and all is right outside `bad_tiles`, 0 where it is refused."""
    try:
        slide = open_slide(path, 0.25)
    except SlideError:
        return 0
    with slide:
        for level in range(len(slide.level_dimensions)):
            pixels = whole(slide, level)
            known = np.ones(slide.dimensions[::-1], bool)
            for bad in slide.bad_tiles:
                if bad.level == level:
                    known[bad.box.y0 : bad.box.y1, bad.box.x0 : bad.box.x1] = False
            step = int(slide.level_downsamples[level])
            known = known[::step, ::step]
            np.testing.assert_array_equal(pixels[known], sound[level][known])
            assert (pixels[~known] == 255).all()
    return 1


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_a_file_cut_anywhere_is_refused_or_right(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    path = write(tmp_path / "a.tif", picture(), halved(picture()), tile=tile, compression="jpeg")
    with open_slide(path, 0.25) as slide:
        sound = [whole(slide, level) for level in range(len(slide.level_dimensions))]
    data = path.read_bytes()
    assert consistent(path, sound) == 1
    cuts = itertools.chain(range(1, 700, 23), range(700, len(data), len(data) // 40), range(len(data) - 5, len(data)))
    for n in cuts:
        path.write_bytes(data[:n])
        assert consistent(path, sound) == 0  # the index tells that something is missing


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sound")
    ndpi(folder / "b.ndpi", picture(160, 40))
    return [
        jpeg_slide(folder / "a.svs"),
        folder / "b.ndpi",
        write(folder / "c.tif", GREY, photometric="palette", colormap=COLOURS, compression="zlib"),
        write(folder / "d.tif", picture(), halved(picture()), tile=None, rowsperstrip=16, compression="lzw"),
    ]


@given(number=st.integers(0, 3), place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), head=st.booleans())
@settings(max_examples=120, deadline=None)
def test_a_changed_byte_ends_in_a_slide_error_or_in_pixels(
    sound_files: list[Path], number: int, place: float, value: int, head: bool
) -> None:
    path = sound_files[number]
    data = bytearray(path.read_bytes())
    data[int(place * (600 if head else len(data)))] = value
    changed = path.with_name(f"changed{path.suffix}")
    changed.write_bytes(data)
    try:
        slide = TiffSlide(changed, 0.25)
    except SlideError:
        return
    with slide:
        for level in range(len(slide.level_dimensions)):
            assert slide.read_region((-5, -5), level, (200, 200)).shape == (200, 200, 3)


def test_a_palette_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", GREY, photometric="palette", colormap=COLOURS, compression="zlib")
    patch_tag(path, 320, 100, count=True)
    with pytest.raises(SlideError):
        TiffSlide(path, 0.25)


def patch_tag(path: Path, code: int, value: int, count: bool = False) -> None:
    """Change the value (or count) of a tag of the first directory, classic little-endian TIFF."""
    data = bytearray(path.read_bytes())
    begin = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, begin)[0]):
        entry = begin + 2 + 12 * i
        tag, kind = struct.unpack_from("<HH", data, entry)
        if tag == code and count:
            struct.pack_into("<I", data, entry + 4, value)
        elif tag == code:
            struct.pack_into({3: "<H", 4: "<I"}[kind], data, entry + 8, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({256: 50_000, 257: 60_000}, "tiles where"),
        ({256: 0}, "claims 0 x 200"),
        ({322: 65_520, 323: 65_520}, "tiles of 65520 x 65520"),
        ({322: 16, 323: 16}, "tiles where"),
    ],
)
def test_a_header_that_promises_too_much_is_refused(tmp_path: Path, tags: dict[int, int], words: str) -> None:
    path = write(tmp_path / "a.tif", picture(), compression="zlib")
    for code, value in tags.items():
        patch_tag(path, code, value)
    with pytest.raises(SlideError, match=words):
        open_slide(path, 0.25)


def test_directories_in_a_circle_or_with_too_many_tiles_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", picture(), compression="zlib")
    sound = path.read_bytes()
    begin = struct.unpack_from("<I", sound, 4)[0]
    n = struct.unpack_from("<H", sound, begin)[0]
    circle = bytearray(sound)
    struct.pack_into("<I", circle, begin + 2 + 12 * n, begin)
    path.write_bytes(circle)
    with pytest.raises(SlideError, match="circle"):
        open_slide(path, 0.25)
    many = bytearray(sound)
    for i in range(n):
        if struct.unpack_from("<H", many, begin + 2 + 12 * i)[0] == 324:
            struct.pack_into("<I", many, begin + 2 + 12 * i + 4, 15_300_000)
    path.write_bytes(many)
    with pytest.raises(SlideError, match="15300000 tiles"):
        open_slide(path, 0.25)


def test_a_compressed_strip_larger_than_memory_allows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mitosis.slides.tiff, "MAX_STRIP_BYTES", 100_000)
    path = write(tmp_path / "a.tif", picture(), tile=None, rowsperstrip=200, compression="lzw")
    with pytest.raises(UnsupportedSlideError, match="strips of"):
        TiffSlide(path, 0.25)


def test_one_uncompressed_strip_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitosis.slides.tiff, "PIECE_BYTES", 300 * 3 * 7)
    path = write(tmp_path / "a.tif", picture(), tile=None, rowsperstrip=200)
    with TiffSlide(path, 0.25) as slide:
        assert slide._levels[0].tile_size == (300, 7)
        np.testing.assert_array_equal(whole(slide), picture())


def test_nothing_is_logged_or_printed_about_an_odd_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.tif", picture(), tile=None, rowsperstrip=16, compression="zlib")
    patch_tag(path, 278, 8)
    with pytest.raises(SlideError, match="tiles where"):
        open_slide(path, 0.25)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


# --- OpenSlide ------------------------------------------------------------------------------------------------------


def test_coordinates_start_at_the_corner_of_openslides_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(512, 384)
    path = write(tmp_path / "a.svs", image, description=APERIO)
    bounds = {"x": "100", "y": "60", "width": "150", "height": "90"}
    real = openslide.OpenSlide.properties.fget  # type: ignore[attr-defined]  # a property, untyped
    extra = {f"openslide.bounds-{name}": value for name, value in bounds.items()}
    monkeypatch.setattr(openslide.OpenSlide, "properties", property(lambda handle: {**real(handle), **extra}))
    with OpenSlideSlide(path) as slide:
        assert slide.dimensions == slide.level_dimensions[0] == (150, 90)
        np.testing.assert_array_equal(whole(slide), image[60:150, 100:250])
        around = slide.read_region((-10, -10), 0, (170, 110))
        np.testing.assert_array_equal(around[10:100, 10:160], image[60:150, 100:250])
        around[10:100, 10:160] = 255
        assert (around == 255).all()


def test_openslide_recovers_from_a_damaged_tile(tmp_path: Path) -> None:
    path = jpeg_slide(tmp_path / "a.svs")
    with OpenSlideSlide(path) as slide:
        sound = whole(slide)
    damage(path, 7)
    sound[64:128, 128:192] = 255
    with OpenSlideSlide(path) as slide:
        for _ in range(2):
            np.testing.assert_array_equal(whole(slide), sound)
            assert [(bad.level, bad.box) for bad in slide.bad_tiles] == [(0, Box(128, 64, 192, 128))]
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (60, 60)), sound[:60, :60])


def test_openslide_lays_transparent_pixels_on_white(tmp_path: Path) -> None:
    tiles = [picture()[:64, :64], None]
    path = write(tmp_path / "a.tif", iter(tiles), shape=(64, 128, 3), dtype=np.uint8, compression="zlib")
    with OpenSlideSlide(path, 0.25) as slide:
        assert (whole(slide)[:, 64:] == 255).all()
        np.testing.assert_array_equal(whole(slide)[:, :64], tiles[0])


def test_openslide_gives_a_pixel_the_same_value_in_every_region(tmp_path: Path) -> None:
    """Its own interpolation would shift a level whose factor is no whole number (here 1.5)."""
    image = picture(768, 768)
    path = write(tmp_path / "a.svs", image, image[:512, :512], description=APERIO)
    with OpenSlideSlide(path) as slide:
        assert slide.level_downsamples == (1.0, 1.5)
        everything = whole(slide, 1)
        for x, y in ((33, 70), (101, 7), (200, 333)):
            place = (round(x * 1.5), round(y * 1.5))
            np.testing.assert_array_equal(slide.read_region(place, 1, (90, 80)), everything[y : y + 80, x : x + 90])


# --- at any mpp -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    """0.25 µm/px, levels of 1, 2 and (odd) about 3.75."""
    image = picture(300, 200)
    path = write(tmp_path_factory.mktemp("pyramid") / "a.tif", image, halved(image), picture(80, 53))
    with open_slide(path, 0.25) as slide:
        yield slide


def area_average(image: NDArray[Any], step: float) -> NDArray[np.float64]:
    """Reference: integrate exactly with a cumulative sum, white beyond the image."""
    for axis in (0, 1):
        n = int(np.ceil(image.shape[axis] / step - 1e-9))
        moved = np.moveaxis(image.astype(np.float64), axis, 0)
        padded = np.concatenate([moved, np.full((int(step) + 2, *moved.shape[1:]), 255.0)])
        total = np.concatenate([np.zeros((1, *padded.shape[1:])), np.cumsum(padded, axis=0)])
        edges = np.arange(n + 1) * step
        low = np.floor(edges).astype(int)
        part = (edges - low).reshape(-1, *[1] * (moved.ndim - 1))
        integral = total[low] + part * padded[low]
        image = np.moveaxis(np.diff(integral, axis=0) / step, 0, axis)
    return image


@pytest.mark.parametrize("step", [1, 1.003, 1.37, 2, 2.5, 3, 4, 7.9, 8])
def test_coarser_pixels_are_exact_area_averages(tmp_path: Path, step: float) -> None:
    path = write(tmp_path / "a.tif", picture())
    with open_slide(path, 0.25) as slide:
        pixels = thumbnail(slide, 0.25 * step)
        width, height = grid_dimensions((300, 200), 0.25, 0.25 * step)
        assert pixels.shape == (height, width, 3)
        np.testing.assert_allclose(pixels, area_average(picture(), step), atol=0.501)


@pytest.mark.parametrize("step", [0.4, 0.5, 0.83])
def test_finer_pixels_are_interpolated_between_centres(tmp_path: Path, step: float) -> None:
    ramp = np.tile((np.arange(100) * 2)[:, None], (60, 1, 3)).astype(np.uint8)
    path = write(tmp_path / "a.tif", ramp)
    with open_slide(path, 1.0) as slide:
        row = thumbnail(slide, step)[30, :, 0].astype(float)
    centres = (np.arange(len(row)) + 0.5) * step - 0.5
    inside = (centres >= 0) & (centres <= 99)
    np.testing.assert_allclose(row[inside], centres[inside] * 2, atol=0.51)


def test_the_best_level_is_the_coarsest_that_is_fine_enough(pyramid: Slide) -> None:
    chosen = [resample._best_level(pyramid, mpp) for mpp in (0.1, 0.25, 0.3, 0.499, 0.5, 0.9, 1.0, 4.0)]
    assert [level for level, _ in chosen] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert chosen[4] == (1, 1)  # exactly this level
    np.testing.assert_array_equal(thumbnail(pyramid, 0.5), halved(picture()))


@given(
    mpp=st.one_of(st.floats(0.1, 2.5), st.sampled_from([0.25, 0.2525, 0.5, 0.75, 1.0, 2.0])),
    corner=st.tuples(st.floats(-0.4, 1.2), st.floats(-0.4, 1.2)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
@settings(max_examples=70, deadline=None)
def test_a_grid_pixel_is_the_same_whichever_box_it_is_read_through(
    pyramid: Slide, mpp: float, corner: tuple[float, float], size: tuple[int, int]
) -> None:
    width, height = grid_dimensions(pyramid.dimensions, pyramid.mpp, mpp)
    margin = 100
    around = read_at_mpp(pyramid, Box(-margin, -margin, 2 * width + margin, 2 * height + margin), mpp)
    x, y = int(corner[0] * width), int(corner[1] * height)
    x, y = max(x, -margin), max(y, -margin)
    box = Box(x, y, min(x + size[0], 2 * width + margin), min(y + size[1], 2 * height + margin))
    part = around[box.y0 + margin : box.y1 + margin, box.x0 + margin : box.x1 + margin]
    np.testing.assert_array_equal(read_at_mpp(pyramid, box, mpp), part)


@pytest.mark.parametrize("mpp", [0.2, 0.25, 0.31, 0.5, 0.7, 1.7])
def test_reading_in_blocks_and_bands_leaves_no_trace(
    pyramid: Slide, mpp: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = thumbnail(pyramid, mpp)
    monkeypatch.setattr(resample, "BLOCK", 37)
    monkeypatch.setattr(resample, "PIECE", (11, 5))
    np.testing.assert_array_equal(thumbnail(pyramid, mpp), at_once)


@pytest.mark.parametrize("mpp", [0.1, 0.25, 0.33, 0.5, 1.0, 2.0])
def test_what_is_read_is_the_callers_own(pyramid: Slide, mpp: float) -> None:
    box = Box(0, 0, 16, 16)
    pixels = read_at_mpp(pyramid, box, mpp)
    kept = pixels.copy()
    pixels[:] = 0
    np.testing.assert_array_equal(read_at_mpp(pyramid, box, mpp), kept)


@pytest.mark.parametrize("mpp", [0.1, 0.33, 0.5, 2.0])
def test_boxes_outside_are_white(pyramid: Slide, mpp: float) -> None:
    assert (read_at_mpp(pyramid, Box(-60, -70, -2, -2), mpp) == 255).all()
    assert (read_at_mpp(pyramid, Box(5000, 5000, 5040, 5030), mpp) == 255).all()
    assert read_at_mpp(pyramid, Box(3, 3, 3, 9), mpp).shape == (6, 0, 3)


@pytest.mark.parametrize("mpp", [0.0999, 0.01, 0.0, -0.5, float("nan")])
def test_much_finer_than_the_slide_is_refused(pyramid: Slide, mpp: float) -> None:
    with pytest.raises(SlideError, match=r"has 0.25 µm/px.*2.5 times finer"):
        read_at_mpp(pyramid, Box(0, 0, 8, 8), mpp)


def test_an_explicit_mpp_scales_the_levels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.svs", picture(), halved(picture()), description=APERIO)
    with open_slide(path, 0.5) as slide:
        assert resample._best_level(slide, 1.0) == (1, 1)


# --- decoded at a fraction of its size ------------------------------------------------------------------------------


def jpeg_tiff(path: Path, image: Pixels, subsampling: str = "420", fill: int | None = None, **options: Any) -> Path:
    """One level of JPEG tiles of 64 px, quality 90; `fill` is what stands beyond the image's edge."""
    height, width = image.shape[:2]
    sides = ((0, -height % 64), (0, -width % 64), (0, 0))
    padded = np.pad(image, sides, "edge") if fill is None else np.pad(image, sides, constant_values=fill)
    tiles = jpeg_tiles(padded, lambda tile: simplejpeg.encode_jpeg(tile, 90, "RGB", subsampling))
    factors = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[subsampling]
    options = {"photometric": "ycbcr", "subsampling": factors, "compression": "jpeg", **options}
    return write(path, iter(tiles), shape=image.shape, dtype=np.uint8, **options)


def smooth_picture(width: int = 301, height: int = 203) -> Pixels:
    """Colours without detail that a transform of 8 x 8 px could lose: what is left of a shift shows."""
    y, x = np.mgrid[:height, :width]
    waves = [120 + 90 * np.sin(x / 37 + y / 51), 90 + y * 120 / height, 200 - x * 150 / width]
    return np.rint(np.stack(waves, axis=-1)).astype(np.uint8)


def without_reductions(slide: Slide, mpp: float) -> Pixels:
    """The thumbnail as it is where tiles are decoded in full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TiffSlide, "reductions", lambda *_: ())
        return thumbnail(slide, mpp)


@pytest.fixture(scope="module")
def reducible(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Slide]]:
    """Slides at 0.25 µm/px of one level that are decoded at half size; sides are odd, no multiples of a tile."""
    folder = tmp_path_factory.mktemp("reducible")
    image = picture(301, 203)
    grey, strips = folder / "grey.tif", folder / "strips.tif"
    write(grey, image[..., 0], photometric="minisblack", compression="jpeg")
    write(strips, image[:, :296], tile=None, rowsperstrip=16, compression="jpeg")
    ndpi(folder / "scan.ndpi", picture(320, 80))
    paths = [jpeg_tiff(folder / f"{kind}.tif", image, kind) for kind in ("420", "422", "444")]
    slides = {path.stem: open_slide(path, 0.25) for path in (*paths, grey, strips, folder / "scan.ndpi")}
    yield slides
    for slide in slides.values():
        slide.close()


KINDS_OF_JPEG = ("420", "422", "444", "grey", "strips", "scan")


@pytest.mark.parametrize("kind", KINDS_OF_JPEG)
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_reduced_tile_shows_what_the_whole_one_shows(
    reducible: dict[str, Slide], kind: str, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = reducible[kind]
    assert isinstance(slide, TiffSlide)
    expected = without_reductions(slide, 0.25 * factor)
    for kept in slide._recent.values():
        kept.cache_clear()
    decode, scales = simplejpeg.decode_jpeg, []

    def spy(data: bytes, *colours: str, **options: Any) -> Pixels:
        scales.append(options.get("min_factor", 1))
        pixels: Pixels = decode(data, *colours, **options)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    difference = np.abs(thumbnail(slide, 0.25 * factor).astype(int) - expected)
    assert difference.mean() < 2  # of a picture with noise
    smaller = 2 if kind == "422" else factor
    assert slide.reductions(0) == ((2,) if kind == "422" else (2, 4, 8))
    assert set(scales) == ({smaller} if kind == "scan" else {1, smaller})  # 1: cut by the slide's edge


@pytest.mark.parametrize("mpp", [0.5, 0.4963, 0.509, 0.75, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("subsampling", ["420", "444"])
def test_reduced_pixels_lie_where_they_belong(tmp_path: Path, mpp: float, subsampling: str) -> None:
    """A shift by a tenth of a pixel would show in these gradients (up to 2.4 levels a pixel)."""
    image = smooth_picture(320, 192)
    with open_slide(jpeg_tiff(tmp_path / "a.tif", image, subsampling), 0.25) as slide:
        pixels = thumbnail(slide, mpp)[:-3, :-3]  # the last ones may reach over the edge
        error = pixels - area_average(image, mpp / 0.25)[: pixels.shape[0], : pixels.shape[1]]
    assert np.abs(error).mean() < 1
    slope = np.gradient(area_average(image, mpp / 0.25)[: pixels.shape[0], : pixels.shape[1]], axis=1)
    for channel in (0, 2):
        shift = (error[..., channel] * slope[..., channel]).mean() / (slope[..., channel] ** 2).mean()
        assert abs(shift) < 0.05


@given(
    kind=st.sampled_from(KINDS_OF_JPEG),
    mpp=st.one_of(st.floats(0.4951, 2.5), st.sampled_from([0.4963, 0.5, 0.509, 0.75, 1.0, 2.0, 3.0])),
    corner=st.tuples(st.floats(-0.2, 1.1), st.floats(-0.2, 1.1)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
@settings(max_examples=80, deadline=None)
def test_a_reduced_pixel_is_the_same_whichever_box_it_is_read_through(
    reducible: dict[str, Slide], kind: str, mpp: float, corner: tuple[float, float], size: tuple[int, int]
) -> None:
    slide, margin = reducible[kind], 40
    width, height = grid_dimensions(slide.dimensions, slide.mpp, mpp)
    around = read_at_mpp(slide, Box(-margin, -margin, width + margin, height + margin), mpp)
    x, y = max(int(corner[0] * width), -margin), max(int(corner[1] * height), -margin)
    box = Box(x, y, min(x + size[0], width + margin), min(y + size[1], height + margin))
    part = around[box.y0 + margin : box.y1 + margin, box.x0 + margin : box.x1 + margin]
    np.testing.assert_array_equal(read_at_mpp(slide, box, mpp), part)


@pytest.mark.parametrize("mpp", [0.5, 0.509, 1.0, 2.2])
@pytest.mark.parametrize("side", [7, 32, 50])
def test_parts_of_a_reduced_slide_make_the_whole(reducible: dict[str, Slide], mpp: float, side: int) -> None:
    """In any order, over borders of JPEG tiles and in the last, cut ones."""
    slide = reducible["420"]
    at_once = thumbnail(slide, mpp)
    height, width = at_once.shape[:2]
    boxes = [Box(x, y, x + side, y + side) for y in range(0, height, side) for x in range(0, width, side)]
    pieced = np.zeros_like(at_once)
    for number in np.random.default_rng(side).permutation(len(boxes)):
        box = boxes[number]
        part = read_at_mpp(slide, box, mpp)
        pieced[box.y0 : box.y1, box.x0 : box.x1] = part[: height - box.y0, : width - box.x0]
    np.testing.assert_array_equal(pieced, at_once)


@pytest.mark.parametrize("mpp", [0.5, 0.509, 0.7, 1.1])
def test_reducing_in_blocks_and_pieces_leaves_no_trace(
    reducible: dict[str, Slide], mpp: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = thumbnail(reducible["420"], mpp)
    monkeypatch.setattr(resample, "BLOCK", 37)
    monkeypatch.setattr(resample, "PIECE", (11, 5))
    np.testing.assert_array_equal(thumbnail(reducible["420"], mpp), at_once)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("fill", [0, 255])
def test_what_fills_up_the_last_tiles_does_not_come_in(tmp_path: Path, factor: int, fill: int) -> None:
    """A pixel that the slide's edge cuts is a mean of the slide and of white, as it is without reduction."""
    path = jpeg_tiff(tmp_path / "a.tif", smooth_picture(301, 203), fill=fill)
    with open_slide(path, 0.25) as slide:
        pixels, expected = thumbnail(slide, 0.25 * factor), without_reductions(slide, 0.25 * factor)
    assert pixels.shape == expected.shape == (-(-203 // factor), -(-301 // factor), 3)
    first_cut = (192 // factor, 256 // factor)
    np.testing.assert_array_equal(pixels[first_cut[0] :], expected[first_cut[0] :])
    np.testing.assert_array_equal(pixels[:, first_cut[1] :], expected[:, first_cut[1] :])


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("kind", ["rgb", "ycbcr"])
def test_reduced_jpeg_tiles_have_the_colours_their_tag_says(tmp_path: Path, kind: str, tables: bool) -> None:
    encode = as_rgb_components if kind == "rgb" else lambda tile: simplejpeg.encode_jpeg(tile, 90, "RGB", "444")
    tiles = jpeg_tiles(smooth_picture(256, 192), encode)
    options: dict[str, Any] = {"subsampling": (1, 1), "shape": (192, 256, 3), "dtype": np.uint8, "compression": "jpeg"}
    if tables:
        options["jpegtables"] = without_tables(tiles[0])[1]
        tiles = [without_tables(tile)[0] for tile in tiles]
    path = write(tmp_path / "a.svs", iter(tiles), photometric="ycbcr", description=APERIO, **options)
    patch_tag(path, 262, 2 if kind == "rgb" else 6)
    with open_slide(path) as slide:
        assert slide.reductions(0) == (2, 4, 8)
        for factor in (2, 4, 8):
            pixels = thumbnail(slide, 0.25 * factor)
            assert np.abs(pixels - area_average(smooth_picture(256, 192), factor)).max() < 6


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("mpp", [0.5, 0.509, 2.0])
@pytest.mark.parametrize("index", [7, 9])
def test_damage_is_white_and_listed_where_tiles_are_reduced(
    tmp_path: Path, start: float, stop: float, mpp: float, index: int
) -> None:
    """Tile 7 is whole, tile 9 cut by the slide's edge."""
    path = jpeg_tiff(tmp_path / "a.tif", picture(301, 203))
    damage(path, index, start=start, stop=stop)
    with open_slide(path, 0.25) as slide, open_slide(path, 0.25) as other, open_slide(path, 0.25) as third:
        pixels = thumbnail(slide, mpp)
        [bad] = slide.bad_tiles
        without_reductions(other, mpp)
        assert other.bad_tiles == (bad,)
        whole(third)  # what is known of a tile does not change what is read
        np.testing.assert_array_equal(thumbnail(third, mpp), pixels)
    assert bad.box == {7: Box(128, 64, 192, 128), 9: Box(256, 64, 301, 128)}[index]
    step = mpp / 0.25
    inner = [int(np.ceil(bad.box[i] / step)) + 1 for i in (0, 1)] + [int(bad.box[i] / step) - 1 for i in (2, 3)]
    assert (pixels[inner[1] : inner[3], inner[0] : inner[2]] == 255).all()


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), n=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_the_same_damage_is_noticed_at_every_size(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: int, n: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "noticed.tif"
    jpeg_tiff(path, picture(128, 64))
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    data = bytearray(path.read_bytes())
    begin = offset + int(place * count)
    data[begin : min(begin + n, offset + count)] = bytes([value]) * (min(begin + n, offset + count) - begin)
    path.write_bytes(data)
    found = []
    for factor in (1, 2, 4, 8):
        with TiffSlide(path, 0.25) as slide:
            if set(slide.reductions(0)) == {2, 4, 8}:
                pixels = slide.read_reduced(Box(0, 0, 128 // factor, 64 // factor), 0, factor) if factor > 1 else None
                assert pixels is None or pixels.shape == (64 // factor, 128 // factor, 3)
                whole(slide) if factor == 1 else None
                found.append([bad.box for bad in slide.bad_tiles])
    assert all(boxes == found[0] for boxes in found)


@pytest.mark.parametrize("side", [32, 128, 320])
def test_a_jpeg_of_another_size_than_its_tile_is_bad_at_every_size(tmp_path: Path, side: int) -> None:
    """One of half the size could pass for a reduced one."""
    tiles = jpeg_tiles(picture(128, 64), lambda tile: simplejpeg.encode_jpeg(tile, 90, "RGB", "444"))
    tiles[1] = simplejpeg.encode_jpeg(picture(side, side), 90, "RGB", "444")
    options = {"shape": (64, 128, 3), "dtype": np.uint8, "photometric": "ycbcr", "subsampling": (1, 1)}
    path = write(tmp_path / "a.tif", iter(tiles), compression="jpeg", **options)
    for mpp in (0.25, 0.5, 1.0, 2.0):
        with TiffSlide(path, 0.25) as slide:
            pixels = thumbnail(slide, mpp)
            assert (pixels[:, pixels.shape[1] // 2 :] == 255).all()
            assert [bad.box for bad in slide.bad_tiles] == [Box(64, 0, 128, 64)]


@pytest.mark.parametrize("first", [False, True])
def test_lossless_and_other_odd_jpeg_is_never_reduced(tmp_path: Path, first: bool) -> None:
    """libjpeg-turbo would write lossless JPEG at its full size, beyond the end of the buffer."""
    tiles = jpeg_tiles(smooth_picture(192, 64), lambda tile: simplejpeg.encode_jpeg(tile, 90, "RGB", "444"))
    image = smooth_picture(192, 64)
    lossless = imagecodecs.jpeg8_encode(image[:, 64:128].copy(), lossless=True, colorspace="rgb", outcolorspace="rgb")
    coarser = simplejpeg.encode_jpeg(image[:, 128:].copy(), 90, "RGB", "420")
    odd = [lossless] * 3 if first else [tiles[0], lossless, coarser]
    options = {"shape": (64, 192, 3), "dtype": np.uint8, "photometric": "ycbcr", "subsampling": (1, 1)}
    path = write(tmp_path / "a.tif", iter(odd), compression="jpeg", **options)
    patch_tag(path, 262, 2 if first else 6)
    with TiffSlide(path, 0.25) as slide:
        for factor in (2, 4, 8):
            pixels = thumbnail(slide, 0.25 * factor)
            expected = without_reductions(slide, 0.25 * factor)
            np.testing.assert_array_equal(pixels[:, 64 // factor :], expected[:, 64 // factor :])
            assert (pixels[:, : 64 // factor] == expected[:, : 64 // factor]).all() == first
        assert slide.bad_tiles == ()


def test_a_subsampling_without_a_name_is_read_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jpeg_tiff(tmp_path / "a.tif", picture())
    with TiffSlide(path, 0.25) as slide:
        sound = whole(slide)

    def header(_: bytes) -> None:
        raise KeyError(6)

    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", header)
    with TiffSlide(path, 0.25) as slide:
        assert slide.reductions(0) == ()
        np.testing.assert_array_equal(whole(slide), sound)


def test_a_reduced_tile_that_was_never_scanned_is_white_but_not_bad(tmp_path: Path) -> None:
    tiles = jpeg_tiles(picture(192, 64), lambda tile: simplejpeg.encode_jpeg(tile, 90, "RGB", "444"))
    options = {"shape": (64, 192, 3), "dtype": np.uint8, "photometric": "ycbcr", "subsampling": (1, 1)}
    path = write(tmp_path / "a.tif", iter([tiles[0], b"", tiles[2]]), compression="jpeg", **options)
    with TiffSlide(path, 0.25) as slide:
        assert slide.reductions(0) == (2, 4, 8)
        pixels = thumbnail(slide, 0.5)
        assert (pixels[:, 32:64] == 255).all()
        assert (pixels[:, :32] < 255).any()
        assert slide.bad_tiles == ()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_no_jpeg_is_read_in_full(tmp_path: Path, kind: str) -> None:
    expected = write_kind(tmp_path / "a.tif", kind)
    with TiffSlide(tmp_path / "a.tif", 0.25) as slide:
        assert slide.reductions(0) == ()
        np.testing.assert_allclose(thumbnail(slide, 0.5), area_average(np.rint(expected), 2), atol=1.01)


def test_strips_that_no_block_ends_with_are_read_in_full(tmp_path: Path) -> None:
    """Their last columns of blocks lie half beyond the slide's edge."""
    path = write(tmp_path / "a.tif", picture(300, 96), tile=None, rowsperstrip=16, compression="jpeg")
    with TiffSlide(path, 0.25) as slide:
        assert slide.reductions(0) == ()


def test_only_factors_that_a_level_has_are_read(reducible: dict[str, Slide], opened: Slide) -> None:
    for slide, factor in ((reducible["420"], 3), (reducible["422"], 4), (opened, 2)):
        with pytest.raises(ValueError, match=f"factor {factor} where level 0 has"):
            slide.read_reduced(Box(0, 0, 4, 4), 0, factor)
    assert opened.reductions(0) == ()


def test_a_closed_slide_gives_no_reduced_pixels(tmp_path: Path) -> None:
    with open_slide(jpeg_tiff(tmp_path / "a.tif", picture()), 0.25) as slide:
        pass
    with pytest.raises(SlideError, match="closed"):
        slide.read_reduced(Box(0, 0, 4, 4), 0, 2)


def test_reduced_pixels_are_the_callers_own_and_survive_pickling(tmp_path: Path) -> None:
    with open_slide(jpeg_tiff(tmp_path / "a.tif", picture()), 0.25) as slide, reopened(slide) as copy:
        box = Box(32, 32, 64, 64)  # exactly a tile
        before = slide.read_reduced(box, 0, 2).copy()
        slide.read_reduced(box, 0, 2)[...] = 7
        np.testing.assert_array_equal(copy.read_reduced(box, 0, 2), before)
        with ThreadPoolExecutor(4) as pool:
            for pixels in pool.map(lambda _: slide.read_reduced(box, 0, 2), range(12)):
                np.testing.assert_array_equal(pixels, before)


def test_a_level_that_serves_is_taken_before_a_finer_one_is_reduced(tmp_path: Path) -> None:
    image = picture(256, 128)
    with open_slide(write(tmp_path / "a.tif", image, halved(image), compression="jpeg"), 0.25) as slide:
        np.testing.assert_array_equal(thumbnail(slide, 0.5), whole(slide, 1))
        coarse = slide.read_reduced(Box(0, 0, 64, 32), 1, 2)
        np.testing.assert_array_equal(thumbnail(slide, 1.0), coarse)


@pytest.mark.parametrize(
    ("mpp", "factor"),
    [(0.25, 1), (0.49, 1), (0.4951, 2), (0.5, 2), (0.98, 2), (0.9901, 4), (1.9, 4), (1.9802, 8), (2.0, 8), (9.0, 8)],
)
def test_the_largest_factor_is_taken_that_is_fine_enough(
    reducible: dict[str, Slide], mpp: float, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = []

    def spy(_: Slide, region: Box, level: int, factor: int) -> Pixels:  # noqa: ARG001 (signature of Slide)
        factors.append(factor)
        return np.full((*region.size[::-1], 3), 7, np.uint8)

    monkeypatch.setattr(TiffSlide, "read_reduced", spy)
    pixels = read_at_mpp(reducible["420"], Box(2, 2, 9, 8), mpp)
    assert pixels.shape == (6, 7, 3)
    assert factors == ([factor] if factor > 1 else [])
    assert factor == 1 or (pixels == 7).all()


@given(start=st.integers(-50, 5000), step=st.floats(0.99, 3.99))
def test_smooth_weights_keep_light_and_straight_lines(start: int, step: float) -> None:
    taps = resample._Taps.at(start, 40, step, smooth=True)
    np.testing.assert_allclose(taps.weights.sum(axis=1), 1, atol=1e-6)
    line = (taps.start + np.arange(taps.length) + 0.5)[:, None]
    middle = (start + np.arange(40) + 0.5) * step
    weights = taps.weights.astype(float)
    means = [weights[j] @ line[taps.first[j] : taps.first[j] + weights.shape[1], 0] for j in range(40)]
    np.testing.assert_allclose(means, middle, rtol=1e-5, atol=1e-3)


# --- real slides ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_slides_have_openslides_pixels(real_data: Path, name: str) -> None:
    """Identical, for JPEG (CMU: RGB components) as for JPEG 2000 (TCGA)."""
    path = real_data / "slides" / name
    rng = np.random.default_rng(0)
    with TiffSlide(path, 0.25) as slide, OpenSlideSlide(path, 0.25) as other:
        assert slide.level_dimensions == other.level_dimensions
        for level, (width, height) in enumerate(slide.level_dimensions):
            step = int(slide.level_downsamples[level])
            for x, y in rng.integers(0, (width - 300, height - 300), (5, 2)).tolist():
                theirs = np.asarray(other._handle.read_region((0, 0), level, (x + 300, y + 300)))[y:, x:, :3]  # type: ignore[union-attr]  # open
                np.testing.assert_array_equal(slide.read_region((x * step, y * step), level, (300, 300)), theirs)
        assert slide.bad_tiles == ()


def test_a_real_slide_reduced_is_close_to_what_it_is_in_full(real_data: Path) -> None:
    """JPEG with RGB components is reduced, JPEG 2000 is not."""
    box = Box(300, 200, 700, 600)
    for name, factors in (("cmu-1-small-region.svs", (2, 4, 8)), ("tcga-cr-7395-01a-01-ts1.svs", ())):
        with open_slide(real_data / "slides" / name, 0.25) as slide:
            assert slide.reductions(0) == factors
            for mpp, most in ((0.5, 0.5), (0.509, 3.0), (1.0, 0.5)):
                with pytest.MonkeyPatch.context() as patch:
                    pixels = read_at_mpp(slide, box, mpp)
                    patch.setattr(TiffSlide, "reductions", lambda *_: ())
                    difference = np.abs(pixels.astype(int) - read_at_mpp(slide, box, mpp)).mean()
                assert (0 < difference < most) if factors else (difference == 0)
            assert slide.bad_tiles == ()


def test_a_real_slide_knows_its_pixel_size_or_asks_for_it(real_data: Path) -> None:
    with open_slide(real_data / "slides" / "cmu-1-small-region.svs") as slide:
        assert slide.mpp == 0.499
        assert slide.properties["objective power"] == "20"
    with pytest.raises(MppError, match=r"--mpp 0\.25"):
        open_slide(real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs")
