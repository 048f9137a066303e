"""From slides to a model of two stages: thresholds from what it did not learn from, and a count with it and without."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest import mock

import numpy as np
import pytest
from conftest import FIGURE as DARK
from conftest import (
    MPP,
    candidate_set,
    contents,
    draw_field,
    random_places,
    save_marks,
    save_network,
    save_slide,
    verifier_settings,
)

from mitosis.candidates import collect_candidates
from mitosis.checkpoints import load_gate, load_model, load_verifier, save_model
from mitosis.cli import main
from mitosis.cohort import find_sources
from mitosis.config import Config
from mitosis.crops import CandidateSet, CandidateSlide
from mitosis.errors import ConfigError, ModelError, PatchIndexError
from mitosis.evaluation import choose_threshold
from mitosis.inference import Model, count_slide
from mitosis.quantization import quantize
from mitosis.score_calibration import UNCALIBRATED
from mitosis.second_stage import add_second_stage, folds_of, train_gate
from mitosis.slides import open_slide
from mitosis.stain import measure_stain
from mitosis.tissue import find_tissue
from mitosis.verification import probabilities, train_verifier, verify
from mitosis.verifier import gate_settings

QUICK = {"width": 4, "crop": 32, "mpp": MPP, "steps": 40, "batch_size": 16, "augment": 0.2, "shift": 2}
CONFIG = Config.model_validate({"verifier": {**QUICK, "learning_rate": 0.01, "folds": 2}})
FEW = CONFIG.model_copy(update={"verifier": CONFIG.verifier.model_copy(update={"steps": 2})})
OPTIONS = {"case_pattern": "^[A-D]"}


def add_field(folder, name, seed, n=7):
    """Marked round spots and square ones without a mark, of one area and colour."""
    places = np.array(random_places(2 * n, seed, border=24, apart=40))
    image = draw_field(places[:n], seed=seed, radius=9.0)
    for x, y in places[n:]:
        image[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8] = DARK
    save_slide(folder / f"{name}.png", image)
    save_marks(folder / f"{name}.csv", places[:n].tolist())


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Slides of the cases A to D; read-only by agreement."""
    folder = tmp_path_factory.mktemp("fields")
    for seed, name in enumerate(("A01", "A02", "B01", "C01", "D01"), 1):
        add_field(folder, name, seed)
    return folder


def first_stage(model_folder, out, train=("A", "B"), val=("C",)):
    """The model of `model_folder`, which takes all that is dark for figures, with such cases on its card."""
    network, card = load_model(model_folder)
    cases = {"training": {"cases": list(train)}, "validation": {"cases": list(val)}}
    out.mkdir()
    save_model(out, network.state_dict(), card.model_copy(update=cases))
    return out


def sources_of(folder, *names):
    paths = [folder / f"{name}.png" for name in names] or [folder]
    return find_sources(paths, annotations=folder, **OPTIONS)


def collect(fields, model, out, *names, config=CONFIG):
    return collect_candidates(sources_of(fields, *names), Model.load(model), out, config)


@pytest.fixture(scope="module")
def made(fields, model_folder, tmp_path_factory):
    """A model of two stages that learned from A and B and was judged on C, and its folder."""
    folder = tmp_path_factory.mktemp("made")
    model = first_stage(model_folder, folder / "first")
    candidates = collect(fields, model, folder / "both" / "candidates")
    told = []
    card = add_second_stage(model, candidates, folder / "both", CONFIG, on_step=lambda *words: told.append(words))
    return folder, card, told


def count(fields, model, name="D01", **settings):
    config = CONFIG.count.model_copy(update={"tile_size": 128, **settings})
    with open_slide(fields / f"{name}.png") as slide:
        return count_slide(slide, name, Model.load(model), config)


def test_the_card_tells_what_it_learned_from_and_how_good_it_is(made):
    _, card, told = made
    second = card.verifier
    assert (second.training["cases"], second.validation["cases"]) == (["A", "B"], ["C"])
    assert second.training["n_candidates"] == {"mitotic figure": 21, "other": 21}
    assert second.validation["on"] == "validation cases"
    assert second.validation["first_stage"]["f1"] < 0.8 < second.validation["both_stages"]["f1"]
    assert second.validation["first_stage"]["average_precision"] < second.validation["both_stages"]["average_precision"]
    assert 0 < second.threshold <= 1
    (case,) = card.calibration_at(second.threshold, verified=True)
    assert (case.case, case.tp + case.fn) == ("C", 7)
    assert case.area_mm2 > 0
    assert card.calibration_at(0.0123, verified=True) == ()
    assert set(second.training["source_sha256"]) == set(card.training["source_sha256"])
    assert [(name, step) for name, step, _ in told] == [("second stage", step) for step in range(1, 41)]


@pytest.mark.slow
def test_the_model_has_the_same_bytes_for_any_number_of_workers(made, tmp_path):
    folder, _, _ = made
    config = CONFIG.model_copy(update={"verifier": CONFIG.verifier.model_copy(update={"workers": 2})})
    add_second_stage(folder / "first", CandidateSet.read(folder / "both" / "candidates"), tmp_path / "both", config)
    for name in ("model.json", "model.safetensors", "verifier.safetensors"):
        assert (tmp_path / "both" / name).read_bytes() == (folder / "both" / name).read_bytes()


def test_both_stages_are_read_as_they_were_written(made):
    folder, card, _ = made
    network, read = load_model(folder / "both")
    assert read == card
    first, _ = load_model(folder / "first")
    assert all((network.state_dict()[name] == value).all() for name, value in first.state_dict().items())
    assert load_verifier(folder / "both", read) is not None
    assert load_verifier(folder / "first", load_model(folder / "first")[1]) is None
    quantize(load_verifier(folder / "both", read), read.verifier.int8_ranges)  # ready for a count in int8


def test_a_count_with_the_second_stage_and_without(fields, made):
    folder, card, _ = made
    both = count(fields, folder / "both")
    alone = count(fields, folder / "both", verify=False)
    before = count(fields, folder / "first")
    assert (both.report.threshold, alone.report.threshold) == (card.verifier.threshold, card.threshold)
    assert (both.report.mitotic_count, alone.report.mitotic_count) == (7, 14)
    assert (both.report.verifier_sha256, alone.report.verifier_sha256) == (card.verifier.weights_sha256, "")
    for name in ("xy", "score", "area_um2"):
        assert np.array_equal(getattr(alone.candidates, name), getattr(before.candidates, name))
    marked = {
        tuple(place) for place in np.loadtxt(fields / "D01.csv", delimiter=",", skiprows=1, usecols=(0, 1)).round()
    }
    counted = both.candidates[both.candidates.score >= both.report.threshold]
    assert {min(np.hypot(*np.subtract(place, mark)) for mark in marked) < 5 for place in counted.xy.tolist()} == {True}


def test_a_card_may_ask_for_several_views_of_each_candidate(fields, made, tmp_path):
    folder, card, _ = made
    shutil.copytree(folder / "both", tmp_path / "turned")
    settings = card.verifier.settings.model_copy(update={"views": 8})
    turned = card.model_copy(update={"verifier": card.verifier.model_copy(update={"settings": settings})})
    (tmp_path / "turned" / "model.json").write_text(turned.model_dump_json())
    first = count(fields, folder / "both", verify=False, score_floor=settings.score_floor).candidates
    with open_slide(fields / "D01.png") as slide:
        model = Model.load(tmp_path / "turned")
        stain = measure_stain(slide, find_tissue(slide), card.mpp) if card.network.normalise_stain else None
        expected = card.verifier.score_calibration(verify(slide, first, model.second, settings, stain, views=8).score)
    found = count(fields, tmp_path / "turned").candidates
    np.testing.assert_array_equal(found.score, expected[expected >= CONFIG.count.score_floor])
    assert not np.array_equal(found.score, count(fields, folder / "both").candidates.score)


def test_final_scores_are_calibrated_unless_told_not_to(fields, made, tmp_path):
    folder, card, _ = made
    candidates = CandidateSet.read(folder / "both" / "candidates")
    assert card.verifier.score_calibration != UNCALIBRATED
    settings = CONFIG.verifier.model_copy(update={"calibrate": False})
    plain = add_second_stage(
        folder / "first", candidates, tmp_path / "plain", CONFIG.model_copy(update={"verifier": settings})
    ).verifier
    assert plain.score_calibration == UNCALIBRATED
    # A threshold is the middle of a stretch without scores, which calibration stretches unevenly.
    with_it, without = (count(fields, model, "C01") for model in (folder / "both", tmp_path / "plain"))
    assert without.report.mitotic_count == with_it.report.mitotic_count == 7
    assert with_it.candidates.score.tolist() != without.candidates.score.tolist()
    assert plain.validation["both_stages"]["f1"] == card.verifier.validation["both_stages"]["f1"]


@pytest.mark.parametrize("val", [("C",), ()])
def test_a_gate_learns_from_the_second_stage_and_thresholds_are_chosen_on_what_it_lets_through(
    fields, model_folder, tmp_path, val
):
    settings = {"gate_width": 4, "gate_from": 0.2, "steps": 100}
    config = CONFIG.model_copy(update={"verifier": CONFIG.verifier.model_copy(update=settings)})
    model, told = first_stage(model_folder, tmp_path / "first", val=val), []
    candidates = collect(fields, model, tmp_path / "candidates", config=config)
    card = add_second_stage(model, candidates, tmp_path / "both", config, on_step=lambda *words: told.append(words[0]))
    assert {"second stage", "gate of second stage"} <= set(told)
    assert val or {"gate of fold 1 of 2"} <= set(told)
    shares = card.verifier.validation["gate"]
    assert 0.4 < shares["passed"] < 0.9
    assert shares["counted_passed"] > 0.9
    gated, ungated = (count(fields, tmp_path / "both", gate=gate, score_floor=0.0001) for gate in (True, False))
    assert len(gated.candidates) < len(ungated.candidates) == 14
    assert gated.report.mitotic_count == ungated.report.mitotic_count == 7
    gate = load_gate(tmp_path / "both", card)
    quantize(gate, card.verifier.gate_int8_ranges)  # ready for a count in int8
    second = (tmp_path / "both" / "verifier.safetensors").read_bytes()
    ungated_config = CONFIG.model_copy(update={"verifier": config.verifier.model_copy(update={"gate_width": 0})})
    add_second_stage(model, candidates, tmp_path / "without", ungated_config)
    assert (tmp_path / "without" / "verifier.safetensors").read_bytes() == second
    assert not (tmp_path / "without" / "gate.safetensors").exists()


def test_a_gate_learns_what_the_second_stage_says_not_what_candidates_are_marked_as(tmp_path):
    config = Config(verifier=verifier_settings(gate_width=8))
    second = train_verifier(candidate_set(tmp_path / "told", labels=("other", "mitotic figure")), config.verifier)
    marked = candidate_set(tmp_path / "marked")
    gate = train_gate(marked, second, config, MPP)
    said = probabilities(gate, marked, gate_settings(config.verifier, MPP))[:, 1]
    figures = np.array([candidate.label == "mitotic figure" for candidate in marked.candidates])
    assert said[figures].max() < said[~figures].min()


def test_what_a_gate_drops_counts_neither_in_thresholds_nor_in_what_is_reported(fields, model_folder, tmp_path):
    settings = {"gate_width": 4, "gate_from": 1.0}
    config = FEW.model_copy(update={"verifier": FEW.verifier.model_copy(update=settings)})
    model = first_stage(model_folder, tmp_path / "first")
    card = add_second_stage(model, collect(fields, model, tmp_path / "candidates"), tmp_path / "both", config)
    assert card.verifier.validation["gate"]["passed"] == 0
    assert card.verifier.validation["both_stages"]["f1"] == 0
    assert len(count(fields, tmp_path / "both").candidates) == 0


def test_thresholds_are_chosen_on_scores_as_a_count_gives_them_crowds_discounted(fields, made, tmp_path):
    folder, _, _ = made
    settings = FEW.verifier.model_copy(update={"crowding": 0.5, "crowding_from": 50.0, "calibrate": False})
    config = FEW.model_copy(update={"verifier": settings})
    with mock.patch("mitosis.second_stage.choose_threshold", wraps=choose_threshold) as spy:
        add_second_stage(
            folder / "first", CandidateSet.read(folder / "both" / "candidates"), tmp_path / "crowded", config
        )
    (scored,) = spy.call_args_list[0].args[0]
    counted = count(fields, tmp_path / "crowded", "C01").candidates
    np.testing.assert_array_equal(np.sort(scored.candidates.score), np.sort(counted.score))
    plain = settings.model_copy(update={"crowding": 0.0})
    card = load_model(tmp_path / "crowded")[1]
    second = card.verifier.model_copy(update={"settings": plain})
    (tmp_path / "crowded" / "model.json").write_text(card.model_copy(update={"verifier": second}).model_dump_json())
    assert (count(fields, tmp_path / "crowded", "C01").candidates.score > counted.score).all()


def test_the_unbiased_count_has_a_threshold_of_its_own(fields, made):
    folder, card, _ = made
    report = count(fields, folder / "both", objective="count").report
    assert report.threshold == card.verifier.count_threshold
    assert count(fields, folder / "both", threshold=0.123).report.threshold == 0.123


def test_the_final_scores_hang_on_no_tile_or_batch(fields, made):
    folder, _, _ = made
    expected = count(fields, folder / "both").candidates
    for settings in ({"tile_size": 256}, {"batch_size": 1}, {"workers": 0}):
        found = count(fields, folder / "both", **settings).candidates
        assert all(
            np.array_equal(getattr(found, name), getattr(expected, name)) for name in ("xy", "score", "area_um2")
        )


def test_what_the_first_stage_gives_too_little_is_not_looked_at(tmp_path, made):
    folder, _, _ = made
    places = np.array(random_places(6, 3, border=24, apart=40))
    image = draw_field(places[:4], radius=9.0)
    pale = draw_field(places, radius=9.0)
    pale[(image != pale).any(axis=2)] = (90, 60, 130)
    save_slide(tmp_path / "D01.png", pale)
    first = count(tmp_path, folder / "first").candidates
    floor = float(first.score.mean())
    with mock.patch("mitosis.inference.verify", wraps=lambda _slide, found, *_, **__: found) as spy:
        found = count(tmp_path, folder / "both", verify_floor=floor).candidates
        own = tmp_path / "own"
        shutil.copytree(folder / "both", own)
        card = json.loads((own / "model.json").read_text(encoding="utf-8"))
        card["verifier"]["settings"]["ask_floor"] = floor
        (own / "model.json").write_text(json.dumps(card), encoding="utf-8")
        assert len(count(tmp_path, own).candidates) == 4
        assert len(count(tmp_path, own, verify_floor=0.05).candidates) == 6
    assert (len(first), len(spy.call_args_list[0][0][1]), len(found)) == (6, 4, 4)


def test_final_scores_under_the_floor_are_not_reported(fields, made):
    folder, _, _ = made
    found = count(fields, folder / "both").candidates
    floor = float(np.sort(found.score)[3])
    assert len(count(fields, folder / "both", score_floor=floor).candidates) == int((found.score >= floor).sum())


def test_a_slide_without_candidates_stays_without(tmp_path, made):
    folder, _, _ = made
    save_slide(tmp_path / "D01.png", draw_field([]))
    assert count(tmp_path, folder / "both").report.mitotic_count == 0


# Where there is no validation case


def test_without_validation_slides_thresholds_come_from_left_out_cases(fields, model_folder, tmp_path):
    model = first_stage(model_folder, tmp_path / "first", train=("A", "B"), val=("A", "B"))
    candidates = collect(fields, model, tmp_path / "candidates", "A01", "A02", "B01")
    trained = []
    real = add_second_stage.__globals__["train_verifier"]

    def spy(chosen, *words):
        trained.append(chosen.cases)
        return real(chosen, *words)

    with mock.patch("mitosis.second_stage.train_verifier", spy):
        card = add_second_stage(model, candidates, tmp_path / "both", FEW)
    assert trained == [["B"], ["A"], ["A", "B"]]
    assert card.verifier.validation["on"] == "left-out training cases"
    assert card.verifier.validation["cases"] == ["A", "B"]


def slide_set(figures):
    """Slides by name, CASE-NUMBER, with so many figures and no crops."""
    slides = {
        name: CandidateSlide(name.partition("-")[0], "train", "", MPP, [[0.0, 0.0]] * n, 0, 1.0)
        for name, n in figures.items()
    }
    return CandidateSet("nowhere", (), slides)


def test_cases_are_dealt_so_that_figures_are_shared():
    folds, unit = folds_of(slide_set({"a-1": 5, "a-2": 4, "b-1": 8, "c-1": 1, "d-1": 0}), 2)
    assert (folds, unit) == ([{"a-1", "a-2", "c-1"}, {"b-1", "d-1"}], "cases")
    assert len(folds_of(slide_set({"a-1": 5, "b-1": 8}), 5)[0]) == 2


def test_of_one_case_the_slides_are_dealt_and_of_one_slide_nothing():
    assert folds_of(slide_set({"a-1": 5, "a-2": 4, "a-3": 1}), 2) == ([{"a-1", "a-3"}, {"a-2"}], "slides")
    with pytest.raises(ConfigError, match="One slide is not enough"):
        folds_of(slide_set({"a-1": 5}), 2)


def test_validation_slides_without_figures_choose_nothing(fields, model_folder, tmp_path):
    """The thresholds come from the training cases then, rather than from slides where every detection is wrong."""
    empty = tmp_path / "slides"
    shutil.copytree(fields, empty)
    save_marks(empty / "C01.csv", [])
    model = first_stage(model_folder, tmp_path / "first")
    card = add_second_stage(model, collect(empty, model, tmp_path / "candidates"), tmp_path / "both", FEW)
    assert card.verifier.validation["on"] == "left-out training cases"


# What is refused


def test_a_model_that_is_there_is_not_replaced(made):
    folder, _, _ = made
    before = contents(folder / "both")
    candidates = CandidateSet.read(folder / "both" / "candidates")
    with pytest.raises(ConfigError, match="holds a model already"):
        add_second_stage(folder / "first", candidates, folder / "both", CONFIG)
    assert contents(folder / "both") == before


def test_candidates_of_another_model_are_refused(made, tmp_path):
    from conftest import busy_network

    folder, _, _ = made
    save_network(busy_network(), tmp_path / "other")
    candidates = CandidateSet.read(folder / "both" / "candidates")
    with pytest.raises(PatchIndexError, match="candidates of another model"):
        add_second_stage(tmp_path / "other", candidates, tmp_path / "both", CONFIG)
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("damage", ["missing", "damaged", "another"])
def test_a_second_stage_that_does_not_belong_to_its_card_is_refused(made, tmp_path, damage):
    folder, _, _ = made
    model = tmp_path / "both"
    shutil.copytree(folder / "both", model)
    path = model / "verifier.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "damaged" else (model / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"verifier\.safetensors: (no weights there|damaged, or not)"):
        Model.load(model)


# The command line


def run(*words):
    out, err = StringIO(), StringIO()
    with mock.patch.object(sys, "argv", ["mitosis", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


SET = tuple(
    word for name, value in {**QUICK, "learning_rate": 0.01}.items() for word in ("--set", f"verifier.{name}={value}")
)


def test_the_verb_collects_trains_and_says_what_came_of_it(fields, model_folder, tmp_path):
    model = first_stage(model_folder, tmp_path / "first")
    words = ("verify", fields, "--annotations", fields, "--model", model, "--out", tmp_path / "both")
    gate = ("--set", "verifier.gate_width=4")
    code, out, err = run(*words, "--case-pattern", "^[A-D]", *SET, *gate)
    assert code == 0
    assert "left out, as they are of no case of the model: D01." in err
    lines = [line for line in out.splitlines() if line.strip()]
    assert lines[0].startswith("Candidates on 4 slides: 28 mitotic figure, 28 other")
    assert lines[1].startswith("On validation cases (C): F1 0.")
    assert re.fullmatch(
        r"The gate lets \d+\.\d% of the candidates through, \d+\.\d% of those that would count\.", lines[2]
    )
    assert lines[-1] == str(tmp_path / "both" / "model.json")
    code, _, err = run(*words, "--case-pattern", "^[A-D]", *SET)
    assert (code, "holds a model already" in err) == (1, True)
    counts = []
    for name, settings in (("both", ()), ("alone", ("--set", "count.verify=false"))):
        options = ("--model", tmp_path / "both", "--out", tmp_path / name, "--set", "count.tile_size=128", *settings)
        code, out, _ = run("count", fields / "D01.png", *options)
        assert code == 0
        counts.append(int(out.split("; ")[1].split()[0]))
    assert counts == [7, 14]


def test_the_verb_does_not_judge_by_cases_that_the_first_stage_knows(fields, model_folder, tmp_path):
    model = first_stage(model_folder, tmp_path / "first")
    slides = [fields / f"{name}.png" for name in ("A01", "A02", "B01")]
    words = ("verify", *slides, "--annotations", fields, "--model", model, "--out", tmp_path / "both")
    code, out, err = run(*words, "--case-pattern", "^[A-D]", *SET)
    assert (code, err) == (0, "")
    assert "On left-out training cases (A, B)" in out
    assert "judge the second stage by slides of validation cases" in out


def test_it_explains_itself_without_torch():
    code = (
        "import sys; sys.argv = ['mitosis', 'verify', '--help']\n"
        "from mitosis.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'albumentations') if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines()[-1] == "[]"
    assert "Example: mitosis verify" in child.stdout
