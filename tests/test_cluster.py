"""A cluster: the same bytes as without one, also when a worker is killed, and a sentence for what is wrong with it."""

import io
import logging
import math
import os
import signal
import sys
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from conftest import contents, damage_tiles, draw_field, random_places, save_slide, save_tiff, save_two_stages

from mitosis import cluster as room
from mitosis.cluster import open_cluster
from mitosis.cohort import SlideSource, find_sources
from mitosis.cohort_count import count_slides
from mitosis.config import CountConfig
from mitosis.detections import Detections
from mitosis.errors import ClusterError, ConfigError, SlideError
from mitosis.files import write_json
from mitosis.geometry import Box, Tile
from mitosis.inference import Model, count_slide, finish_slide, start_slide
from mitosis.slides import open_slide

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

CONFIG = CountConfig(tile_size=128, hotspot_mm2=0.005, engine="torch", max_bad_fraction=0.5, score_floor=0.01)


@pytest.fixture(scope="module", autouse=True)
def _quick_picture():
    """Pictures take most of the time; they follow from what is noted instead, and test_report.py looks at them."""

    def note(path, _slide, report, candidates, tissue):
        write_json(path, [report.to_dict(), candidates.xy.tolist(), tissue.mask.tolist()])

    with mock.patch("mitosis.report.draw_overlay", note):
        yield


@pytest.fixture(scope="module")
def cluster():
    with open_cluster(processes=2, tiles=4) as started:
        yield started


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Three slides, of which one is damaged in a tile, and one file that is none."""
    folder = tmp_path_factory.mktemp("cluster") / "slides"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        field = draw_field(random_places(16, seed, 400, 300), random_places(6, seed + 9, 400, 300), 400, 300, glass=40)
        save_tiff(folder / f"{name}.tif", field)
    damage_tiles(folder / "b.tif", 10)
    save_slide(folder / "c.png", draw_field(random_places(6, 3)))
    (folder / "d.svs").write_text("This is not a slide.\n" * 50)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "run"
    save_two_stages(folder)
    return Model.load(folder, CONFIG)


@pytest.fixture(scope="module")
def whole(slides, model, tmp_path_factory):
    """Results without a cluster."""
    out = tmp_path_factory.mktemp("whole") / "out"
    results = list(count_slides(find_sources([slides]), model, out, CONFIG))
    assert [result.status for result in results] == ["ok", "degraded", "ok", "failed"]
    assert all(result.report.n_candidates > 5 for result in results[:3])
    return out


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Candidates of one slide go to several workers."""
    monkeypatch.setattr(room, "CANDIDATES", 7)


@pytest.mark.parametrize("ahead", [0, 2])
def test_results_are_those_without_a_cluster_to_the_byte(cluster, slides, model, whole, tmp_path, ahead):
    sources, judged = find_sources([slides]), []

    def judge(*arguments):
        judged.append(list(cluster.judge(*arguments)))
        return judged[-1]

    list(count_slides(sources, model, tmp_path / "out", CONFIG, find=cluster.find, judge=judge, ahead=ahead))
    assert contents(tmp_path / "out") == contents(whole)
    assert len(judged) == 3
    assert all(len(parts) > 2 for parts in judged)


@pytest.mark.parametrize("stage", ["find", "judge"])
def test_a_killed_worker_changes_nothing(cluster, slides, model, whole, tmp_path, stage):
    killed = []

    def kill_one(pieces):
        for piece in pieces:
            if not killed:
                busy = {address: keys for address, keys in cluster.client.processing().items() if keys}
                address, pid = next(item for item in cluster.client.run(os.getpid).items() if item[0] in busy)
                os.kill(pid, signal.SIGKILL)
                killed.append((address, pid))
            yield piece

    stages = {"find": cluster.find, "judge": cluster.judge}
    one = stages[stage]
    stages[stage] = lambda *arguments: kill_one(one(*arguments))
    list(count_slides(find_sources([slides]), model, tmp_path / "out", CONFIG, **stages))
    assert len(killed) == 1  # with parts of the slide still to do
    assert killed[0] not in cluster.client.run(os.getpid).items()
    assert contents(tmp_path / "out") == contents(whole)


def test_a_scheduler_is_joined_by_its_address_or_by_its_file(cluster, slides, model, tmp_path):
    address = cluster.client.scheduler.address
    write_json(tmp_path / "scheduler.json", {"type": "Scheduler", "address": address})
    for given in (address, str(tmp_path / "scheduler.json")):
        with open_cluster(given) as joined, open_slide(slides / "c.png") as slide:
            assert joined.n_workers == cluster.n_workers
            started = start_slide(slide, model, CONFIG, find=joined.find, judge=joined.judge)
            found = finish_slide(started, "c", model, CONFIG)
        with open_slide(slides / "c.png") as slide:
            assert found.report == count_slide(slide, "c", model, CONFIG).report


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "http://127.0.0.1:9", ""])
def test_an_address_without_a_scheduler_is_named(address):
    with pytest.raises(ClusterError, match=f"--scheduler {address}: no scheduler answers"), open_cluster(address):
        pass


@pytest.mark.parametrize("content", ['{"address": "tcp://127.0.0.1:9"}', "{}", "[]", "not JSON", '{"address": 3}'])
def test_a_scheduler_file_of_another_kind_or_of_one_that_is_gone_is_named(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ClusterError, match=r"s\.json: no scheduler answers"), open_cluster(str(tmp_path / "s.json")):
        pass


def test_without_dask_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r'pip install "mitosis-toolkit\[cluster\]"'), open_cluster(processes=1):
        pass


def test_a_model_without_a_folder_cannot_be_sent(slides, model):
    with open_slide(slides / "c.png") as slide, pytest.raises(ConfigError, match="loaded from a folder"):
        start_slide(slide, replace(model, folder=None), CONFIG, find=room.Cluster(None).find)


class Client:
    """Keeps what is handed in, and does it here when it is asked for."""

    def __init__(self, n_workers=3):
        self.n_workers, self.orders, self.cancelled, self.priorities = n_workers, [], 0, []

    def scheduler_info(self, **_):
        return {"workers": ["a", "b", "c"][: self.n_workers]}

    def map(self, work, parts, *, priority, **_):
        self.orders += [(work.func, *work.args, part) for part in parts]
        self.priorities += [priority] * len(parts)
        return [SimpleNamespace(done=lambda: False) for _ in parts]

    def cancel(self, futures):
        self.cancelled += len(futures)


def test_a_cluster_of_ours_does_not_watch_itself(cluster):
    """Nor do its workers, which are processes of their own."""

    def watching():
        from dask import config

        return [config.get("distributed.worker.profile.enabled"), config.get("distributed.admin.tick.interval")]

    assert [watching(), *cluster.client.run(watching).values()] == 3 * [[False, "1s"]]


def test_workers_of_ours_keep_to_themselves_how_they_end(cluster):
    """A heartbeat that meets a closed scheduler would else print its traceback after a run that went well."""

    def heard():
        handlers, stream = logging.getLogger("distributed").handlers, io.StringIO()
        before = [handler.setStream(stream) for handler in handlers]
        logging.getLogger("distributed.worker").error("Failed to communicate with scheduler during heartbeat.")
        for handler, own in zip(handlers, before, strict=True):
            handler.setStream(own)
        return len(handlers) > 0, stream.getvalue()

    assert list(cluster.client.run(heard).values()) == 2 * [(True, "")]


@pytest.mark.parametrize(("batch_size", "expected"), [(4, 12), (5, 10), (1, 13), (30, 30)])
def test_regions_are_whole_batches_as_without_a_cluster_the_largest_first(slides, model, batch_size, expected):
    """Batches cut another way would move the last bits of a network's output."""
    client, config = Client(), CONFIG.model_copy(update={"batch_size": batch_size})
    with open_slide(slides / "a.tif") as slide:
        started = start_slide(slide, model, config, find=room.Cluster(client, 13).find)
    regions = [tiles for _, _, tiles in client.orders]
    assert len(regions) > 1
    tiles = started.tiles
    assert set(regions) == {tiles[start : start + expected] for start in range(0, len(tiles), expected)}
    assert len(regions) == -(-len(tiles) // expected)
    pixels = [sum(math.prod(tile.window.size) for tile in region) for region in regions]
    assert pixels == sorted(pixels, reverse=True)


@pytest.mark.parametrize(
    ("n_workers", "n", "expected"),
    [(3, 100, 10 * [7] + 5 * [6]), (3, 1, [1]), (0, 9, [5, 4]), (2, 0, [0]), (9, 20, [5] * 4)],
)
def test_candidates_go_out_in_as_many_parts_for_each_worker(slides, model, n_workers, n, expected):
    client = Client(n_workers)
    candidates = Detections(np.arange(2.0 * n).reshape(-1, 2), np.full(n, 0.5), np.ones(n))
    with open_slide(slides / "a.tif") as slide:
        room.Cluster(client).judge(slide, candidates, model, CONFIG, None)
    assert [len(part) for _, _, part in client.orders] == expected


def test_candidates_go_out_in_parts_that_lie_together_and_before_tiles(slides, model):
    client = Client()
    xy = np.random.default_rng(0).uniform(0, (60_000, 5_000), (100, 2))
    candidates = Detections(xy, np.linspace(0.1, 0.9, 100), np.ones(100))
    with open_slide(slides / "a.tif") as slide:
        room.Cluster(client).find(slide, [Tile(Box(0, 0, 8, 8), Box(0, 0, 8, 8), 0.5)], model, CONFIG, None)
        room.Cluster(client).judge(slide, candidates, model, CONFIG, None)
    parts = [part for _, _, part in client.orders[1:]]
    assert len(parts) == 15
    assert sorted(map(tuple, np.concatenate([part.xy for part in parts]).tolist())) == sorted(map(tuple, xy.tolist()))
    assert np.mean([np.ptp(part.xy[:, 1]) for part in parts]) < 1500
    assert client.priorities == [0] + [1] * 15


@pytest.mark.parametrize(
    ("raised", "error", "complaint"),
    [
        (distributed.KilledWorker("task", None, 3), SlideError, r"c\.png: 4 workers ended"),
        (CancelledError("gone"), ClusterError, r"The cluster failed .*c\.png \(CancelledError: gone\)"),
        (distributed.comm.CommClosedError("gone"), ClusterError, "CommClosedError: gone.* the same command"),
        (ModuleNotFoundError("No module named 'mitosis'"), ClusterError, "on every worker"),
        (SlideError("worn out"), SlideError, "^worn out$"),
    ],
)
@pytest.mark.parametrize("stage", ["find", "judge"])
def test_what_goes_wrong_on_a_cluster_is_an_error_of_ours(slides, model, monkeypatch, stage, raised, error, complaint):
    def as_completed(futures, **_):
        if isinstance(raised, CancelledError):
            yield futures[0], raised  # so it is with dask
        raise raised

    client = Client()
    monkeypatch.setattr(distributed, "as_completed", as_completed)
    monkeypatch.setattr(client, "loop", None, raising=False)
    with open_slide(slides / "c.png") as slide:
        started = start_slide(slide, model, CONFIG, **{stage: getattr(room.Cluster(client), stage)})
        with pytest.raises(error, match=complaint):
            finish_slide(started, "c", model, CONFIG)
    assert client.cancelled == len(client.orders) > 0


@pytest.mark.parametrize("stage", ["find", "judge"])
def test_a_scheduler_that_is_lost_ends_the_run(slides, model, tmp_path, stage):
    def closed(*_, **__):
        raise distributed.client.ClosedClientError("Client is closed.")

    lost = room.Cluster(SimpleNamespace(map=closed, scheduler_info=lambda **_: {"type": "Scheduler"}))
    results = count_slides(find_sources([slides]), model, tmp_path, CONFIG, **{stage: getattr(lost, stage)})
    with pytest.raises(ClusterError, match=r"a\.tif \(ClosedClientError: Client is closed\.\)"):
        next(results)


def test_an_error_of_a_worker_fails_its_slide_and_stops_no_other(cluster, slides, model, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(slides)  # paths are made absolute, as workers are elsewhere
    orders, hand_out = [], cluster.client.map

    def spoil(work, regions, **options):
        (order,) = work.args
        orders.append(order)
        spoiled = replace(order, n_bytes=3) if order.path.stem == "a" else order
        return hand_out(partial(work.func, spoiled), regions, **options)

    monkeypatch.setattr(cluster.client, "map", spoil)
    sources = [
        SlideSource(source.path.relative_to(slides), source.slide_id, source.case_id)
        for source in find_sources([slides])
    ]
    results = list(count_slides(sources, model, tmp_path / "out", CONFIG, find=cluster.find, ahead=2))
    assert [result.status for result in results] == ["failed", "degraded", "ok", "failed"]
    assert "a.tif: is another file on" in results[0].error
    assert all(order.path.is_absolute() for order in orders)
    for name in ("b", "c"):
        assert contents(tmp_path / "out" / name) == contents(whole / name)
