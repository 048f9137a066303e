"""The benchmarks against peers, without the peers: who is asked for what, what is compared, what stops it."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import benchmark
import benchmark_engine
import benchmark_extract
import benchmark_peers
import large_slides
import numpy as np
import pytest
from benchmark_peers import Apart
from conftest import busy_network, save_network
from PIL import Image

from mitosis.checkpoints import load_model, save_model
from mitosis.config import load_config
from mitosis.errors import ConfigError
from mitosis.quantization import Ranges

Calls = list[tuple[str, Mapping[str, Any], str]]


@pytest.fixture(autouse=True)
def small_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_slides, "FIELD_PX", 512)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Workers do their jobs in this process; those who are not installed write what OpenSlide and Pillow write."""
    calls: Calls = []

    def run(worker: str, job: Mapping[str, Any], python: Path | str = sys.executable) -> Apart:
        calls.append((worker, job, str(python)))
        if worker == "tiatoolbox_count":
            return Apart(40.0, 30.0, 800.0, 5)
        away = worker in benchmark_extract.THERE.values()
        n = benchmark_peers.WORKERS["openslide_pillow" if away else worker](job)()
        return Apart(2.0, 1.0, 100.0, n)

    monkeypatch.setattr(benchmark_extract, "run_apart", run)
    monkeypatch.setattr(benchmark_engine, "run_apart", run)
    return calls


def asked(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"side": 1024, "rounds": 2, "peer_python": None, "model": None, **changes})


def test_extract_takes_turns_on_the_same_patches(here: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    figures = list(benchmark_extract.benchmark_extract(asked()))
    assert "pyvips" in (said := capsys.readouterr().err)
    assert "--peer-python" in said
    peers = ["OpenSlide and Pillow", "OpenSlide and OpenCV"]
    kinds = ("", ", wall", ", wall, two workers", ", memory", ", size of the files")
    assert [f.name for f in figures] == [f"patches of 512 px, against {peer}{kind}" for peer in peers for kind in kinds]
    first, second = here[:4], here[4:]
    assert [worker for worker, _, _ in first] == ["mitosis_patches"] * 2 + ["openslide_pillow", "openslide_opencv"]
    assert [worker for worker, _, _ in second] == ["mitosis_patches", "openslide_pillow", "openslide_opencv"] + [
        "mitosis_patches"
    ]
    n = [len(job["corners"]) for worker, job, _ in here if worker == "openslide_pillow"]
    cpu, wall, _, memory, size = figures[:5]
    assert cpu.value == pytest.approx(np.median(1000 / np.array(n)))
    assert wall.value == pytest.approx(2 * cpu.value)
    assert [f.unit for f in figures[:5]] == ["CPU ms/patch", "ms/patch", "ms/patch", "MB", "kB/patch"]
    assert memory.value == memory.baseline == 100
    assert cpu.ratio == 1
    assert 200 < size.value < 512 * 512 * 3 / 1000


@pytest.mark.usefixtures("here")
def test_other_patches_stop_extract(monkeypatch: pytest.MonkeyPatch) -> None:
    def darker(job: Mapping[str, Any], shift: int) -> Any:
        def work() -> int:
            n = benchmark_peers._openslide_pillow(job)()
            for file in Path(job["out"]).iterdir():
                Image.fromarray(np.asarray(Image.open(file)) - np.uint8(shift)).save(file)
            return n

        return work

    def one_less(job: Mapping[str, Any]) -> Any:
        return lambda: benchmark_peers._openslide_pillow({**job, "corners": job["corners"][1:]})()

    workers = benchmark_peers.WORKERS
    monkeypatch.setitem(workers, "openslide_opencv", lambda job: darker(job, 1))
    assert list(benchmark_extract.benchmark_extract(asked(rounds=1)))
    monkeypatch.setitem(workers, "openslide_opencv", lambda job: darker(job, 3))
    with pytest.raises(SystemExit, match="OpenCV: pixels differ from ours by"):
        list(benchmark_extract.benchmark_extract(asked(rounds=1)))
    monkeypatch.setitem(workers, "openslide_opencv", one_less)
    with pytest.raises(SystemExit, match="OpenCV wrote"):
        list(benchmark_extract.benchmark_extract(asked(rounds=1)))


def test_peers_of_extract_run_with_their_own_interpreter(here: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    figures = list(benchmark_extract.benchmark_extract(asked(rounds=1, peer_python=Path("peer/python"))))
    assert capsys.readouterr().err == ""
    pythons = {worker: python for worker, _, python in here}
    assert {worker for worker, python in pythons.items() if python == str(Path("peer/python"))} == {
        "tiatoolbox_patches",
        "pyvips",
        "pyvips_opencv",
    }
    assert pythons["mitosis_patches"] == pythons["openslide_opencv"] == sys.executable
    assert {f.name.split("against ")[1].split(",")[0] for f in figures} == {
        *benchmark_extract.HERE,
        *benchmark_extract.THERE,
    }


@pytest.fixture
def tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tiny"
    save_network(busy_network(depth=1, width=2), folder)
    usual = load_config(None, ("count.tile_size=256", "count.engine=torch", "count.hotspot_mm2=0.01"))
    monkeypatch.setattr(benchmark_engine, "load_config", lambda: usual)
    return folder


@pytest.mark.usefixtures("tiny_model")
def test_engine_holds_each_of_ours_against_its_peer(here: Calls, tiny_model: Path) -> None:
    figures = {
        f.name: f
        for f in benchmark_engine.benchmark_engine(asked(rounds=1, model=str(tiny_model), peer_python=Path("peer")))
    }
    assert len(here) == 6
    same, plain = (job for worker, job, python in here if worker == "tiatoolbox_count" and python == "peer")
    assert (same["mpp"], same["network"]["width"], same["margin"]) == (0.5, 2, 10)
    assert (plain["mpp"], plain["network"]["width"], plain["network"]["depth"]) == (0.25, 16, 4)
    assert same["tile_size"] == plain["tile_size"] == 256
    names = [f"{own}, against {peer}" for own, peer in benchmark_engine.ROWS if "int8" not in own]
    assert list(figures) == [f"{name}{kind}" for name in names for kind in ("", ", wall", ", memory")]
    assert [figures[name].ratio for name in names] == [30] * 4
    assert [figures[f"{name}, wall"].ratio for name in names] == [20] * 4
    assert [figures[f"{name}, memory"].ratio for name in names] == [8] * 4
    assert figures[names[0]].value * figures[f"{names[0]}, wall"].value > 0


@pytest.mark.usefixtures("here")
def test_engine_without_peers_compares_ours_with_each_other(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = list(benchmark_engine.benchmark_engine(asked(rounds=1, model=str(tiny_model))))
    assert "TIAToolbox: left out" in capsys.readouterr().err
    others = [own for own, _ in benchmark_engine.ROWS[1:] if "int8" not in own]
    assert [f.name for f in figures[::3]] == [f"{own}, against one stage, float32" for own in others]


@pytest.mark.parametrize(("ranges", "exact"), [({}, True), ({"head": (0.0, 1.0)}, True), ({"head": (0.0, 1.0)}, False)])
def test_engine_asks_in_int8_what_the_card_and_the_processor_allow(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ranges: Ranges,
    exact: bool,
) -> None:
    def check(_engine: str) -> None:
        if not exact:
            raise ConfigError("This processor is not exact.")

    monkeypatch.setattr(benchmark_engine, "check_processor", check)
    network, card = load_model(tiny_model)
    save_model(tiny_model, network.state_dict(), card.model_copy(update={"int8_ranges": ranges}))
    contenders = benchmark_engine._contenders(tmp_path / "slide.tif", str(tiny_model), None)
    expected = [own for own, _ in benchmark_engine.ROWS if (ranges and exact) or "int8" not in own]
    assert sorted(contenders) == sorted(expected)
    assert ("int8: left out. This processor is not exact." in capsys.readouterr().err) == (not exact)


def test_a_process_says_what_it_took_or_why_it_failed(tmp_path: Path) -> None:
    path = large_slides.write_large_slide(tmp_path, 1024)
    (tmp_path / "out").mkdir()
    job = {"slide": str(path), "out": str(tmp_path / "out"), "size": 512, "corners": [[0, 0], [512, 512]]}
    held = np.ones(100_000_000)  # 800 MB of this process are not its child's
    apart = benchmark_peers.run_apart("openslide_pillow", job)
    assert apart.n == len(list((tmp_path / "out").iterdir())) == 2
    assert apart.wall_s > 0 < apart.cpu_s
    assert 10 < apart.peak_mb < held.nbytes / 1e6
    with pytest.raises(SystemExit, match=r"openslide_pillow failed \(.*Unsupported or missing"):
        benchmark_peers.run_apart("openslide_pillow", job | {"slide": str(tmp_path / "gone.tif")})


def test_options_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setitem(benchmark.BENCHMARKS, "extract", lambda given: seen.append(given) or [])
    benchmark.main(["extract", "--peer-python", "peer/python", "--rounds", "2"])
    benchmark.main(["extract"])
    assert [(given.peer_python, given.rounds) for given in seen] == [(Path("peer/python"), 2), (None, 3)]
