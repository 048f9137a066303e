"""The comparison of networks: a small one from nothing to the table and the picture, and what its rows cost."""

import argparse
import csv
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mitosis.config import load_config
from mitosis.cost import Cost
from mitosis.patches import PatchIndex

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_networks.py"
SETTINGS = ("train.steps=4", "train.warmup_steps=1", "train.batch_size=2", "train.crop=32", "extract.size=64")
TWO = ("width 8, depth 3", "0.35 µm/px")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def run(script: dict[str, Any]) -> Any:
    """Call main with these words, on phantoms of a few tiles."""

    def call(*words: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("left_out.PHANTOM_SIZE", (1280, 1024))
            patch.setattr("left_out.PHANTOM_CASES", 2)
            quick = [word for setting in SETTINGS for word in ("--set", setting)]
            patch.setattr(sys, "argv", ["compare_networks.py", *words, *quick])
            script["main"]()

    return call


@pytest.fixture(scope="module")
def compared(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "out"
    run("--out", str(out), "--networks", *reversed(TWO))
    return out


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "networks.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def config(script: dict[str, Any], name: str, *settings: str, slides: tuple[str, ...] = ("a.svs",)) -> Any:
    return script["_config"](name, argparse.Namespace(slides=slides, manifest=None, config=None, set=list(settings)), 0)


@pytest.mark.slow
def test_there_is_a_row_for_each_network_with_its_cost_the_cheapest_first(compared: Path) -> None:
    small, fine = rows(compared)
    assert [(row["network"], row["seed"], row["mpp"]) for row in (small, fine)] == [
        ("width 8, depth 3", "0", "0.5"),
        ("0.35 µm/px", "0", "0.35"),
    ]
    assert (small["n_parameters"], fine["n_parameters"]) == ("122474", "488018")
    assert float(fine["gflop_per_mm2"]) == pytest.approx(81.568 / 0.35**2, abs=0.01)
    for row in (small, fine):
        assert all(0 <= float(row[figure]) <= 1 for figure in ("f1", "average_precision", "recall_at_1_fp_mm2"))


@pytest.mark.slow
def test_the_patches_show_the_same_tissue_at_any_resolution(compared: Path) -> None:
    usual, fine = (PatchIndex.read(compared / "patches" / mpp) for mpp in ("0.5", "0.35"))
    assert {patch.size for patch in usual.patches} == {64}
    assert {patch.size for patch in fine.patches} == {96}  # 64 * 0.5 / 0.35 = 91.4, to the next multiple of 16
    assert usual.cases == fine.cases == ["case0", "case1"]


@pytest.mark.slow
def test_the_table_and_the_picture_are_there(compared: Path) -> None:
    head, _, small, fine = (compared / "networks.md").read_text().splitlines()
    assert head.count("|") == small.count("|") == fine.count("|") == 9
    assert small.startswith("| width 8, depth 3 | 1 | 0.5 | 122,474 | 82 | ")
    with Image.open(compared / "networks.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_says_the_same(
    compared: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (compared / "networks.csv").read_bytes()

    def refuse(*_words: Any, **_settings: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("mitosis.training.train", refuse)
    run("--out", str(compared), "--networks", *TWO)
    assert (compared / "networks.csv").read_bytes() == before


def test_every_network_has_settings_of_its_own_and_phantom_settings_change_no_network(script: dict[str, Any]) -> None:
    configs = {name: config(script, name) for name in script["NETWORKS"]}
    shapes = {name: (found.network, found.extract.mpp) for name, found in configs.items()}
    assert len(set(shapes.values())) == len(shapes)
    assert {found.network.block for found in configs.values()} == set(script["COLOURS"])
    assert configs["width 16, depth 3"] == load_config()
    phantom = {name: config(script, name, slides=()) for name in script["NETWORKS"]}
    assert shapes == {name: (found.network, found.extract.mpp) for name, found in phantom.items()}


def test_a_network_of_other_blocks_costs_about_what_its_plain_fellow_does(script: dict[str, Any]) -> None:
    costs = {name: script["cost_of"](config(script, name)) for name in script["NETWORKS"]}
    for plain, others in (
        ("width 16, depth 3", ("separable, width 45", "inverted, width 17")),
        ("width 8, depth 3", ("separable, width 22", "inverted, width 8")),
    ):
        for other in others:
            assert costs[other].gflop_per_mpx == pytest.approx(costs[plain].gflop_per_mpx, rel=0.12), other
            assert costs[other].n_parameters == pytest.approx(costs[plain].n_parameters, rel=0.12), other


def test_at_a_finer_resolution_patches_and_crops_have_more_pixels(script: dict[str, Any]) -> None:
    """Also those that the user chose; and each fits every depth."""
    usual, fine = config(script, "3 classes"), config(script, "0.25 µm/px")
    assert (fine.extract.size, fine.train.crop, fine.extract.jitter) == (512, 384, 48)
    assert (usual.extract.size, usual.train.crop, usual.extract.jitter) == (256, 192, 24)
    mid = config(script, "0.35 µm/px", "extract.size=128", "train.crop=96")
    assert (mid.extract.size, mid.train.crop) == (176, 144)
    same = config(script, "0.25 µm/px", "extract.mpp=0.25", "extract.size=128", "train.crop=96")
    assert (same.extract.size, same.train.crop) == (128, 96)


def test_names_in_the_picture_cover_neither_points_nor_each_other(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ten networks of nearly one cost and one F1, as crowded as it may get."""
    drawn = {}
    label = script["draw"].__globals__["_label"]

    def keep(panel: Any, points: Any) -> None:
        label(panel, points)
        drawn[panel] = points

    monkeypatch.setitem(script["draw"].__globals__, "_label", keep)
    outcome, row = script["Outcome"], script["Row"]
    crowd = [
        row(config(script, name), Cost(1000, 80 + n), [outcome(name, 0, 1.0, 0.0, 0.5 + n / 500, 0.4, 0.3)])
        for n, name in enumerate(list(script["NETWORKS"])[:10])
    ]
    script["draw"](tmp_path / "crowd.png", crowd)
    for panel, points in drawn.items():
        texts = [text for text in panel.texts if text.get_text()]
        boxes = [text.get_window_extent() for text in texts]
        assert [text.get_text() for text in texts] == [name for name, *_ in points]
        assert not any(box.overlaps(other) for n, box in enumerate(boxes) for other in boxes[:n])
        places = panel.transData.transform([at for _, *at in points])
        assert not any(box.contains(*place) for box in boxes for place in places)


@pytest.mark.slow
def test_a_manifest_and_a_file_of_settings_do_as_well(run: Any, compared: Path, tmp_path: Path) -> None:
    phantom = compared / "phantom"
    lines = [f"{slide},{slide.stem},{phantom / 'truth' / slide.stem}.csv" for slide in (phantom / "slides").iterdir()]
    (tmp_path / "fields.csv").write_text("\n".join(["slide,case,annotations", *lines]))
    (tmp_path / "settings.yaml").write_text("network: {width: 2, depth: 1}\n")
    words = ("--manifest", str(tmp_path / "fields.csv"), "--config", str(tmp_path / "settings.yaml"))
    run(*words, "--out", str(tmp_path / "out"), "--networks", "3 classes")
    assert [(row["network"], row["mpp"]) for row in rows(tmp_path / "out")] == [("3 classes", "0.5")]
    assert not (tmp_path / "out" / "phantom").exists()


def test_slides_without_marks_are_refused(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_networks.py", "a.svs", "--out", "out"])
    with pytest.raises(SystemExit):
        script["main"]()
    assert re.search("SLIDES need --annotations", capsys.readouterr().err)
