"""The recipe of the shipped model, with networks and data that are very small: from three collections to a card."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import crop_mosaics
import numpy as np
import pytest
import release_report
import train_release
from conftest import draw_field, random_places
from crop_candidates import stain_beside_figures, write_crop_candidates
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mitosis.checkpoints import load_gate, load_model, load_verifier
from mitosis.cohort import SlideSource
from mitosis.config import VerifierConfig
from mitosis.crops import FIGURE, OTHER, CandidateSet
from mitosis.detections import Detections
from mitosis.errors import ConfigError, OutputError
from mitosis.files import make_folder, sha256, sole_writer, write_json, write_text
from mitosis.inference import Model, count_slide
from mitosis.ranking import SlideScores
from mitosis.score_calibration import UNCALIBRATED
from mitosis.slides import open_slide
from mitosis.stain import stain_levels

QUICK = (
    "extract.size=64",
    "extract.jitter=8",
    "network.width=2",
    "network.depth=1",
    "train.steps=30",
    "train.learning_rate=0.02",
    "train.ema_decay=0.5",
    "train.warmup_steps=1",
    "train.validate_every=30",
    "train.batch_size=8",
    "train.crop=32",
    "verifier.width=8",
    "verifier.gate_width=8",
    "verifier.crop=32",
    "verifier.steps=2",
    "verifier.score_floor=0.001",
    "verifier.batch_size=8",
    "verifier.max_per_slide=20",
    "count.tile_size=256",
    "count.score_floor=0.001",
)
FIELDS = ("A00_01", "A03_01", "A01_01", "A02_01", "H03_00Aa", "H05_00Aa", "H12_00Aa")
CROPS = [*(("MIDOG21", f"{n:03}.tiff") for n in (14, 64, 114, 1, 2, 3)), ("TUPAC16", "16_stitched1.tif")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three collections in their own formats, drawn."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("mitos12", "atypia14", "amibr"):
        (folder / part).mkdir()
    for seed, name in enumerate(FIELDS):
        places = random_places(5, seed, 420, 420, border=30, apart=90)
        image = draw_field(places[:3], places[3:], 420, 420, seed=seed, radius=14)
        part = folder / ("mitos12" if name[0] == "A" else "atypia14")
        Image.fromarray(image).save(part / f"{name}.png")
        if name[0] == "A":
            lines = [_pixels_of(x, y) for x, y in places[:3]]
            (part / f"{name}.csv").write_text("\n".join(lines) + "\n")
        else:
            for kind, chosen in (("mitosis", places[:3]), ("not_mitosis", places[3:])):
                text = "".join(f"{x:.0f},{y:.0f},0.8\n" for x, y in chosen)
                (part / f"{name}_{kind}.csv").write_text(text)
    rows = ["file,dataset,slide,kind,expert1,expert2"]
    for number, (dataset, slide) in enumerate(CROPS):
        for n in range(2):
            name = f"{dataset}_{number}_{n}.png"
            picture = draw_field([(64, 64), (94, 96)], (), 128, 128, seed=n, radius=14)
            Image.fromarray(picture).save(folder / "amibr" / name)
            rows.append(f"{name},{dataset},{slide},normal,,")
    (folder / "amibr" / "crops.csv").write_text("\n".join(rows) + "\n")
    return folder


def _pixels_of(x: float, y: float) -> str:
    square = [(round(x) + i, round(y) + j) for j in range(-8, 9) for i in range(-8, 9)]
    return ",".join(f"{column},{row}" for column, row in square)


@pytest.fixture(scope="module")
def released(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("release")
    for name, text in (("networks/networks.csv", "network,f1\nwidth 8,0.41234\n"), ("networks/networks.png", "png")):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    _run(data, out, "--folds", "a", "from-aperio", "all")
    return out


def _run(data: Path, out: Path, *words: str) -> None:
    options = [word for setting in QUICK for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_release.py", str(data), "--out", str(out), *words, *options])
        train_release.main()


@pytest.mark.slow
def test_no_model_of_a_fold_has_seen_what_it_left_out(released: Path) -> None:
    _, card = load_model(released / "a" / "both")
    left_out = {row["case"] for row in json.loads((released / "a" / "both.json").read_text())}
    assert {"00", "03"} <= left_out
    assert not left_out & set(card.training["cases"])
    assert card.training["cases"] == ["01", "02", "05", "12"]
    assert card.verifier is not None
    crops = {case for case in card.verifier.training["cases"] if not case.isdigit()}
    assert crops
    assert not crops & {*left_out, *train_release.VALIDATION}


@pytest.mark.slow
def test_the_second_stage_learns_from_crops_as_from_auxiliary_domains(released: Path) -> None:
    _, card = load_model(released / "a" / "both")
    assert card.verifier is not None
    manifest = (released / "data" / "mosaics" / "manifest.csv").read_text().splitlines()
    scanners = {line.split(",")[2] for line in manifest[1:]}
    assert scanners == set(card.verifier.settings.auxiliary_domains)
    assert card.verifier.settings.members == 2


@pytest.mark.slow
def test_the_second_stage_learns_from_a_scout_and_stands_behind_the_first_stage_that_ships(released: Path) -> None:
    fold = released / "a"
    (scout, _), (first, _) = (load_model(fold / name) for name in ("scout-base", "base"))
    assert (scout.width, first.width) == (4, 2)
    digest = sha256(fold / "scout-base" / "model.safetensors")
    assert {row.model_sha256 for row in CandidateSet.read(fold / "candidates").candidates} == {digest}
    for name, source in (("model", "base"), ("verifier", "scout-both"), ("gate", "scout-both")):
        assert sha256(fold / "both" / f"{name}.safetensors") == sha256(fold / source / f"{name}.safetensors")
    _, card = load_model(fold / "both")
    assert set(card.training["source_sha256"]) >= set(load_model(fold / "scout-both")[1].training["source_sha256"])


@pytest.mark.slow
def test_the_shipped_model_holds_what_the_left_out_cases_say(released: Path) -> None:
    network, card = load_model(released / "default")
    assert card.verifier is not None
    assert load_verifier(released / "default", card) is not None
    scores, calibration = release_report.read_stage(released, "both"), card.verifier.score_calibration
    assert calibration != UNCALIBRATED
    slides = [train_release.calibrated(slide, calibration) for slide in scores]
    quality = release_report.Quality.of(slides)
    assert (card.verifier.threshold, card.verifier.count_threshold) == (quality.threshold, quality.count_threshold)
    assert card.verifier.validation["both_stages"]["f1"] == round(quality.scores["all"].pooled.result.f1, 4)
    assert {row["case"] for row in card.verifier.validation["calibration"]} == {"00", "03"}
    names = [row["detector"] for row in card.verifier.validation["beside_detectors_that_know_nothing"]]
    assert names == ["never fires", "fires on every dark nucleus", "this model"]
    assert network.width == 2


@pytest.mark.slow
def test_the_shipped_model_has_a_gate_and_the_card_tells_what_it_loses(released: Path) -> None:
    _, card = load_model(released / "default")
    assert card.verifier is not None
    assert load_gate(released / "default", card) is not None
    gated, ungated = (release_report.read_stage(released, stage) for stage in ("both", release_report.UNGATED))
    assert [slide.slide for slide in gated] == [slide.slide for slide in ungated]
    found = card.verifier.validation["gate"]
    assert 0 < found["fields_found"] <= sum(len(slide.figures) for slide in ungated if slide.domain == "aperio")
    assert 0 <= found["fields_lost"] <= found["fields_found"]


def test_a_gate_loses_what_is_found_without_it_alone(tmp_path: Path) -> None:
    row = {"slide": "A00_01", "case": "00", "domain": "aperio", "slide_mpp": 0.25, "area_mm2": 1.0, "look_alikes": []}
    crop = {**row, "slide": "x", "domain": "tupac", "figures": [[9, 9]], "xy": [[9, 9]], "score": [0.8]}
    figures = {"figures": [[100, 100], [300, 300], [500, 500]]}
    gated = {**row, **figures, "xy": [[100, 104], [700, 700]], "score": [0.9, 0.3]}
    ungated = {**row, **figures, "xy": [[100, 104], [300, 290], [500, 500]], "score": [0.9, 0.8, 0.01]}
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "both.json", [gated, {**crop, "xy": [], "score": []}])
    write_json(tmp_path / "a" / "both-ungated.json", [ungated, crop])
    expected = {"fields_found": 2, "fields_lost": 1, "crops_found": 1, "crops_lost": 1}
    assert release_report.gate_losses(tmp_path) == expected


@pytest.mark.slow
def test_the_card_tells_what_else_was_asked(released: Path) -> None:
    _, card = load_model(released / "default")
    assert card.verifier is not None
    found = card.verifier.validation
    assert set(found["learned_from_aperio_alone"]["cases"]) == {"05", "12"}
    assert found["networks_tried"] == [{"network": "width 8", "f1": 0.4123}]
    assert not {"fields_of_known_cases", "learned_from_hamamatsu_alone", "first_stage_ablation"} & set(found)
    assert (released / "default" / "networks.png").read_text() == "png"


@pytest.mark.slow
def test_the_card_waits_for_the_folds_that_another_command_is_still_busy_with(released: Path, tmp_path: Path) -> None:
    fold = released / "from-aperio"
    assert fold.joinpath("both.json").stat().st_mtime_ns > fold.joinpath("both-ungated.json").stat().st_mtime_ns
    for part in range(4):
        write_text(make_folder(tmp_path / f"within-{part}") / "both.json", (fold / "both.json").read_text())
    assert train_release._further(tmp_path) == {}


@pytest.mark.slow
def test_a_case_of_digits_is_not_taken_for_one_of_the_users(released: Path) -> None:
    _, card = load_model(released / "default")
    assert not card.has_seen("01", "")
    assert card.has_seen("MITOS 01", "")


@pytest.mark.slow
def test_the_shipped_model_counts(released: Path, data: Path) -> None:
    model = Model.load(released / "default")
    with open_slide(data / "mitos12" / "A00_01.png", 0.2456) as slide:
        counted = count_slide(slide, "A00_01", model, train_release.load_config(None, ("count.tile_size=256",)).count)
    assert counted.report.verifier_sha256 == model.card.verifier.weights_sha256  # type: ignore[union-attr]  # it has one


@pytest.mark.slow
def test_crowds_are_discounted_on_fields_but_not_in_a_mosaic_whose_crops_stand_close(
    released: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowding, predictions = dict[str, float](), released / "a" / "both.json"

    def spy(slide: Any, name: str, model: Model, *others: Any, **named: Any) -> Any:
        assert model.card.verifier is not None
        crowding[name] = model.card.verifier.settings.crowding
        return count_slide(slide, name, model, *others, **named)

    before = predictions.read_bytes()
    predictions.unlink()
    monkeypatch.setattr(train_release, "count_slide", spy)
    _run(data, released, "--folds", "a")
    assert predictions.read_bytes() == before
    fields = {name for name in crowding if name in FIELDS}
    assert {crowding[name] for name in fields} == {1.5}
    assert {crowding[name] for name in crowding.keys() - fields} == {0.0}


@pytest.mark.slow
def test_the_same_command_does_nothing_twice(released: Path, data: Path) -> None:
    files = [path for path in released.rglob("*") if path.is_file() and path.parent.name in ("base", "both", "a")]
    before = {path: path.stat().st_mtime_ns for path in files}
    _run(data, released, "--folds", "a", "all")
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.slow
def test_others_wait_while_a_command_makes_the_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl", reason="folders cannot be locked here")
    out, held, waits = tmp_path / "data", list[bool](), list[bool]()

    def is_held() -> bool:
        try:
            with sole_writer(out):
                return False
        except OutputError:
            return True

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *words: held.append(is_held()) or work(*words)

    def writer(folder: Path, *, wait: bool = False) -> AbstractContextManager[None]:
        waits.append(wait)
        return sole_writer(folder, wait=wait)

    monkeypatch.setattr(train_release, "sole_writer", writer)
    for name in ("write_mosaics", "extract_patches"):
        monkeypatch.setattr(train_release, name, noted(getattr(train_release, name)))
    patches = train_release.Data(data, out, train_release.load_config(None, QUICK)).patches
    assert held == [True] * 4
    assert waits == [True] * 2
    assert not is_held()
    assert len(patches.patches) > len(FIELDS)
    assert train_release.Data(data, out, train_release.load_config(None, QUICK)).patches == patches


@pytest.mark.slow
def test_the_report_has_a_table_a_stage(
    released: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["release_report.py", str(released)])
    release_report.main()
    text = capsys.readouterr().out
    assert "first stage" in text
    assert "with second stage" in text
    assert "after mining" not in text


def _crops(n: int) -> list[Any]:
    """Crops of one grey each, with a red pixel in the middle."""
    crops = []
    for number in range(n):
        crop = np.full((128, 128, 3), 40 + number, np.uint8)
        crop[63:65, 63:65] = (255, 0, 0)
        crops.append(crop)
    return crops


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_mosaic_shows_every_crop_and_says_where_its_middle_is(n: int, seed: int) -> None:
    mosaic, places = crop_mosaics._mosaic(_crops(n), np.random.default_rng(seed))
    red = (mosaic[..., 0] == 255) & (mosaic[..., 1] == 0)
    assert red.sum() == 4 * len(places)
    assert all(red[y - 1 : y + 1, x - 1 : x + 1].all() for x, y in places)
    around = {int(mosaic[y - 10, x - 10, 1]) for x, y in places}
    assert around == set(range(40, 40 + n))


def test_a_mosaic_is_filled() -> None:
    mosaic, _ = crop_mosaics._mosaic(_crops(7), np.random.default_rng(0))
    assert mosaic.shape[1] == crop_mosaics.MOSAIC_WIDTH
    assert mosaic.max(axis=2).min() >= 40
    assert not (mosaic == 255).all(axis=2).any()


def test_figures_and_dark_nuclei_beside_them_become_candidates(tmp_path: Path) -> None:
    rows = ["file,dataset,slide,kind,expert1,expert2"]
    for number, beside in enumerate([(94, 96), (70, 75), (32, 94)]):  # the second is too near
        picture = draw_field([(64, 64), beside], (), 128, 128, seed=number, radius=9)
        picture[:, :10] = number  # beyond the slide
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,MIDOG21,007.tiff,normal,,")
    (tmp_path / "crops.csv").write_text("\n".join(rows) + "\n")
    Image.fromarray(draw_field([(64, 64)], (), 128, 128)).save(tmp_path / "mosaic.png")
    slide = SlideSource(tmp_path / "mosaic.png", "MIDOG21_007", "MIDOG21_007", "midog-xr")
    found = write_crop_candidates(tmp_path, [slide], tmp_path / "out", VerifierConfig(crop=32), "sha")
    places = [(candidate.label, candidate.x, candidate.y) for candidate in found.candidates]
    assert [label for label, _, _ in places] == [FIGURE, OTHER, FIGURE, FIGURE, OTHER]
    others = np.array([place[1:] for place in places if place[0] == OTHER])
    np.testing.assert_allclose(others, [(94, 96), (32, 94)], atol=2)
    assert {candidate.source_sha256 for candidate in found.candidates} == {sha256(tmp_path / "mosaic.png")}
    slide_of = found.slides["MIDOG21_007"]
    assert (slide_of.domain, slide_of.split, slide_of.n_crops) == ("midog-xr", "train", 5)
    assert slide_of.area_mm2 == pytest.approx(3 * 0.032**2)
    crops = [found.crop(candidate) for candidate in found.candidates]
    assert {crop.shape for crop in crops} == {(48, 48, 3)}
    assert max(int(crop[20:28, 20:28, 0].max()) for crop in crops) < int(crops[0][0].mean())
    edge = crops[-1][:, 0]  # the last reaches over what is beyond the slide
    assert (edge == 255).all()


def test_stain_of_crops_is_measured_beside_their_figures(tmp_path: Path) -> None:
    for name, radius in (("without", 0), ("with", 12)):
        (tmp_path / name).mkdir()
        picture = draw_field([(64, 64)] if radius else [], (), 128, 128, seed=1, radius=radius)
        Image.fromarray(picture).save(tmp_path / name / "0.png")
        (tmp_path / name / "crops.csv").write_text("file,dataset,slide\n0.png,MIDOG21,007.tiff\n")
    beside, none = (stain_beside_figures(tmp_path / name, "MIDOG21_007") for name in ("with", "without"))
    np.testing.assert_allclose(beside.nuclei, none.nuclei, atol=0.02)
    whole = stain_levels([np.asarray(Image.open(tmp_path / "with" / "0.png"))])
    assert min(whole.nuclei) > 1.5 * max(none.nuclei)


def test_crops_at_other_resolutions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"have 0.25 µm/px"):
        write_crop_candidates(tmp_path, [], tmp_path / "out", VerifierConfig(mpp=0.5), "sha")


def _field(case: str, domain: str, scores: list[float]) -> SlideScores:
    """Two figures; the first two candidates lie on them."""
    xy = [(100, 100), (300, 300), (500, 500), (700, 700)][: len(scores)]
    found = Detections(np.array(xy, float).reshape(-1, 2), np.array(scores), np.zeros(len(scores)))
    return SlideScores(f"{domain}{case}", 0.25, [(100, 100), (300, 300)], found, (), case, domain, 0.5)


def test_quality_crosses_thresholds_and_counts_false_positives_a_mm2() -> None:
    slides = [
        _field("00", "aperio", [0.9, 0.8, 0.3]),
        _field("01", "aperio", [0.9, 0.7, 0.6, 0.2]),
        _field("05", "hamamatsu", [0.9, 0.8, 0.1]),
        _field("x", "midog-xr", [0.95, 0.65]),
        _field("y", "tupac", [0.2]),
    ]
    quality = release_report.Quality.of(slides)
    assert quality.threshold == 0.65
    assert quality.recall["midog-xr"] == (1.0, 2)
    assert quality.recall["tupac"] == (0.0, 2)
    assert quality.fp_per_mm2 == {"aperio": 0.0, "hamamatsu": 0.0}
    # Without case 01 any threshold from 0.3 to 0.8 is as good: the middle, 0.55, lets its false positive through.
    assert quality.scores["all"].thresholds["aperio01"] == 0.55
    assert quality.scores["aperio"].pooled.result.fp == 1
    assert quality.scores["hamamatsu"].pooled.result.f1 == 1
    assert "| aperio | 4 |" in quality.table()
    assert quality.to_dict()["recall_on_crops"] == {
        "midog-xr": {"recall": 1.0, "figures": 2},
        "tupac": {"recall": 0.0, "figures": 2},
    }
