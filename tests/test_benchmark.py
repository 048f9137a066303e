"""The benchmark script: its figures are there and make sense; how fast it is depends on the machine."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_load
import benchmark_network
import benchmark_points
import benchmark_read
import benchmark_slide
import large_slides
import numpy as np
import pytest
from benchmark_drawn import write_example_slide
from benchmark_figure import Figure
from conftest import busy_network, save_network
from PIL import Image

from mitosis.config import CountConfig, NetworkConfig, load_config
from mitosis.errors import ConfigError
from mitosis.inference import count_slide
from mitosis.matching import PROTOCOLS
from mitosis.slides import open_slide
from mitosis.slides.tiff import TiffSlide
from mitosis.tile_search import Model
from mitosis.tissue import find_tissue

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_read_gives_one_json_object_a_figure(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_read, "N_REGIONS", 4)
    monkeypatch.setattr(benchmark_read, "REGION", 256)
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


def test_reduced_pixels_that_show_something_else_stop_the_benchmark() -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    benchmark_read._check_likeness(grey, grey + 3)
    with pytest.raises(SystemExit, match="differ by 4"):
        benchmark_read._check_likeness(grey, grey + 4)


@pytest.mark.slow
def test_load_gives_rates_and_the_share_of_waiting(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("N_PATCHES", 4), ("N_STEPS", 1), ("ROUNDS", 1)):
        monkeypatch.setattr(benchmark_load, name, number)
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
    monkeypatch.setattr(benchmark_points, "N_POINTS", 500)
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
    monkeypatch.setattr(benchmark_network, "ROUNDS", 1)
    monkeypatch.setattr(
        benchmark_network, "shipped_models", lambda: [SimpleNamespace(name="tiny", mpp=0.5, folder=folder)]
    )
    usual = load_config(None, ("count.tile_size=384", "count.batch_size=1", "count.engine=torch"))
    monkeypatch.setattr(benchmark_network, "load_config", lambda: usual)
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
    # Of 384 px the halo leaves 384 - 2 * 72 to this network, and 384 - 2 * 144 to the other.
    assert counted["value"] / alone["value"] == pytest.approx((384 / 240) ** 2)
    assert counted["baseline"] / alone["baseline"] == pytest.approx((384 / 96) ** 2)


def test_without_json_it_prints_a_table(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = Figure("reading", 2.0, "s", 6.0, 3.0)
    monkeypatch.setitem(script["BENCHMARKS"], "read", lambda _: [figure])
    script["main"](["read"])
    assert capsys.readouterr().out.split() == ["reading", "2.00", "s", "6.00", "x3.00"]


def test_the_drawn_slide_is_an_svs_pyramid(tmp_path: Path) -> None:
    path = write_example_slide(tmp_path / "a.svs", 1024)
    with open_slide(path) as slide:
        assert slide.level_dimensions == ((1024, 1024), (256, 256), (64, 64))
        assert slide.mpp == 0.25
        assert slide.properties["vendor"] == "Aperio"
        pixels = slide.read_region((0, 0), 0, (512, 512))
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    assert red > green < blue  # purple on pink


def test_pixels_that_differ_stop_the_benchmark() -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    benchmark_read._check_pixels(grey, grey + 1)
    with pytest.raises(SystemExit, match="differ from OpenSlide's by 2"):
        benchmark_read._check_pixels(grey, grey + 2)


@pytest.fixture
def small_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_slides, "FIELD_PX", 512)


@pytest.mark.usefixtures("small_field")
def test_a_large_slide_is_a_pyramid_with_a_known_share_of_tissue(tmp_path: Path) -> None:
    path = large_slides.write_large_slide(tmp_path / "new", 2600)
    with open_slide(path) as slide:
        assert isinstance(slide, TiffSlide)
        assert slide.level_dimensions == ((2600, 2600), (650, 650))
        assert slide.mpp == 0.25
        assert slide.reductions(0) == (2, 4, 8)  # tiles of JPEG that can be decoded smaller
        share = find_tissue(slide).area_mm2 / 0.65**2
        fine = slide.read_region((0, 0), 0, (2600, 2600)).reshape(650, 4, 650, 4, 3).mean(axis=(1, 3))
        assert np.abs(fine - slide.read_region((0, 0), 1, (650, 650))).mean() < 3  # both levels show the same
    assert share == pytest.approx(large_slides.TISSUE_SHARE, abs=0.08)  # it is made of 11 x 11 tiles
    before = path.stat().st_mtime_ns
    assert large_slides.write_large_slide(tmp_path / "new", 2600) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.usefixtures("small_field")
def test_slide_sets_the_whole_beside_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("TILINGS", ((256, 2), (384, 1))),
        ("N_SAMPLE", 2),
        ("count_apart", benchmark_slide._count_here),
        ("shipped_models", list),
    ):
        monkeypatch.setattr(benchmark_slide, name, value)
    config = CountConfig(tile_size=256, engine="torch", hotspot_mm2=0.01)
    figures = list(benchmark_slide.benchmark_slide([512, 768], tmp_path, None, config, 1))
    parts = ("against the slower of both", "CPU time against that of both")
    stages = [
        f"{stage}, {what}"
        for stage in ("one stage", "two stages")
        for what in (*parts, "time a mm² of tissue", "a slide of 150 mm² of tissue")
    ]
    tilings = ["tiles of 256 px, 2 at once", "tiles of 384 px, 1 at once"]
    by_name = {figure.name: figure for figure in figures}
    assert list(by_name) == [
        "reading alone, against the network alone",
        *stages,
        *[f"one stage of the shape that is trained by default, {what}" for what in parts],
        *[f"{tiling}{what}" for tiling in tilings for what in ("", ", peak memory")],
        *[name for name in by_name if name.startswith("slide of ")],
    ]
    assert [name.split(",")[0] for name in by_name][-4:] == ["slide of 512 px"] * 2 + ["slide of 768 px"] * 2
    for figure in figures:
        assert figure.value > 0
        assert figure.ratio == pytest.approx(figure.baseline / figure.value)
    alone = by_name["reading alone, against the network alone"]
    assert by_name[stages[0]].baseline == by_name[stages[4]].baseline == max(alone.value, alone.baseline)
    assert by_name[stages[3]].value == pytest.approx(by_name[stages[2]].value * 150 / 60)
    assert by_name[tilings[0]].ratio == 1  # the baseline itself
    assert by_name["slide of 512 px, peak memory"].ratio == 1
    assert {path.name for path in tmp_path.iterdir()} == {"512.tif", "768.tif"}


@pytest.mark.usefixtures("small_field")
def test_a_random_model_finds_about_as_much_as_was_asked_for(tmp_path: Path) -> None:
    path, folder = large_slides.write_large_slide(tmp_path, 1500), tmp_path / "model"
    card = benchmark_slide.save_random_model(folder, path, NetworkConfig(width=8, depth=2))
    assert card.verifier is not None
    config = CountConfig(verify=False, engine="torch")
    with open_slide(path) as slide:
        counted = count_slide(slide, "drawn", Model.load(folder, config), config)
    per_mm2 = len(counted.candidates) / counted.tissue.area_mm2
    assert benchmark_slide.CANDIDATES_PER_MM2 / 3 < per_mm2 < benchmark_slide.CANDIDATES_PER_MM2 * 3
    assert 0 < counted.report.mitotic_count < len(counted.candidates)


@pytest.mark.slow
@pytest.mark.usefixtures("small_field")
def test_memory_is_that_of_a_process_that_does_nothing_else(tmp_path: Path, model_folder: Path) -> None:
    path = large_slides.write_large_slide(tmp_path, 1024)
    held = np.ones(100_000_000)  # 800 MB of this process are not its child's
    count = benchmark_slide.count_apart(path, model_folder, CountConfig(tile_size=128, engine="torch"))
    assert 50 < count.peak_mb < 700 + benchmark_slide.peak_mb() - held.nbytes / 1e6
    assert count.cpu_s > 0 < count.wall_s
    assert count.tissue_mm2 == pytest.approx(0.065 * large_slides.TISSUE_SHARE, rel=0.5)


def test_a_slide_may_be_put_together_of_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = tmp_path / "tissue"
    pictures.mkdir()
    with pytest.raises(ConfigError, match=r"tissue: there are no JPEG or PNG pictures"):
        large_slides.write_large_slide(tmp_path, 2600, tissue=pictures)
    greys = [60, 120, 160, 200, 90]
    for number, grey in enumerate(greys):
        noise = rng.integers(-9, 10, (300, 530, 3)) + grey
        Image.fromarray(noise.astype(np.uint8)).save(pictures / f"{number}.png")
    path = large_slides.write_large_slide(tmp_path, 2600, tissue=pictures)
    assert path == tmp_path / "2600-tissue.tif"
    with open_slide(path) as slide:
        pixels = slide.read_region((0, 0), 0, slide.dimensions)
    tiles = pixels[:2560, :2560].reshape(10, 256, 10, 256, 3).mean(axis=(1, 3, 4))
    is_tissue = tiles < 230
    assert 0.2 < is_tissue.mean() < 0.6
    chosen = np.array([[60, 120], [200, 90]])  # four of five, evenly
    expected = chosen[np.arange(10)[:, None] % 2, np.arange(10) % 2]
    np.testing.assert_allclose(tiles[is_tissue], expected[is_tissue], atol=2)
    Image.fromarray(np.zeros((100, 300, 3), np.uint8)).save(pictures / "small.png")
    with pytest.raises(ConfigError, match="a picture is smaller than 256 px"):
        large_slides.write_large_slide(tmp_path / "other", 2600, tissue=pictures)


def test_slide_takes_its_sides_from_the_command_line(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setitem(script["main"].__globals__, "benchmark_slide", lambda *given: asked.append(given) or [])
    script["main"](["slide", "--sides", "600", "700", "--cache", str(tmp_path), "--model", "mine"])
    script["main"](["slide"])
    script["main"](["slide", "--tissue", str(tmp_path)])
    assert [given[:3] for given in asked] == [([600, 700], tmp_path, "mine"), *[([20_000], None, None)] * 2]
    assert [given[-1] for given in asked] == [None, None, tmp_path]
    assert capsys.readouterr().out == ""
