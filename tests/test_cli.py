"""The command line: the whole path, exit codes, and one sentence for each thing that can be wrong."""

import csv
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

import numpy as np
import pytest
from conftest import add_slide, contents, damage_tiles, draw_field, save_marks, save_slide, save_tiff
from PIL import Image

from mitosis.annotations import Label, read_annotations
from mitosis.cli import main
from mitosis.cli.count import _Speed
from mitosis.cohort_count import Progress
from mitosis.patches import PatchIndex

VERBS = ("info", "lint", "mine", "verify", "extract", "train", "count", "evaluate", "models", "export")
SMALL = ("--set", "extract.size=64", "--set", "extract.jitter=12", "--workers", "1")
SEEN = ("--allow-seen", "A01,A02")
TILES = ("--set", "count.tile_size=128", "--set", "count.hotspot_mm2=0.005")
QUICK = ["network.width=4", "network.depth=1", "train.crop=32", "train.batch_size=8", "train.warmup_steps=4"]
QUICK += ["train.steps=40", "train.validate_every=20", "train.learning_rate=0.03", "train.ema_decay=0.9"]
LEARN = tuple(word for setting in QUICK for word in ("--set", setting))


def run(*arguments):
    """(exit code, standard output, standard error) of ``mitosis`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", ["mitosis", *map(str, arguments)]):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        else:
            code = 0
    return code, out.getvalue(), err.getvalue()


def lines_of(out):
    return [line for line in out.splitlines() if line]  # a progress bar that is not shown leaves an empty one


def expect_error(*arguments):
    """Run what must fail with one sentence; gives the sentence."""
    code, _, err = run(*arguments)
    assert code == 1, err
    sentences = [line.removeprefix("Error: ") for line in err.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, err
    assert "Traceback" not in err
    return sentences[0]


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The whole path


@pytest.fixture(scope="module")
def walked(slides_folder, tmp_path_factory):
    """Folder with `patches`, `run` and `results`, and what each verb said."""
    folder = tmp_path_factory.mktemp("walked")
    patches, model, results = (folder / name for name in ("patches", "run", "results"))
    said = {
        "extract": run(
            *("extract", slides_folder, "--annotations", slides_folder, "--case-pattern", "^[AB]", "--out", patches),
            *SMALL,
        ),
        "train": run("train", patches, "--out", model, "--val-cases", "B", *LEARN),
        "count": run("count", slides_folder, "--model", model, "--out", results, *TILES),
        "evaluate": run("evaluate", results, slides_folder, "--json", *SEEN, "--out", folder / "evaluation"),
    }
    return folder, said


@pytest.mark.parametrize("verb", ["extract", "train", "count", "evaluate"])
def test_every_verb_of_the_whole_path_ends_well(walked, verb):
    code, out, err = walked[1][verb]
    assert (code, err) == (0, "")
    assert out


def test_extract_says_what_it_cut(walked, slides_folder):
    folder, said = walked
    first, second = said["extract"][1].splitlines()
    n_patches = len(PatchIndex.read(folder / "patches").patches)
    assert first == f"{n_patches} patches of 3 slides (0 done before): 48 tiles, 18 mitotic figures, 9 look-alikes."
    assert second == str(folder / "patches" / "index.csv")
    code, out, _ = run(
        *("extract", slides_folder, "--annotations", slides_folder, "--case-pattern", "^[AB]"),
        *("--out", folder / "patches", *SMALL),
    )
    assert code == 0
    assert "(3 done before)" in out


def test_train_says_how_good_it_got_and_where_the_model_is(walked):
    folder, said = walked
    lines = lines_of(said["train"][1])
    assert [line.split(":")[0] for line in lines[:2]] == ["step 20", "step 40"]
    card = json.loads((folder / "run" / "model.json").read_text())
    assert card["validation"]["cases"] == ["B"]
    assert {row["case"] for row in card["validation"]["calibration"]} == {"B"}
    assert f"Best: F1 {card['validation']['f1']:.3f} at step {card['validation']['step']}" in lines[-2]
    assert lines[-1] == str(folder / "run" / "model.safetensors")


def test_count_writes_a_folder_a_slide_and_a_summary(walked):
    folder, said = walked
    *sentences, last = lines_of(said["count"][1])
    assert [sentence.split(":")[0] for sentence in sentences] == ["A01", "A02", "B01"]
    assert all("mitotic figures in the hotspot of" in sentence for sentence in sentences)
    assert last == str(folder / "results" / "summary.csv")
    with (folder / "results" / "summary.csv").open(newline="") as stream:
        assert [row["status"] for row in csv.DictReader(stream)] == ["ok"] * 3
    of_each = ("count.json", "detections.csv", "detections.geojson", "overlay.png")
    assert files_in(folder / "results") == [
        *(f"{name}/{file}" for name in ("A01", "A02", "B01") for file in of_each),
        "summary.csv",
    ]


def test_evaluate_gives_the_same_numbers_as_json_and_as_a_table(walked, slides_folder):
    folder, said = walked
    result = json.loads(said["evaluate"][1])
    pooled = result["pooled"]
    assert [row["name"] for row in result["slides"]] == ["A01", "A02", "B01"]
    assert pooled["tp"] + pooled["fn"] == 18
    assert pooled["f1"] >= 0.8
    assert sum(row["tp"] for row in result["slides"]) == pooled["tp"]
    code, out, err = run("evaluate", folder / "results", slides_folder, *SEEN, "--out", folder / "evaluation")
    assert (code, err) == (0, "")
    last_row = next(line for line in out.splitlines() if line.startswith("all")).split()[:7]
    assert last_row == ["all", *(str(pooled[name]) for name in ("tp", "fp", "fn"))] + [
        f"{pooled[name]:.3f}" for name in ("precision", "recall", "f1")
    ]


def test_evaluate_refuses_what_the_model_learned_from(walked, slides_folder, tmp_path):
    """Counted without --case-pattern, so the cases have other names than in training; the files are the same."""
    folder, _ = walked
    sentence = expect_error("evaluate", folder / "results", slides_folder, "--out", tmp_path)
    assert sentence.startswith("The model learned from A01, A02, so")
    assert files_in(tmp_path) == []
    sentence = expect_error("evaluate", folder / "results", slides_folder, "--case-pattern", "^[AB]", "--out", tmp_path)
    assert sentence.startswith("The model learned from A, so")


def test_a_higher_threshold_is_used_in_count_and_in_evaluate(walked, slides_folder, tmp_path):
    folder, _ = walked
    words = ("evaluate", folder / "results", slides_folder, "--threshold", 1, "--json", *SEEN)
    code, out, _ = run(*words, "--out", tmp_path / "evaluation")
    assert (code, json.loads(out)["pooled"]["tp"]) == (0, 0)
    options = ("--model", folder / "run", "--out", tmp_path / "results", "--threshold", 1, *TILES)
    code, out, _ = run("count", slides_folder / "A01.png", *options)
    assert code == 0
    assert out.startswith("A01: 0 mitotic figures in the hotspot")


def test_a_count_takes_its_memory_from_one_heap(walked, slides_folder, tmp_path):
    options = ("--model", walked[0] / "run", "--out", tmp_path / "results", *TILES)
    with mock.patch("mitosis.threads.share_heap") as share_heap:
        assert run("count", slides_folder / "A01.png", *options)[0] == 0
    share_heap.assert_called_once()


def test_results_and_runs_that_are_there_are_not_replaced(walked, slides_folder):
    folder, _ = walked
    before = contents(folder)
    sentence = expect_error("count", slides_folder, "--model", folder / "run", "--out", folder / "results")
    assert "A01 was counted with count.hotspot_mm2 0.005 → 2.37. Choose another --out, or add --overwrite" in sentence
    assert "--resume" in expect_error("train", folder / "patches", "--out", folder / "run", *LEARN)
    other = ("--set", "extract.size=96", "--workers", "1", "--out", folder / "patches")
    assert "size 64 → 96" in expect_error("extract", slides_folder, "--annotations", slides_folder, *other)
    assert contents(folder) == before


def test_the_same_count_again_goes_on_where_it_was(walked, slides_folder):
    folder, _ = walked
    before = contents(folder / "results")
    (folder / "results" / "A02" / "count.json").unlink()
    words = ("count", slides_folder / "*.png", "--model", folder / "run", "--out", folder / "results", *TILES)
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    first, second, third, _ = lines_of(out)
    assert "mitotic figures in the hotspot of" in second
    assert first.startswith("A01: counted before, ")
    assert third.startswith("B01: counted before, ")
    assert contents(folder / "results") == before


def test_a_finished_run_can_be_resumed(walked):
    folder, _ = walked
    before = contents(folder / "run")
    code, out, _ = run("train", folder / "patches", "--out", folder / "run", "--val-cases", "B", "--resume", *LEARN)
    assert (code, lines_of(out)) == (0, lines_of(walked[1]["train"][1])[2:])
    assert contents(folder / "run") == before


def test_left_out_cases_are_not_learned_from(walked, tmp_path):
    folder, _ = walked
    options = ("--out", tmp_path / "run", "--val-cases", "", "--leave-out", "A", "--set", "train.steps=5", *LEARN[:10])
    code, _, err = run("train", folder / "patches", *options)
    assert (code, err) == (0, "Warning: no validation case, so F1 and threshold are those on training cases.\n")
    assert json.loads((tmp_path / "run" / "model.json").read_text())["training"]["cases"] == ["B"]


def test_a_dry_run_without_training_cases_is_refused(walked, tmp_path):
    folder, _ = walked
    options = ("--dry-run", "--out", tmp_path / "plan", "--val-cases", "A,B", *LEARN)
    assert "no patch is of a training case" in expect_error("train", folder / "patches", *options)


def test_a_dry_run_says_what_an_epoch_will_show_and_trains_nothing(walked, tmp_path):
    folder, _ = walked
    out = tmp_path / "plan"
    code, said, _ = run("train", folder / "patches", "--out", out, "--dry-run", "--set", "train.sampler=mix", *LEARN)
    assert code == 0
    assert lines_of(said)[0].startswith("Sampler mix: 40 steps of 8 patches are ")
    assert [line.split()[0] for line in lines_of(said)[2:4]] == ["background", "hard"]
    assert files_in(out) == ["dry_run.json"]
    plan = json.loads((out / "dry_run.json").read_text())
    assert plan["sampler"] == "mix"
    assert all(n >= 1 for n in plan["figure_repeats"].values())
    assert (
        run("train", folder / "patches", "--out", out, "--val-cases", "B", "--set", "train.steps=5", *LEARN[:10])[0]
        == 0
    )


def test_the_first_batch_can_be_looked_at(walked, tmp_path):
    folder, _ = walked
    words = ("--show-batch", "--set", "train.paste_share=0.5", "--set", "train.smote_share=0.5", *LEARN)
    code, said, err = run("train", folder / "patches", "--out", tmp_path / "plan", *words)
    assert code == 0, err
    assert lines_of(said)[-1].endswith("batch.png")
    with Image.open(tmp_path / "plan" / "batch.png") as image:
        assert min(image.size) > 200


def test_a_folder_given_twice_is_refused(walked, tmp_path):
    folder, _ = walked
    sentence = expect_error("train", folder / "patches", folder / "patches", "--out", tmp_path / "run", *LEARN)
    assert "Name each folder once" in sentence


def test_a_manifest_serves_in_place_of_slides(slides_folder, tmp_path):
    rows = [f"{slides_folder / name}.png,{name[0]},lab,0.5,{slides_folder / name}.csv" for name in ("A01", "B01")]
    (tmp_path / "m.csv").write_text("\n".join(["slide,case,domain,mpp,annotations", *rows]))
    code, out, err = run("extract", "--manifest", tmp_path / "m.csv", "--out", tmp_path / "out", *SMALL)
    assert (code, err) == (0, "")
    assert "of 2 slides" in out
    assert {(p.case_id, p.domain) for p in PatchIndex.read(tmp_path / "out").patches} == {("A", "lab"), ("B", "lab")}


def test_options_hold_for_the_rows_of_a_manifest_too(slides_folder, tmp_path):
    (tmp_path / "m.csv").write_text(f"slide,domain\n{slides_folder / 'A01'}.png,\n{slides_folder / 'B01'}.png,own\n")
    options = ("--annotations", slides_folder, "--mpp", "0.6", "--case-pattern", "^.", "--domain", "lab")
    code, _, err = run("extract", "--manifest", tmp_path / "m.csv", "--out", tmp_path / "out", *options, *SMALL)
    assert (code, err) == (0, "")
    found = PatchIndex.read(tmp_path / "out").patches
    assert {(p.case_id, p.domain, p.slide_mpp) for p in found} == {("A", "lab", 0.6), ("B", "own", 0.6)}
    assert sum(p.n_mitotic for p in found)


def test_the_display_says_how_fast_it_goes_and_how_long_it_will_take(monkeypatch):
    """Slides that were counted before take no time, so they have no say."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    speed = _Speed()
    for seconds, progress, said in [
        (50, Progress("b", 12, n_done=2, n_before=2), "2/12 slides"),
        (
            30,
            Progress("c", 12, n_done=2, n_before=2, part=0.5, counted_mm2=60),
            "2/12 slides, 2.00 mm²/s, 0:09:30 left",
        ),
        (30, Progress("c", 12, n_done=3, n_before=2, counted_mm2=120), "3/12 slides, 2.00 mm²/s, 0:09:00 left"),
        (3540, Progress("d", 12, n_done=4, n_before=2, counted_mm2=900), "4/12 slides, 0.25 mm²/s, 4:00:00 left"),
    ]:
        now[0] += seconds
        assert speed.state(progress) == said


def test_a_manifest_of_slides_to_count_may_name_regions(slides_folder, model_folder, tmp_path):
    corners = [[0, 0], [128, 0], [128, 256], [0, 256]]
    geometry = {"type": "Polygon", "coordinates": [corners]}
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    rows = [f"{slides_folder / 'A01'}.png,roi.geojson", f"{slides_folder / 'B01'}.png,"]
    (tmp_path / "m.csv").write_text("\n".join(["slide,roi", *rows]))
    words = ("--manifest", tmp_path / "m.csv", "--model", model_folder, "--out", tmp_path / "out", *TILES)
    code, _, err = run("count", *words, "--case-pattern", "^.")
    assert (code, err) == (0, "")
    first, second = (json.loads((tmp_path / "out" / name / "count.json").read_text()) for name in ("A01", "B01"))
    assert (first["case_id"], second["case_id"]) == ("A", "B")
    assert first["tissue_mm2"] == pytest.approx(second["tissue_mm2"] / 2)
    code, _, err = run("evaluate", tmp_path / "out", slides_folder)
    figures = read_annotations(slides_folder / "A01.csv", "A01").annotations
    inside = [mark for mark in figures if mark.x < 128]
    assert 0 < len(inside) < len(figures)
    n_inside = sum(mark.label is Label.MITOTIC_FIGURE for mark in inside)
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["slides"]
    assert (code, [row["n_figures"] for row in rows]) == (0, [n_inside, 6])
    assert f"A01: {len(figures) - len(inside)} marks lie outside the slide, or its region of interest" in err
    again = run("count", *words, "--case-pattern", "^.", "--overwrite", "--threshold", "0.5")
    assert [" in the region of interest" in line for line in again[1].splitlines()[:2]] == [True, False]


# Help, usage, imports


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb):
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert f"Example: mitosis {verb}" in out


def test_the_help_names_every_verb():
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {verb}  " in out for verb in VERBS)
    assert "Research use only" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("discover",),
        ("info",),
        ("extract", "--out", "x"),
        ("extract", "a.svs", "--manifest", "m.csv", "--out", "x"),
        ("extract", "a.svs"),
        ("train", "patches"),
        ("count", "--model", "m", "--out", "x"),
        ("count", "a.svs", "--manifest", "m.csv", "--model", "m", "--out", "x"),
        ("count", "a.svs", "--model", "m", "--out", "x", "--workers", "-1"),
        ("count", "a.svs", "--model", "m", "--out", "x", "--processes", "0"),
        ("count", "a.svs", "--model", "m", "--out", "x", "--processes", "2", "--scheduler", "tcp://host:8786"),
        ("count", "a.svs", "--model", "m", "--out", "x", "--threshold", "high"),
        ("evaluate", "results"),
        ("info", "a.svs", "--colour"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2
    assert "Traceback" not in err
    assert files_in(tmp_path) == []


LOADED = """
import contextlib, io, json, sys
from mitosis.cli import main

def loaded():
    return [name for name in ("torch", "albumentations", "numpy", "scipy", "matplotlib") if name in sys.modules]

found = [loaded()]
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["mitosis", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    found.append(loaded())
print(json.dumps(found))
"""


def test_help_loads_nothing_heavy_and_what_needs_no_network_does_without_torch(walked, slides_folder, tmp_path):
    folder, _ = walked
    calls = [[verb, "--help"] for verb in VERBS] + [
        ["info", str(slides_folder / "A01.png")],
        ["extract", str(slides_folder / "A01.png"), "--out", str(tmp_path / "out"), "--workers", "1"],
        ["evaluate", str(folder / "results"), str(slides_folder), *SEEN, "--out", str(tmp_path / "evaluation")],
        ["train", str(folder / "patches"), "--out", str(tmp_path / "plan"), "--dry-run"],
    ]
    child = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    found = json.loads(child.stdout)
    assert child.stderr == ""
    assert found[: 1 + len(VERBS)] == [[]] * (1 + len(VERBS))
    assert "numpy" in found[-1]
    assert all("torch" not in names and "albumentations" not in names for names in found)
    assert (tmp_path / "out" / "index.csv").exists()
    assert (tmp_path / "plan" / "dry_run.json").exists()
    assert (tmp_path / "evaluation" / "evaluation.html").exists()


def test_python_m_mitosis_is_the_command(tmp_path):
    command = [sys.executable, "-m", "mitosis", "extract", str(tmp_path / "none.svs"), "--out", str(tmp_path / "out")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (1, "")
    assert child.stderr == f"Error: {tmp_path / 'none.svs'}: no such file or folder\n"


def test_an_interrupt_ends_with_130_and_without_a_traceback(slides_folder):
    with mock.patch("mitosis.slides.open_slide", side_effect=KeyboardInterrupt):
        code, _, err = run("info", slides_folder / "A01.png")
    assert code == 130
    assert "Traceback" not in err


# Bad input, one sentence each


@pytest.fixture
def slides(tmp_path):
    """A folder with one marked slide, ``A01``."""
    folder = tmp_path / "slides"
    folder.mkdir()
    add_slide(folder, "A01", 1)
    return folder


def extract_error(slides, out, *options, marks=None):
    """The sentence of an extraction that must fail, and leave neither an index nor half a file."""
    sentence = expect_error("extract", slides, "--annotations", marks or slides, "--out", out, *SMALL, *options)
    if out.is_dir():
        left = files_in(out)
        assert "index.csv" not in left
        assert not [name for name in left if name.endswith(".part")]
    return sentence


@pytest.mark.parametrize("verb", ["info", "extract", "count"])
def test_a_missing_slide(verb, model_folder, tmp_path):
    out = tmp_path / "out"
    options = {"info": (), "extract": ("--out", out), "count": ("--out", out, "--model", model_folder)}[verb]
    assert "none.svs: " in expect_error(verb, tmp_path / "none.svs", *options)
    assert not out.exists()


@pytest.mark.parametrize("verb", ["info", "extract", "count"])
def test_text_renamed_to_a_slide(verb, model_folder, tmp_path):
    path, out = tmp_path / "notes.svs", tmp_path / "out"
    path.write_text("This is not a slide.\n" * 50)
    options = {"info": (), "extract": ("--out", out), "count": ("--out", out, "--model", model_folder)}[verb]
    assert "notes.svs: not a slide" in expect_error(verb, path, *options)
    assert files_in(tmp_path) == sorted(
        ["notes.svs", *{"info": [], "extract": ["out/settings.yaml"], "count": ["out/summary.csv"]}[verb]]
    )


@pytest.mark.parametrize("verb", ["extract", "count"])
def test_a_slide_without_mpp(verb, slides, model_folder, tmp_path):
    save_slide(slides / "A01.png", draw_field([(60.0, 60.0)]), mpp=None)
    out = tmp_path / "out"
    if verb == "extract":
        sentence = extract_error(slides, out)
    else:
        sentence = expect_error("count", slides, "--model", model_folder, "--out", out)
    assert "A01.png: no µm/px in the file. Pass --mpp 0.25" in sentence
    arguments = (
        ("--annotations", slides, *SMALL) if verb == "extract" else ("--model", model_folder, "--overwrite", *TILES)
    )
    assert run(verb, slides, "--out", out, "--mpp", 0.5, *arguments)[0] == 0


def test_info_shows_a_slide_without_mpp_and_how_to_help(slides):
    save_slide(slides / "A01.png", draw_field([]), mpp=None)
    code, out, err = run("info", slides / "A01.png")
    assert (code, err) == (0, "")
    assert "no µm/px in the file. Pass --mpp 0.25" in out
    assert "256 x 256 px" in out


def test_info_shows_the_slides_it_can_open(slides):
    (slides / "B01.png").write_bytes(b"\x89PNG broken")
    code, out, err = run("info", slides / "B01.png", slides / "A01.png", "--json")
    assert code == 1
    assert [entry["dimensions"] for entry in json.loads(out)] == ["256 x 256 px"]
    assert err.startswith("Error: ")
    assert "B01.png" in err


def test_marks_of_another_slide(slides, tmp_path):
    (slides / "A01.csv").rename(slides / "B07.csv")
    sentence = extract_error(slides, tmp_path / "out")
    assert "A01" in sentence
    assert "unlabelled" in sentence
    (tmp_path / "marks.csv").write_text("slide,x,y,label\nB07,5,5,mitotic figure\n")
    assert "marks.csv: no marks for slide A01" in extract_error(slides, tmp_path / "out", marks=tmp_path / "marks.csv")


def test_marks_that_do_not_exist(slides, tmp_path):
    sentence = extract_error(slides, tmp_path / "out", marks=tmp_path / "none.csv")
    assert "none.csv: no such file" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["x;y\nleft;top\n", "a,b\n1,2\n", "x,y,label\n1,2,unheard of\n", "\x00\x01"])
def test_marks_that_are_none(slides, tmp_path, text):
    (slides / "A01.csv").write_text(text)
    assert "A01.csv" in extract_error(slides, tmp_path / "out")


def test_a_mask_of_another_size(slides, tmp_path):
    (slides / "A01.csv").unlink()
    Image.fromarray(np.zeros((100, 120), np.uint8)).save(slides / "A01_mask.png")
    sentence = extract_error(slides, tmp_path / "out")
    assert "(120, 100) px" in sentence
    assert "(256, 256) px" in sentence


@pytest.mark.parametrize("verb", ["extract", "train", "count"])
def test_a_file_stands_where_the_output_should_go(verb, slides, patches_folder, model_folder, tmp_path):
    out = tmp_path / "out"
    out.write_text("in the way")
    arguments = {
        "extract": (slides, "--annotations", slides, *SMALL),
        "train": (patches_folder, *LEARN),
        "count": (slides, "--model", model_folder),
    }[verb]
    assert "out" in expect_error(verb, *arguments, "--out", out)
    assert out.read_text() == "in the way"


def test_empty_marks_can_be_cut_but_not_learned_from(slides, tmp_path):
    (slides / "A01.csv").write_text("")
    code, out, err = run("extract", slides, "--annotations", slides, "--out", tmp_path / "patches", *SMALL)
    assert (code, err) == (0, "")
    assert "16 tiles, 0 mitotic figures" in out
    sentence = expect_error("train", tmp_path / "patches", "--out", tmp_path / "run", *LEARN)
    assert "no mitotic figure in the training cases" in sentence
    assert not (tmp_path / "run").exists()


def test_no_figure_in_the_training_cases(slides, tmp_path):
    save_slide(slides / "B01.png", draw_field([]))
    save_marks(slides / "B01.csv", [])
    assert run("extract", slides, "--annotations", slides, "--out", tmp_path / "patches", *SMALL)[0] == 0
    sentence = expect_error("train", tmp_path / "patches", "--out", tmp_path / "run", "--val-cases", "A01", *LEARN)
    assert "no mitotic figure in the training cases" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("train", "{here}/none", "--out", "{here}/run"), "none/index.csv: no such file"),
        (("train", "{patches}", "--out", "{here}/run", "--val-cases", "Z"), "no patches of case Z. Cases here: A, B"),
        (("train", "{patches}", "--out", "{here}/run", "--leave-out", "Z"), "no patches of case Z"),
        (("train", "{patches}", "--out", "{here}/run"), "smaller than train.crop = 192"),
        (("train", "{patches}", "--out", "{here}/run", "--resume", *LEARN), "no run to resume"),
        (("train", "{patches}", "--out", "{here}/run", "--set", "train.step=5"), "Did you mean 'steps'?"),
        (("train", "{patches}", "--out", "{here}/run", "--config", "{here}/none.yaml"), "no such settings file"),
        (("count", "{slides}", "--model", "{here}/none", "--out", "{here}/out"), "model.json: no model card"),
        (("count", "{slides}", "--model", "{model}", "--out", "{here}/out", "--threshold", "7"), "count.threshold"),
        (
            ("count", "{slides}", "--model", "{model}", "--out", "{here}/out", "--set", "count.tile_size=131"),
            "tile_size",
        ),
        (("evaluate", "{here}/none", "{slides}"), "holds no count.json"),
        (
            ("count", "{slides}", "--model", "{model}", "--out", "{here}/out", "--scheduler", "tcp://127.0.0.1:9"),
            "--scheduler tcp://127.0.0.1:9: no scheduler answers",
        ),
        (
            ("count", "--manifest", "{here}/none.csv", "--model", "{model}", "--out", "{here}/out"),
            "none.csv: there is no such file",
        ),
        (
            ("extract", "--manifest", "{here}/none.csv", "--out", "{here}/out"),
            "none.csv: there is no such file",
        ),
        (("extract", "{slides}", "--case-pattern", "^Z", "--out", "{here}/out"), "finds nothing in the slide name"),
    ],
)
def test_other_things_that_can_be_wrong(arguments, complaint, slides, patches_folder, model_folder, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    places = {"here": here, "patches": patches_folder, "model": model_folder, "slides": slides}
    assert complaint in expect_error(*(argument.format(**places) for argument in arguments))
    assert files_in(here) == []


def test_results_that_are_not_from_count(slides, tmp_path):
    (tmp_path / "A01").mkdir()
    for text in ("{}", "[]", "{", '{"slide": 3, "slide_mpp": "x"}'):
        (tmp_path / "A01" / "count.json").write_text(text)
        assert "count.json: not as written by mitosis count" in expect_error("evaluate", tmp_path, slides)


# Damage


@pytest.fixture
def damaged(tmp_path):
    """A slide with one damaged tile, marked."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    figures = [(90.0, 90.0), (220.0, 220.0), (30.0, 200.0)]
    damage_tiles(save_tiff(folder / "a.tif", draw_field(figures)), 5)
    save_marks(folder / "a.csv", figures)
    return folder


def test_extract_and_count_go_on_round_a_damaged_tile_and_end_with_3(damaged, model_folder, tmp_path):
    code, _, err = run(
        *("extract", damaged, "--annotations", damaged, "--out", tmp_path / "patches", "--workers", 1),
        *("--set", "extract.size=48", "--set", "extract.jitter=0"),
    )
    assert code == 3
    assert err == "Warning: 5 patches were left out because the slide file is damaged there.\n"
    assert (tmp_path / "patches" / "index.csv").exists()
    options = ("--model", model_folder, "--out", tmp_path / "out", *TILES)
    code, out, _ = run("count", damaged, *options, "--set", "count.max_bad_fraction=0.2")
    assert code == 3
    assert "; 2 in " in out
    assert "mm² unreadable" in out


def test_count_with_too_much_damage_ends_with_1_but_counts_the_others(damaged, model_folder, tmp_path):
    add_slide(damaged, "b", 1)
    options = ("--model", model_folder, "--out", tmp_path / "out", *TILES)
    code, out, err = run("count", damaged, *options)
    assert code == 1
    assert lines_of(out)[0].startswith("b: ")
    assert err.startswith(f"Error: {damaged / 'a.tif'}: 6.2% of the tissue lies in damaged tiles")
    assert len(err.splitlines()) == 1
    with (tmp_path / "out" / "summary.csv").open(newline="") as stream:
        assert [row["status"] for row in csv.DictReader(stream)] == ["failed", "ok"]


def test_marks_that_cannot_be_used_are_warned_of(slides, model_folder, tmp_path):
    with (slides / "A01.csv").open("a") as stream:
        stream.write("300,5,mitotic figure\n5,5,lymphocyte\n")
    code, _, err = run("extract", slides, "--annotations", slides, "--out", tmp_path / "patches", *SMALL)
    assert code == 0
    assert err.splitlines() == [
        "Warning: 1 marks outside their slide or its region of interest were left out.",
        "Warning: 1 marks of other classes were left out.",
    ]
    assert run("count", slides, "--model", model_folder, "--out", tmp_path / "results", *TILES)[0] == 0
    code, out, err = run("evaluate", tmp_path / "results", slides, "--json", "--allow-seen", "A01")
    assert (code, err) == (
        0,
        "Warning: A01: 1 marks lie outside the slide, or its region of interest, and are left out.\n",
    )
    pooled = json.loads(out)["pooled"]
    assert [pooled[name] for name in ("tp", "fp", "fn", "fp_on_look_alikes")] == [6, 0, 0, 0]


def test_a_count_is_graded_by_the_rules_that_are_named(walked, slides_folder, tmp_path):
    folder, _ = walked
    words = ("count", slides_folder / "A01.png", "--model", folder / "run", *TILES)
    code, out, _ = run(*words, "--rule", "nottingham-density", "--rule", "net", "--out", tmp_path / "graded")
    assert code == 0
    assert "nottingham-density: " in out
    assert "[HL7 FHIR Breast Cancer Data guide 2018" in out
    assert "true count" not in out  # one calibration case says too little
    found = json.loads((tmp_path / "graded" / "A01" / "count.json").read_text())
    assert [grade["rule"]["name"] for grade in found["grades"]] == ["nottingham-density", "net"]
    assert found["true_count"] is None
    with (tmp_path / "graded" / "summary.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))["grades"].startswith("nottingham-density: ")
    assert "Did you mean 'net'" in expect_error(*words, "--rule", "nett", "--out", tmp_path / "refused")
