"""A worker: its part of a slide, and a sentence for what is not as it should be there."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import damage_tiles, draw_field, random_places, save_slide, save_tiff, save_two_stages

from mitosis import cluster_work as room
from mitosis.config import CountConfig
from mitosis.detections import Detections, merge
from mitosis.errors import ClusterError, ModelError, SlideError, SlideNotFoundError
from mitosis.inference import Model, judge_candidates, start_slide
from mitosis.slides import open_slide

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

CONFIG = CountConfig(tile_size=128, engine="torch", score_floor=0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "run"
    save_two_stages(folder)
    return Model.load(folder, CONFIG)


@pytest.fixture
def order(model, tmp_path):
    """What a worker gets for a slide: what there is to know of it, and tiles."""
    save_slide(tmp_path / "c.png", draw_field(random_places(6, 3)))
    with open_slide(tmp_path / "c.png") as slide:
        started = start_slide(slide, model, CONFIG)
        yield room.Order.of(slide, model, CONFIG, started.stain), started.tiles
    room._load.cache_clear()


def test_a_part_of_the_candidates_gets_the_scores_that_it_gets_here(order, model):
    candidates = merge(room.find_region(*order).detections, order[0].mpp)[::2]
    with open_slide(order[0].path) as slide:
        (here,) = judge_candidates(slide, candidates, model, CONFIG, order[0].stain)
    there = room.judge_part(order[0], candidates)
    assert len(there.detections) == len(candidates) > 3
    for name in ("xy", "score", "area_um2"):
        np.testing.assert_array_equal(getattr(there.detections, name), getattr(here.detections, name))
    assert not np.isin(there.detections.score, candidates.score).all()


def test_a_damaged_tile_that_only_a_second_look_meets_is_told(model, tmp_path):
    save_tiff(tmp_path / "d.tif", draw_field(random_places(6, 3)))
    damage_tiles(tmp_path / "d.tif", 5)
    with open_slide(tmp_path / "d.tif") as slide:
        started = start_slide(slide, model, CONFIG)
        slide_order = room.Order.of(slide, model, CONFIG, started.stain)
        (bad,) = slide.bad_tiles or find_bad(slide)
    x, y = (bad.box.x0 + bad.box.x1) / 2, (bad.box.y0 + bad.box.y1) / 2
    near, far = (Detections(np.array([place]), np.array([0.5]), np.ones(1)) for place in ((x, y), (x, y - 100)))
    assert room.judge_part(slide_order, near).bad_tiles == (bad,)
    assert room.judge_part(slide_order, far).bad_tiles == ()
    room._load.cache_clear()


def find_bad(slide):
    """Read all of it."""
    slide.read_region((0, 0), 0, slide.dimensions)
    return slide.bad_tiles


def test_a_model_without_a_second_stage_judges_nothing(order, model):
    config = CONFIG.model_copy(update={"verify": False})
    with open_slide(order[0].path) as slide, pytest.raises(ValueError, match="no second stage"):
        list(judge_candidates(slide, room.find_region(*order).detections, model, config, None))


@pytest.mark.parametrize(("name", "expected"), [(0, 0), (3, 3), ("SLURMCluster-3", None), ("tcp://host:1", None)])
def test_workers_started_here_are_numbered_so_that_each_takes_a_gpu(order, monkeypatch, name, expected):
    asked = []
    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name=name))
    monkeypatch.setattr("mitosis.tile_search.choose_device", lambda number: asked.append(number) or torch.device("cpu"))
    room.find_region(*order)
    assert set(asked) == {expected}


def test_a_worker_loads_the_model_once(order, monkeypatch):
    loaded, load = [], Model.load
    monkeypatch.setattr(Model, "load", lambda folder, *options: loaded.append(folder) or load(folder, *options))
    for _ in range(2):
        found = room.find_region(*order)
        room.judge_part(order[0], found.detections)
    assert len(loaded) == 1
    assert found.n_tiles == len(order[1])
    assert len(found.detections) > 0


@pytest.mark.parametrize("in_flight", [1, 2])
def test_threads_of_a_worker_wait_for_each_other_only_where_they_must(order, model, monkeypatch, in_flight):
    both = threading.Barrier(2)

    def engine(images):
        with suppress(threading.BrokenBarrierError):
            both.wait(10 if in_flight > 1 else 0.1)
        return np.zeros(images.shape[:3], np.float32)

    monkeypatch.setattr(Model, "load", lambda *_: replace(model, engine=engine, in_flight=in_flight))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda part: room.find_region(order[0], [part]), [order[1][0]] * 2))
    assert both.broken is (in_flight == 1)


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"version": "0.0"}, ClusterError, r"has mitosis-toolkit \S+, and the command 0\.0"),
        (
            {"runs_on": "torch 0.1 float32"},
            ClusterError,
            r"runs networks with torch .* and the command with torch 0\.1",
        ),
        ({"card_sha256": "abc"}, ModelError, "is another model on"),
        ({"card_sha256": None}, ModelError, "is another model on"),
        ({"n_bytes": 3}, SlideError, r"c\.png: is another file on"),
        ({"dimensions": (3, 4)}, SlideError, r"c\.png: is another file on"),
    ],
)
def test_a_worker_that_is_not_as_it_should_be_says_so(order, change, error, complaint):
    with pytest.raises(error, match=complaint):
        room.find_region(replace(order[0], **change), order[1])


def test_a_worker_that_sees_other_folders_says_so(order, tmp_path):
    with pytest.raises(ModelError, match=r"no model card there.* Workers need the model at the same path"):
        room.find_region(replace(order[0], folder=tmp_path), order[1])
    with pytest.raises(SlideNotFoundError, match=r"none\.svs: not to be seen on .* Workers need the same paths"):
        room.find_region(replace(order[0], path=tmp_path / "none.svs"), order[1])
