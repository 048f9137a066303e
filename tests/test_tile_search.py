"""Which tiles a slide's tissue needs, and the order in which threads hand on what they did."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ArraySlide
from hypothesis import given
from hypothesis import strategies as st

from mitosis import tile_search as module
from mitosis.config import CountConfig
from mitosis.detections import reach_px
from mitosis.geometry import grid_dimensions
from mitosis.slides import read_at_mpp
from mitosis.tile_search import Model, find_in_tiles, read_ahead, tiles_on
from mitosis.tissue import TissueMask

STRIDE, RADIUS = 4, 6  # of the network


def model(mpp, gate=None):
    card = SimpleNamespace(mpp=mpp)
    return SimpleNamespace(card=card, stride=STRIDE, radius=RADIUS, gate=gate, gate_for=lambda _config: gate)


def mask_of(pixels, dimensions, slide_mpp=0.25):
    return TissueMask(pixels, 8.0, slide_mpp, dimensions)


@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    dimensions=st.tuples(st.integers(33, 700), st.integers(33, 700)),
    mpp=st.sampled_from([0.5, 0.3, 1.0]),
    tile_size=st.sampled_from([128, 192, 1024]),
)
def test_each_place_near_tissue_is_in_one_core(seed, share, dimensions, mpp, tile_size):
    width, height = grid_dimensions(dimensions, 0.25, 8.0)
    tissue = mask_of(np.random.default_rng(seed).random((height, width)) < share, dimensions)
    tiles = tiles_on(tissue, model(mpp), CountConfig(tile_size=tile_size))
    columns, rows = grid_dimensions(dimensions, 0.25, mpp)
    times = np.zeros((rows, columns), int)
    for tile in tiles:
        x0, y0, x1, y1 = tile.core
        assert 0 <= x0 < x1 <= columns
        assert 0 <= y0 < y1 <= rows
        assert x0 % STRIDE == y0 % STRIDE == 0
        times[y0:y1, x0:x1] += 1
    assert times.max() <= 1
    reach, ratio = reach_px(mpp), 8.0 / mpp
    for i, j in np.argwhere(tissue.mask).tolist():
        top, left = (max(0, int(place * ratio) - reach) for place in (i, j))
        bottom, right = (int(np.ceil((place + 1) * ratio)) + reach for place in (i, j))
        assert times[top:bottom, left:right].all()
    assert bool(tiles) == bool(tissue.mask.any())


@given(
    seed=st.integers(0, 2**32 - 1),
    tile_size=st.sampled_from([128, 192, 1024]),
    batch_size=st.integers(1, 3),
)
def test_windows_surround_cores_by_the_same_margin_and_no_more_than_a_tile(seed, tile_size, batch_size):
    tissue = mask_of(np.random.default_rng(seed).random((10, 10)) < 0.2, (320, 320))
    tiles = tiles_on(tissue, model(0.5), CountConfig(tile_size=tile_size, batch_size=batch_size))
    for tile in tiles:
        assert max(tile.window.size) <= tile_size
        assert all(side % STRIDE == 0 for side in tile.window.size)
        margin = tile.core.x0 - tile.window.x0
        assert margin == tile.core.y0 - tile.window.y0 >= RADIUS + reach_px(0.5)
        right, bottom = tile.window.x1 - tile.core.x1, tile.window.y1 - tile.core.y1
        assert margin <= min(right, bottom) <= max(right, bottom) < margin + STRIDE


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_windows_of_a_batch_are_as_large_as_the_largest_and_show_what_the_slide_does(batch_size):
    pixels = np.zeros((20, 20), bool)
    pixels[2:4, 3:6] = pixels[10:18, 1:3] = pixels[12:14, 12:15] = True
    slide = ArraySlide(np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8))
    config = CountConfig(tile_size=136, batch_size=batch_size)
    tiles = tiles_on(TissueMask(pixels, 8.0, 0.5, (320, 320)), model(0.5), config)
    sizes = [tile.window.size[::-1] for tile in tiles]
    together, alike = (
        [some[start : start + batch_size] for start in range(0, len(some), batch_size)]
        for some in (sizes, sorted(sizes, reverse=True))
    )
    assert sorted(together) == sorted(alike)
    assert len(set(sizes)) > 1
    batches = list(read_ahead(slide, tiles, config, None))
    assert [tile.core for batch, _ in batches for tile in batch] == [tile.core for tile in tiles]
    for number, (batch, images) in enumerate(batches):
        asked = tiles[number * batch_size : (number + 1) * batch_size]
        assert images.shape[1:3] == tuple(max(tile.window.size[axis] for tile in asked) for axis in (1, 0))
        for tile, image in zip(batch, images, strict=True):
            np.testing.assert_array_equal(image, read_at_mpp(slide, tile.window, 0.5))


@pytest.mark.parametrize("seed", range(3))
def test_tiles_follow_each_other_where_they_share_pixels(seed):
    """In ragged tissue, whose tiles are of many sizes, much closer to each other than the largest first would be."""
    ragged = np.kron(np.random.default_rng(seed).random((15, 15)) < 0.3, np.ones((4, 4), bool))
    tiles = tiles_on(mask_of(ragged, (1920, 1920)), model(0.5), CountConfig(tile_size=128))
    by_size = sorted(tiles, key=lambda tile: tile.window.size[::-1], reverse=True)
    far, apart = (
        np.abs(np.diff([tile.window[:2] for tile in some], axis=0)).sum(axis=1).mean() for some in (tiles, by_size)
    )
    assert far < 0.8 * apart


class Crossing:
    """Where threads meet: `most` at once so far. The first may `wait` for another."""

    def __init__(self, wait):
        self.wait, self.most, self.inside = wait, 0, 0
        self.lock, self.met = threading.Lock(), threading.Event()

    def pass_through(self):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.inside == 2:
                self.met.set()
        if self.wait:
            self.met.wait(10)
        with self.lock:
            self.inside -= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_peaks_are_looked_for_by_as_many_threads_as_run_the_network(monkeypatch, workers):
    crossing, search = Crossing(wait=workers > 0), module.find_peaks

    def find_peaks(*given):
        crossing.pass_through()
        return search(*given)

    monkeypatch.setattr(module, "find_peaks", find_peaks)
    fields = {**vars(model(0.5)), "engine": lambda images: np.zeros(images.shape[:3], np.float32), "in_flight": 2}
    one, config = SimpleNamespace(**fields), CountConfig(tile_size=136, workers=workers)
    slide = ArraySlide(np.zeros((320, 320, 3), np.uint8))
    tiles = tiles_on(TissueMask(np.ones((20, 20), bool), 8.0, 0.5, (320, 320)), one, config)
    assert len(list(find_in_tiles(slide, tiles, one, config, None))) == len(tiles) > 4
    assert crossing.most == (2 if workers else 1)


def test_a_small_slide_takes_no_more_than_it_needs():
    (tile,) = tiles_on(mask_of(np.ones((4, 4), bool), (128, 128)), model(0.5), CountConfig(tile_size=1024))
    assert tile.core == (0, 0, 64, 64)
    assert tile.window.size == (64 + 2 * 24, 64 + 2 * 24)  # 17 px for peaks and 6 for the network, in blocks of 4


def test_tiles_begin_where_tissue_does():
    """Two islands off the grid: two tiles as small as they are, where a grid from the corner needs eight."""
    pixels = np.zeros((40, 40), bool)
    pixels[5:8, 3:6] = pixels[25:28, 30:33] = True
    tiles = tiles_on(mask_of(pixels, (1280, 1280)), model(0.5), CountConfig(tile_size=192))
    # 17 px before and after, in blocks of 16
    assert [tile.core for tile in tiles] == [(16, 48, 128, 160), (448, 368, 560, 480)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("views", [1, 4])
def test_an_engine_asked_by_several_threads_gives_the_same_pieces_in_the_same_order(batch_size, workers, views):
    rng = np.random.default_rng(0)
    slide = ArraySlide(rng.integers(0, 256, (320, 320, 3), dtype=np.uint8))
    tissue = TissueMask(rng.random((20, 20)) < 0.3, 8.0, 0.5, (320, 320))
    config = CountConfig(tile_size=136, batch_size=batch_size, workers=workers, views=views)
    found = {}
    for several in (False, True):
        crossing = Crossing(wait=several)

        def engine(images, crossing=crossing):
            crossing.pass_through()
            return images[..., 0].astype(np.float32) / 255

        one = SimpleNamespace(**vars(model(0.5)), engine=engine, in_flight=2 if several else 1)
        tiles = tiles_on(tissue, one, config)
        assert len(tiles) > 4
        found[several] = list(find_in_tiles(slide, tiles, one, config, None))
        assert crossing.most == (2 if several else 1)
    for piece, other in zip(found[True], found[False], strict=True):
        assert piece.n_tiles == other.n_tiles
        for name in ("xy", "score", "area_um2"):
            np.testing.assert_array_equal(getattr(piece.detections, name), getattr(other.detections, name))


@pytest.mark.parametrize("side", [8, 64])
def test_a_window_holds_the_squares_that_a_gate_looks_at(side):
    tissue = TissueMask(np.ones((40, 40), bool), 8.0, 0.5, (640, 640))
    tiles = tiles_on(tissue, model(0.5, SimpleNamespace(side=side)), CountConfig(tile_size=256))
    around = {tile.core.x0 - tile.window.x0 for tile in tiles}
    assert len(tiles) > 4
    assert around == {-(-(reach_px(0.5) + max(RADIUS, side // 2 + 1)) // STRIDE) * STRIDE}


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_is_read_than_is_in_work(workers):
    """What is in memory does not grow with the slide."""
    read, asked = 0, 0
    config = CountConfig(tile_size=136, workers=workers)
    slide = ArraySlide(np.zeros((640, 640, 3), np.uint8))

    def engine(images):
        return np.zeros(images.shape[:3], np.float32)

    one = SimpleNamespace(**vars(model(0.5)), engine=engine, in_flight=2)
    tiles = tiles_on(TissueMask(np.ones((40, 40), bool), 8.0, 0.5, (640, 640)), one, config)

    class Counted(ArraySlide):
        def read_region(self, *given, **named):
            nonlocal read
            read += 1
            return super().read_region(*given, **named)

    slide = Counted(np.zeros((640, 640, 3), np.uint8))
    for _ in find_in_tiles(slide, tiles, one, config, None):
        asked += 1
        assert read <= asked + 2 + 2 * workers + 3
    assert read == asked == len(tiles) > 20


@pytest.mark.parametrize(
    ("engine", "device", "expected"),
    [("torch", "cpu", 1), ("torch", "cuda", 2), ("onnxruntime", "cpu", 1), ("openvino", "cpu", 3)],
)
def test_engines_are_asked_by_as_many_threads_as_serves_them(monkeypatch, engine, device, expected):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(module, "choose_device", lambda number: asked.append(number) or torch.device(device))
    monkeypatch.setattr(module, "build_engine", lambda *_: None)
    monkeypatch.setattr(module, "describe_engine", lambda *_: "")
    network = SimpleNamespace(stride=STRIDE, radius=RADIUS)
    assert Model.of(network, None, CountConfig(engine=engine), 3).in_flight == expected
    assert asked == [3]
