"""A cluster: the same bytes as without one, also when a worker is killed, and a sentence for what is wrong with it."""

import os
import signal
import sys
from concurrent.futures import CancelledError
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import (
    MPP,
    busy_network,
    contents,
    damage_tiles,
    draw_field,
    random_places,
    save_network,
    save_slide,
    save_tiff,
)

from mitosis import cluster as room
from mitosis.checkpoints import VerifierCard, save_model, save_verifier
from mitosis.cluster import open_cluster
from mitosis.cohort import SlideSource, find_sources
from mitosis.cohort_count import count_slides
from mitosis.config import CountConfig, VerifierConfig
from mitosis.errors import ClusterError, ConfigError, ModelError, SlideError, SlideNotFoundError
from mitosis.files import write_json
from mitosis.inference import Model, count_slide, finish_slide, start_slide
from mitosis.slides import open_slide
from mitosis.verifier import Verifier

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

CONFIG = CountConfig(tile_size=128, hotspot_mm2=0.005, engine="torch", max_bad_fraction=0.5, score_floor=0.01)
SECOND = VerifierConfig(width=2, crop=32, mpp=MPP, score_floor=0.02)


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
    """Both stages with random weights, at the usual stain: each of their parts has a say in the result."""
    folder = tmp_path_factory.mktemp("model") / "run"
    network = busy_network()
    card = save_network(network, folder, threshold=0.3)
    torch.manual_seed(1)
    second = VerifierCard(settings=SECOND, classes=("mitotic figure", "other"), threshold=0.3, count_threshold=0.3)
    second = save_verifier(folder, Verifier.from_config(SECOND).eval(), second)
    shape = card.network.model_copy(update={"normalise_stain": True})
    save_model(folder, network.state_dict(), card.model_copy(update={"network": shape, "verifier": second}))
    return Model.load(folder, CONFIG)


@pytest.fixture(scope="module")
def whole(slides, model, tmp_path_factory):
    """Results without a cluster."""
    out = tmp_path_factory.mktemp("whole") / "out"
    results = list(count_slides(find_sources([slides]), model, out, CONFIG))
    assert [result.status for result in results] == ["ok", "degraded", "ok", "failed"]
    assert all(result.report.n_candidates > 5 for result in results[:3])
    return out


@pytest.mark.parametrize("ahead", [0, 2])
def test_results_are_those_without_a_cluster_to_the_byte(cluster, slides, model, whole, tmp_path, ahead):
    sources = find_sources([slides])
    list(count_slides(sources, model, tmp_path / "out", CONFIG, find=cluster.find, ahead=ahead))
    assert contents(tmp_path / "out") == contents(whole)


def test_a_killed_worker_changes_nothing(cluster, slides, model, whole, tmp_path):
    killed = []

    def find(*arguments):
        for piece in cluster.find(*arguments):
            if not killed:
                busy = {address: keys for address, keys in cluster.client.processing().items() if keys}
                address, pid = next(item for item in cluster.client.run(os.getpid).items() if item[0] in busy)
                os.kill(pid, signal.SIGKILL)
                killed.append((address, pid))
            yield piece

    list(count_slides(find_sources([slides]), model, tmp_path / "out", CONFIG, find=find))
    assert len(killed) == 1  # with regions of the slide still to do
    assert killed[0] not in cluster.client.run(os.getpid).items()
    assert contents(tmp_path / "out") == contents(whole)


def test_a_scheduler_is_joined_by_its_address_or_by_its_file(cluster, slides, model, tmp_path):
    address = cluster.client.scheduler.address
    write_json(tmp_path / "scheduler.json", {"type": "Scheduler", "address": address})
    for given in (address, str(tmp_path / "scheduler.json")):
        with open_cluster(given) as joined, open_slide(slides / "c.png") as slide:
            assert joined.n_workers == cluster.n_workers
            found = finish_slide(start_slide(slide, model, CONFIG, find=joined.find), "c", model, CONFIG)
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

    def __init__(self):
        self.orders, self.cancelled = [], 0

    def submit(self, function, order, tiles, **_):
        self.orders.append((function, order, tiles))
        return SimpleNamespace(done=lambda: False)

    def cancel(self, futures):
        self.cancelled += len(futures)


@pytest.fixture
def order(slides, model):
    """What a worker gets for a slide."""
    client = Client()
    with open_slide(slides / "c.png") as slide:
        start_slide(slide, model, CONFIG, find=room.Cluster(client, 4).find)
    yield client.orders[0][1], client.orders[0][2]
    room._load.cache_clear()


@pytest.mark.parametrize(("batch_size", "expected"), [(4, 12), (5, 10), (1, 13), (30, 30)])
def test_regions_are_whole_batches_in_the_order_of_the_grid(slides, model, batch_size, expected):
    """Batches cut another way would move the last bits of a network's output."""
    client, config = Client(), CONFIG.model_copy(update={"batch_size": batch_size})
    with open_slide(slides / "a.tif") as slide:
        started = start_slide(slide, model, config, find=room.Cluster(client, 13).find)
    regions = [tiles for _, _, tiles in client.orders]
    assert len(regions) > 1
    assert tuple(tile for region in regions for tile in region) == started.tiles
    assert {len(region) for region in regions[:-1]} == {expected}


@pytest.mark.parametrize(("name", "expected"), [(0, 0), (3, 3), ("SLURMCluster-3", None), ("tcp://host:1", None)])
def test_workers_started_here_are_numbered_so_that_each_takes_a_gpu(order, monkeypatch, name, expected):
    asked = []
    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name=name))
    monkeypatch.setattr("mitosis.tile_search.choose_device", lambda number: asked.append(number) or torch.device("cpu"))
    room._find_region(*order)
    assert asked == [expected]


def test_a_worker_loads_the_model_once(order, monkeypatch):
    loaded, load = [], room.load_model
    monkeypatch.setattr(room, "load_model", lambda folder: loaded.append(folder) or load(folder))
    for _ in range(2):
        found = room._find_region(*order)
    assert len(loaded) == 1
    assert found.n_tiles == len(order[1])
    assert len(found.detections) > 0


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"version": "0.0"}, ClusterError, r"has mitosis-toolkit \S+, and the command 0\.0"),
        (
            {"runs_on": "torch 0.1 float32"},
            ClusterError,
            r"runs networks with torch .* and the command with torch 0\.1",
        ),
        ({"weights_sha256": "abc"}, ModelError, "is another model on"),
        ({"n_bytes": 3}, SlideError, r"c\.png: is another file on"),
        ({"dimensions": (3, 4)}, SlideError, r"c\.png: is another file on"),
    ],
)
def test_a_worker_that_is_not_as_it_should_be_says_so(order, change, error, complaint):
    with pytest.raises(error, match=complaint):
        room._find_region(replace(order[0], **change), order[1])


def test_a_worker_that_sees_other_folders_says_so(order, tmp_path):
    with pytest.raises(ModelError, match=r"no model card there.* Workers need the model at the same path"):
        room._find_region(replace(order[0], folder=tmp_path), order[1])
    with pytest.raises(SlideNotFoundError, match=r"none\.svs: not to be seen on .* Workers need the same paths"):
        room._find_region(replace(order[0], path=tmp_path / "none.svs"), order[1])


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
def test_what_goes_wrong_on_a_cluster_is_an_error_of_ours(slides, model, monkeypatch, raised, error, complaint):
    def as_completed(futures, **_):
        if isinstance(raised, CancelledError):
            yield futures[0], raised  # so it is with dask
        raise raised

    client = Client()
    monkeypatch.setattr(distributed, "as_completed", as_completed)
    monkeypatch.setattr(client, "loop", None, raising=False)
    with open_slide(slides / "c.png") as slide:
        started = start_slide(slide, model, CONFIG, find=room.Cluster(client).find)
        with pytest.raises(error, match=complaint):
            finish_slide(started, "c", model, CONFIG)
    assert client.cancelled == len(client.orders) > 0


def test_a_scheduler_that_is_lost_between_two_slides_ends_the_run(slides, model, tmp_path):
    def submit(*_, **__):
        raise distributed.client.ClosedClientError("Client is closed.")

    results = count_slides(
        find_sources([slides]), model, tmp_path, CONFIG, find=room.Cluster(SimpleNamespace(submit=submit)).find
    )
    with pytest.raises(ClusterError, match=r"a\.tif \(ClosedClientError: Client is closed\.\)"):
        next(results)


def test_an_error_of_a_worker_fails_its_slide_and_stops_no_other(cluster, slides, model, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(slides)  # paths are made absolute, as workers are elsewhere
    orders, submit = [], cluster.client.submit

    def spoil(function, order, tiles, **options):
        orders.append(order)
        return submit(function, replace(order, n_bytes=3) if order.path.stem == "a" else order, tiles, **options)

    monkeypatch.setattr(cluster.client, "submit", spoil)
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
