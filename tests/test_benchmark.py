"""The benchmark script: its figures are there and make sense; how fast it is depends on the machine."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import busy_network, save_network

from mitosis.config import load_config
from mitosis.matching import PROTOCOLS
from mitosis.slides import open_slide

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_read_gives_one_json_object_a_figure(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(script["main"].__globals__, "N_REGIONS", 4)
    monkeypatch.setitem(script["main"].__globals__, "REGION", 256)
    script["main"](["read", "--json", "--side", "1024"])
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [figure["name"] for figure in figures] == [
        "tiles in order, against openslide",
        "tiles in order, against decoding",
        "random 256 px, against openslide",
        "random 256 px, against decoding",
        "0.25 at 0.5 µm/px, against full tiles",
        "0.25 at 0.5 µm/px, against decoding",
        "0.2456 at 0.5 µm/px, against full tiles",
        "0.2456 at 0.5 µm/px, against decoding",
    ]
    for figure in figures:
        assert figure["unit"] == "CPU ms/Mpx"
        assert figure["ratio"] == pytest.approx(figure["baseline"] / figure["value"])
        assert figure["value"] > 0


def test_reduced_pixels_that_show_something_else_stop_the_benchmark(script: dict[str, Any]) -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    script["_check_likeness"](grey, grey + 3)
    with pytest.raises(SystemExit, match="differ by 4"):
        script["_check_likeness"](grey, grey + 4)


@pytest.mark.slow
def test_load_gives_rates_and_the_share_of_waiting(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("N_PATCHES", 4), ("N_STEPS", 1), ("ROUNDS", 1)):
        monkeypatch.setitem(script["main"].__globals__, name, number)
    script["main"](["load", "--json"])
    light, heavy, waiting = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert light["unit"] == heavy["unit"] == "patches/s"
    assert light["baseline"] == heavy["baseline"] > light["value"] > 0
    assert heavy["ratio"] == pytest.approx(heavy["value"] / heavy["baseline"])
    assert 0 < waiting["value"] < 100


def test_evaluate_times_every_protocol_and_the_curve(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    script["main"](["evaluate", "--json", "--detections", "2000"])
    *times, memory = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {figure["name"].split(",")[0] for figure in times} == {*PROTOCOLS, "every threshold"}
    assert all(figure["unit"] == "CPU s" and figure["value"] > 0 for figure in times)
    assert memory["unit"] == "MB"
    assert memory["baseline"] == pytest.approx((200 * 2 + 2000 * 3) * 8 / 1e6)


def test_hotspot_times_both_shapes(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(script["main"].__globals__, "N_POINTS", 500)
    script["main"](["hotspot", "--json"])
    rectangle, disc = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert rectangle["name"].startswith("rectangle, 500 points")
    assert rectangle["value"] > 0 < disc["value"]
    assert rectangle["baseline"] == disc["baseline"] > 0


@pytest.mark.slow
def test_network_times_the_default_and_shipped_ones_against_the_usual_u_net(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    save_network(busy_network(depth=1, width=2), folder)
    parts = script["main"].__globals__
    monkeypatch.setitem(parts, "ROUNDS", 1)
    monkeypatch.setitem(parts, "shipped_models", lambda: [SimpleNamespace(name="tiny", mpp=0.5, folder=folder)])
    usual = load_config(None, ("count.tile_size=384", "count.batch_size=1", "count.engine=torch"))
    monkeypatch.setitem(parts, "load_config", lambda: usual)
    script["main"](["network", "--json"])
    figures = {figure.pop("name"): figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}
    timed = [f"{precision}, {what}" for precision in ("float32", "bfloat16") for what in ("as counted", "without halo")]
    assert list(figures) == [
        f"{who}, {what}" for who in ("default network", "shipped tiny") for what in ("GFLOP", *timed)
    ]
    for figure in figures.values():
        assert figure["ratio"] == pytest.approx(figure["baseline"] / figure["value"])
    assert figures["default network, GFLOP"]["ratio"] == pytest.approx(5.24, abs=0.01)  # 1711 / 326
    counted, alone = (figures[f"default network, float32, {what}"] for what in ("as counted", "without halo"))
    # Of 384 px the halo leaves 384 - 2 * 80 to this network, and 384 - 2 * 160 to the other.
    assert counted["value"] / alone["value"] == pytest.approx((384 / 224) ** 2)
    assert counted["baseline"] / alone["baseline"] == pytest.approx((384 / 64) ** 2)


def test_without_json_it_prints_a_table(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = script["Figure"]("reading", 2.0, "s", 6.0, 3.0)
    monkeypatch.setitem(script["BENCHMARKS"], "read", lambda _: [figure])
    script["main"](["read"])
    assert capsys.readouterr().out.split() == ["reading", "2.00", "s", "6.00", "x3.00"]


def test_the_drawn_slide_is_an_svs_pyramid(script: dict[str, Any], tmp_path: Path) -> None:
    path = script["write_example_slide"](tmp_path / "a.svs", 1024)
    with open_slide(path) as slide:
        assert slide.level_dimensions == ((1024, 1024), (256, 256), (64, 64))
        assert slide.mpp == 0.25
        assert slide.properties["vendor"] == "Aperio"
        pixels = slide.read_region((0, 0), 0, (512, 512))
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    assert red > green < blue  # purple on pink


def test_pixels_that_differ_stop_the_benchmark(script: dict[str, Any]) -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    script["_check_pixels"](grey, grey + 1)
    with pytest.raises(SystemExit, match="differ from OpenSlide's by 2"):
        script["_check_pixels"](grey, grey + 2)
