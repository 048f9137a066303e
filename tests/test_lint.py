"""Lint of marks: each check fires on a made-up wrong case, and is silent on a right one."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import MPP, ArraySlide, draw_field, random_places, save_marks
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shapely.geometry import Point
from typer.testing import CliRunner

from mitosis.annotations import Annotation, AnnotationSet, Label, midog
from mitosis.cli import app
from mitosis.cohort import find_sources
from mitosis.errors import AnnotationError
from mitosis.lint import CHECKS, Collection, SlideMarks, lint
from mitosis.lint.collection import view
from mitosis.lint.finding import listing
from mitosis.lint.marks import _near

FIGURE, LOOK_ALIKE = Label.MITOTIC_FIGURE, Label.NON_MITOTIC_FIGURE
GLASS = 246


def field(width=600, height=400):
    """All tissue."""
    return draw_field([], width=width, height=height)


def island(tissue, width=1200, height=800):
    """Glass with tissue in the box (x0, y0, x1, y1)."""
    image = np.full((height, width, 3), GLASS, np.uint8)
    x0, y0, x1, y1 = tissue
    image[y0:y1, x0:x1] = draw_field([], width=x1 - x0, height=y1 - y0)
    return image


def points(places, label=FIGURE):
    return tuple(Annotation(x, y, label) for x, y in places)


def discs(places, radius, label=FIGURE):
    return tuple(Annotation(x, y, label, (Point(x, y).buffer(radius),)) for x, y in places)


def marked(annotations, image=None, name="a", mpp=MPP, file_mpp=None, properties=None, **options):
    """A slide with these marks."""
    slide = ArraySlide(field() if image is None else image, mpp=mpp)
    slide.properties = properties or {}
    return SlideMarks(name, (), AnnotationSet(annotations, **options), view(slide, annotations, file_mpp))


def found(check, *slides, source=None):
    """The findings of one check."""
    return list(CHECKS[check](Collection(source or ArraySlide(field(8, 8)).path, tuple(slides))))


def one(check, *slides):
    findings = found(check, *slides)
    assert len(findings) == 1, findings
    return findings[0]


# The contract of every check


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_is_silent_on_a_right_slide_and_on_none(name, tmp_path):
    right = marked(points(random_places(12, 1, 600, 400)) + points([(20, 30)], LOOK_ALIKE))
    other = marked(points(random_places(12, 2, 600, 400)), name="b")
    for slides in ((), (right,), (right, other)):
        assert list(CHECKS[name](Collection(tmp_path, slides))) == []


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(
    "annotations",
    [(), points([(5, 5)]), points([(5, 5)] * 7), points([(-1e9, 2e9)] * 7), discs([(9, 9)] * 3, 1e-3)],
    ids=["none", "one", "identical", "far off", "tiny outlines"],
)
def test_every_check_says_its_name_a_severity_and_what_to_do_whatever_the_marks(name, annotations, tmp_path):
    slides = (
        marked(annotations),
        marked(annotations, image=island((0, 0, 40, 40)), name="b", n_ignored=2),
        SlideMarks("c", marks=AnnotationSet(annotations)),
        SlideMarks("d", marks_error="broken", slide_error="broken"),
        SlideMarks("e"),
    )
    for finding in CHECKS[name](Collection(tmp_path, slides)):
        assert finding.check == name
        assert finding.severity in {"error", "warning", "note"}
        assert finding.slide in {"", *"abcde"}
        assert finding.message.endswith((".", "broken"))
        assert finding.advice.endswith(".")
        assert set(finding.marks) <= {(mark.x, mark.y) for mark in annotations}


# Two marks on one spot


def test_two_marks_of_one_label_closer_than_the_radius_of_scoring_are_told_once_with_their_places():
    reach = 7.5 / MPP
    finding = one("duplicates", marked(points([(50, 60), (50 + reach - 0.1, 60), (300, 300)])))
    assert (finding.severity, finding.marks) == ("warning", ((50, 60), (50 + reach - 0.1, 60)))
    assert "1 pair: (50, 60) with (65, 60)" in finding.message
    assert found("duplicates", marked(points([(50, 60), (50 + reach, 60)]))) == []


def test_figure_and_look_alike_on_one_spot_are_an_error_and_no_duplicate():
    slide = marked(points([(50, 60), (300, 300)]) + points([(52, 60)], LOOK_ALIKE))
    finding = one("contradictions", slide)
    assert (finding.severity, finding.marks) == ("error", ((50, 60), (52, 60)))
    assert found("duplicates", slide) == []


def test_segments_of_a_telophase_are_no_duplicates_but_an_outline_drawn_twice_is():
    telophase = discs([(100, 100), (112, 100)], 4)
    assert math.dist((100, 100), (112, 100)) * MPP < 7.5
    assert found("duplicates", marked(telophase)) == []
    assert one("duplicates", marked(telophase + discs([(101, 100)], 4))).marks == ((100, 100), (101, 100))
    assert found("duplicates", marked(discs([(100, 100)], 4) + discs([(101, 100)], 4, LOOK_ALIKE))) == []


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12), st.integers(1, 5))
def test_a_mark_is_in_a_pair_exactly_if_another_one_is_near(places, reach):
    told = {place for pair in _near(points(places), FIGURE, FIGURE, reach) for place in pair}
    near = {a for i, a in enumerate(places) if any(math.dist(a, b) < reach for j, b in enumerate(places) if i != j)}
    assert told == near


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8),
)
def test_figures_near_a_look_alike_are_found(figures, look_alikes):
    pairs = _near(points(figures) + points(look_alikes, LOOK_ALIKE), FIGURE, LOOK_ALIKE, 3)
    assert [a for a, _ in pairs] == [a for a in figures if any(math.dist(a, b) < 3 for b in look_alikes)]
    assert all(b in look_alikes and math.dist(a, b) < 3 for a, b in pairs)


# Places


def test_marks_off_the_image_are_told_with_its_size():
    finding = one("outside", marked(points([(599.9, 399.9), (600, 10), (10, -0.1)])))
    assert (finding.severity, finding.marks) == ("error", ((600, 10), (10, -0.1)))
    assert "600 x 400 px (2 of 3)" in finding.message


def test_marks_on_glass_are_told_with_their_share():
    image = island((0, 0, 600, 800))
    finding = one("off_tissue", marked(points([(100, 100), (900, 100), (300, 700), (590, 400)]), image))
    assert (finding.severity, finding.marks) == ("warning", ((900, 100),))
    assert "1 of 4, 25%" in finding.message
    assert found("off_tissue", marked(points([(610, 400)]), image)) == []  # at the edge of tissue


def test_a_slide_without_any_tissue_is_told_so():
    assert (
        "No H&E-stained tissue"
        in one("off_tissue", marked(points([(9, 9)]), np.full((99, 99, 3), GLASS, np.uint8))).message
    )


RIGHT = island((700, 0, 1200, 400))
PLACES = random_places(8, 3, 460, 360)


def test_swapped_axes_are_told_by_the_layout_of_the_tissue():
    right = [(x + 720, y + 20) for x, y in PLACES]
    assert found("swapped_axes", marked(points(right), RIGHT)) == []
    finding = one("swapped_axes", marked(points([(y, x) for x, y in right]), RIGHT))
    assert (finding.severity, finding.slide) == ("error", "a")
    assert "0% of the 8 marks are on tissue as x,y, but 100% as y,x" in finding.message


def test_swapped_axes_are_told_by_all_fields_together():
    fields = [random_places(6, seed, 600, 400) for seed in range(4)]
    right = [marked(points(places), name=str(i)) for i, places in enumerate(fields)]
    swapped = [marked(points([(y, x) for x, y in places]), name=str(i)) for i, places in enumerate(fields)]
    assert found("swapped_axes", *right) == []
    told = found("swapped_axes", *swapped)
    assert told
    assert {finding.severity for finding in told} == {"error"}


def test_marks_off_the_bottom_that_might_as_well_be_swapped_are_not_called_so():
    """Marks below an image that is nearly square, and others that would be on it under both readings."""
    image = field(600, 560)
    places = [(100, 570), (200, 580), (300, 590), (40, 50), (400, 300), (500, 200), (70, 80)]
    assert found("swapped_axes", marked(points(places), image)) == []


def test_few_marks_or_marks_that_fit_no_better_are_not_called_swapped():
    right = [(x + 720, y + 20) for x, y in PLACES]
    assert found("swapped_axes", marked(points([(y, x) for x, y in right[:4]]), RIGHT)) == []
    on_glass = [(x, y + 420) for x, y in PLACES]
    assert found("swapped_axes", marked(points(on_glass), RIGHT)) == []


@pytest.mark.parametrize("factor", [2, 4])
def test_marks_made_on_a_smaller_level_are_told_by_the_tissue(factor):
    right = [(x + 720, y + 20) for x, y in PLACES]
    assert found("other_level", marked(points(right), RIGHT)) == []
    finding = one("other_level", marked(points([(x / factor, y / factor) for x, y in right]), RIGHT))
    assert (finding.severity, finding.slide) == ("warning", "a")
    assert f"100% when multiplied by {factor}." in finding.message


def test_marks_made_on_a_smaller_level_of_a_slide_that_is_mostly_tissue_are_told():
    image = field(1200, 800)
    image[40:300, 40:460] = GLASS
    right = [(x, y) for x, y in random_places(60, 5, 1200, 800) if x > 480 or y > 320]
    half = [(x / 2, y / 2) for x, y in right]
    assert found("other_level", marked(points(right), image)) == []
    assert "multiplied by 2." in one("other_level", marked(points(half), image)).message
    assert found("other_level", marked(points(half), field(1200, 800))) == []
    on_glass = [(100, 100), (200, 120)]
    assert found("other_level", marked(points([*right, *on_glass]), image)) == []
    assert found("other_level", marked(points(half[:19]), image)) == []


def test_marks_made_on_a_larger_image_are_told():
    right = [(x + 720, y + 20) for x, y in PLACES]
    finding = one("other_level", marked(points([(4 * x, 4 * y) for x, y in right]), RIGHT))
    assert "multiplied by 0.25" in finding.message


def test_marks_of_many_fields_that_all_keep_to_a_corner_are_told():
    corner = [marked(points(random_places(8, seed, 150, 100, 4, 12)), name=str(seed)) for seed in range(4)]
    finding = one("other_level", *corner)
    assert (finding.severity, finding.slide) == ("warning", "")
    assert "1/4" in finding.message
    assert found("other_level", *corner[:2]) == []
    elsewhere = marked(points([(590, 390)]), name="b")
    assert found("other_level", *corner, elsewhere) == []


def test_marks_that_are_swapped_are_not_called_scaled():
    image = island((700, 0, 1200, 300))
    swapped = points([(y, x) for x, y in [(x + 720, y * 0.5 + 20) for x, y in PLACES]])
    slide = marked(swapped, image)
    assert found("swapped_axes", slide)
    assert found("other_level", slide) == []


# Sizes


@pytest.mark.parametrize(("radius_um", "told"), [(1.0, True), (2.0, False), (4.3, False), (14.0, False), (16.0, True)])
def test_outlines_of_no_nucleus_are_told(radius_um, told):
    findings = found("figure_size", marked(discs([(50, 50), (200, 50), (350, 50)], radius_um / MPP)))
    assert [finding.severity for finding in findings] == ["error"] * told
    if told:
        assert f"median diameter of {2 * radius_um:.1f}" in findings[0].message


def test_slides_of_few_outlines_are_taken_together_and_points_have_no_size():
    few = [marked(discs([(50, 50)], 1), name=name) for name in "abc"]
    assert one("figure_size", *few).slide == ""
    assert found("figure_size", *few[:2]) == []
    assert found("figure_size", marked(points(random_places(9, 1)))) == []


@pytest.mark.parametrize(
    ("mpp", "file_mpp", "properties", "n"),
    [
        (0.25, 0.25, {"objective power": "40"}, 0),
        (0.2273, None, {"objective power": "40x"}, 0),
        (0.5, 0.5, {"objective power": "40"}, 1),
        (0.25, 0.5, {"objective power": "20"}, 2),
        (0.25, 0.5, {}, 1),
        (0.25, 0.252, {"objective power": "plan apo"}, 0),
        (0.2428, 0.2428, {"objective power": "20", "vendor": "mirax"}, 0),
        (0.25, 0.25, {"objective power": "0"}, 0),
        (0.25, 0.25, {"objective power": "nan"}, 0),
    ],
)
def test_pixel_sizes_that_do_not_go_with_file_or_objective_are_told(mpp, file_mpp, properties, n):
    findings = found("pixel_size", marked((), mpp=mpp, file_mpp=file_mpp, properties=properties))
    assert [finding.severity for finding in findings] == ["warning"] * n


def test_marks_made_on_an_image_of_another_size_are_told():
    assert found("image_size", marked((), dimensions=(600, 400))) == []
    finding = one("image_size", marked((), dimensions=(300, 200)))
    assert finding.severity == "error"
    assert "300 x 200 px, but the slide has 600 x 400 px" in finding.message


# Files


def run_lint(annotations, *slides, mpp=None):
    return lint(annotations, find_sources(slides, mpp=mpp))


def of(check, findings):
    return [finding for finding in findings if finding.check == check]


def test_a_right_folder_has_nothing(slides_folder):
    assert run_lint(slides_folder, slides_folder) == ()


def test_an_unlabelled_slide_is_told_and_a_misnamed_file_guessed(slides_copy):
    (slides_copy / "A01.csv").rename(slides_copy / "A_01.csv")
    findings = run_lint(slides_copy, slides_copy)
    assert [(finding.check, finding.severity, finding.slide) for finding in findings] == [
        ("unlabelled", "warning", "A01"),
        ("orphans", "warning", ""),
    ]
    assert "(1): A_01.csv (for A01?)." in findings[1].message


def test_a_folder_without_any_marks_for_the_slides_is_an_error(slides_folder, tmp_path):
    finding = of("unlabelled", run_lint(tmp_path, slides_folder))
    assert [(f.severity, f.slide) for f in finding] == [("error", "")]


def test_other_tables_are_no_orphans(slides_copy):
    (slides_copy / "notes.csv").write_text("who,when\nme,today\n")
    (slides_copy / "settings.json").write_text("{}")
    Image.new("L", (9, 9)).save(slides_copy / "C01_mask.png")
    assert [finding.message for finding in run_lint(slides_copy, slides_copy)] == [
        "Files of marks that belong to no slide given (1): C01_mask.png."
    ]


def test_an_orphan_is_found_in_every_form(slides_copy):
    masks = slides_copy / "masks"
    masks.mkdir()
    Image.new("L", (9, 9)).save(masks / "x.png")
    for name in ("y_mitosis.csv", "y_not_mitosis.csv"):
        (slides_copy / name).write_text("5,6,0.9\n")
    (slides_copy / "z.geojson").write_text("[]")
    message = of("orphans", run_lint(slides_copy, slides_copy))[0].message
    assert all(name in message for name in ("x.png", "y_mitosis.csv", "y_not_mitosis.csv", "z.geojson"))


def test_an_empty_file_is_told_but_one_with_look_alikes_is_not(slides_copy):
    (slides_copy / "A01.csv").write_text("")
    save_marks(slides_copy / "A02.csv", [], [(30, 30)])
    findings = run_lint(slides_copy, slides_copy)
    assert [(f.check, f.severity, f.slide) for f in findings] == [("empty", "warning", "A01")]


def test_marks_of_other_classes_are_a_note(slides_copy):
    with (slides_copy / "A01.csv").open("a") as stream:
        stream.write("9,9,apoptosis\n")
    findings = run_lint(slides_copy, slides_copy)
    assert [(f.check, f.severity, f.slide) for f in findings] == [("ignored", "note", "A01")]


def test_what_cannot_be_read_is_told_and_the_others_go_on(slides_copy):
    (slides_copy / "A01.csv").write_text("x,y,label\n1,here,mitosis\n")
    (slides_copy / "A02.png").write_bytes(b"\x89PNG nothing")
    save_marks(slides_copy / "B01.csv", [(900, 900)])
    findings = run_lint(slides_copy, slides_copy)
    assert [(f.check, f.severity, f.slide) for f in findings] == [
        ("unreadable", "error", "A01"),
        ("unreadable", "error", "A02"),
        ("outside", "error", "B01"),
    ]
    assert "A01.csv, line 2" in findings[0].message
    assert str(slides_copy / "A02.png") not in findings[1].message


def test_two_files_for_one_slide_are_told_and_are_no_orphans(slides_copy):
    (slides_copy / "A01.geojson").write_text("[]")
    findings = run_lint(slides_copy, slides_copy)
    assert [(f.check, f.slide) for f in findings] == [("unreadable", "A01")]


def test_a_single_file_of_many_slides(slides_folder, tmp_path):
    (tmp_path / "all.csv").write_text("slide,x,y,label\nA01,50,60,mitosis\nA02.png,50,60,mitosis\n")
    findings = run_lint(tmp_path / "all.csv", slides_folder)
    assert [(f.check, f.slide) for f in findings] == [("unlabelled", "B01")]


def test_a_file_that_says_nothing_of_slides_given_for_several_is_an_error(slides_folder):
    findings = run_lint(slides_folder / "A01.csv", slides_folder)
    assert [(f.check, f.severity) for f in findings] == [("same_marks", "error")]
    assert "same 9 marks on 3 slides: A01, A02, B01." in findings[0].message
    assert run_lint(slides_folder / "A01.csv", slides_folder / "A01.png") == ()


def test_a_file_of_marks_copied_to_another_slide_is_an_error_but_one_mark_alike_may_be_chance(slides_copy):
    shutil.copy(slides_copy / "A01.csv", slides_copy / "B01.csv")
    assert ["A01, B01." in f.message for f in run_lint(slides_copy, slides_copy)] == [True]
    for name in ("A01.csv", "B01.csv"):
        save_marks(slides_copy / name, [(50, 60)])
    assert run_lint(slides_copy, slides_copy) == ()


def test_given_pixel_sizes_are_compared_with_the_file(slides_folder):
    findings = run_lint(slides_folder, slides_folder, mpp=0.25)
    assert {f.check for f in findings} == {"pixel_size"}
    assert len(findings) == 3


# Box files


def boxes_json(path, boxes, size=(600, 400)):
    sides = dict(zip(("width", "height"), size, strict=True)) if size else {}
    content = {
        "images": [{"id": 1, "file_name": "a.png", **sides}],
        "categories": [{"id": 1, "name": "mitotic figure"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": list(b)} for i, b in enumerate(boxes)],
    }
    path.write_text(json.dumps(content))
    return path


def boxed(tmp_path, boxes, **options):
    boxes_json(tmp_path / "marks.json", boxes, **options)
    return found("box_reading", source=tmp_path)


CORNERS = [(x - 12, y - 12, x + 12, y + 12) for x, y in random_places(10, 7, 600, 400, border=40)]
SIZES = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in CORNERS]


@pytest.mark.parametrize(("boxes", "words"), [(CORNERS, "x1,y1,x2,y2"), (SIZES, "x,y,width,height")])
@pytest.mark.parametrize("size", [(600, 400), None])
def test_the_reading_of_boxes_is_told(boxes, words, size, tmp_path):
    (finding,) = boxed(tmp_path, boxes, size=size)
    assert finding.severity == "note"
    assert f"marks.json: boxes are read as {words}; so 0.0%" in finding.message


@pytest.mark.parametrize(
    ("boxes", "severity", "words"),
    [
        ([(10, 10, 25, 25)], "error", "Both fit"),
        ([(700, 10, 20, 20), (800, 10, 900, 30)], "error", "Neither fits"),
        ([*CORNERS, (590, 10, 614, 34)], "warning", "9.1%"),
    ],
)
def test_boxes_that_fit_both_ways_or_neither_are_an_error(boxes, severity, words, tmp_path):
    (finding,) = boxed(tmp_path, boxes)
    assert finding.severity == severity
    assert words in finding.message


def test_no_boxes_and_broken_boxes_are_left_to_the_other_checks(tmp_path):
    assert boxed(tmp_path, []) == []
    for bad in ([("a", 1, 2, 3)], [(1, 2, 3)], [(1e308, 1e308, 1e308, 1e308)]):
        assert boxed(tmp_path, bad) == []
    for text in ("", "{", '{"images": 3}', '{"images": [], "annotations": [{}]}'):
        (tmp_path / "marks.json").write_text(text)
        assert found("box_reading", source=tmp_path) == []


quads = st.tuples(*[st.integers(-5, 90)] * 4)


@given(st.lists(quads, min_size=1, max_size=6))
def test_the_reading_told_is_the_one_taken(tmp_path_factory, boxes):
    folder = tmp_path_factory.mktemp("boxes")
    (finding,) = boxed(folder, boxes, size=(80, 70))
    try:
        marks = midog.read(folder / "marks.json", "a")
    except AnnotationError:
        assert finding.severity == "error"
        return
    corners = "read as x1" in finding.message
    centres = [((a + c) / 2, (b + d) / 2) if corners else (a + c / 2, b + d / 2) for a, b, c, d in boxes]
    assert [(mark.x, mark.y) for mark in marks.annotations] == centres


# The command


def run(*words):
    """(exit code, standard output, exception) of ``mitosis``."""
    result = CliRunner().invoke(app, list(map(str, words)))
    return result.exit_code, result.stdout, result.exception


def test_the_command_groups_by_slide_counts_and_ends_with_1_on_errors(slides_copy):
    code, out, _ = run("lint", slides_copy, slides_copy)
    assert (code, out) == (0, "0 errors, 0 warnings in 3 slides\n")
    (slides_copy / "A01.csv").unlink()
    (slides_copy / "B01.csv").unlink()
    code, out, _ = run("lint", slides_copy, slides_copy)
    assert code == 0
    assert out.splitlines()[0] == "2 slides: A01, B01"
    assert out.splitlines()[-1] == "0 errors, 2 warnings in 3 slides"
    save_marks(slides_copy / "A02.csv", [(900, 900), (90, 90)], [(91, 90)])
    code, out, _ = run("lint", slides_copy, slides_copy / "A02.png")
    lines = out.splitlines()
    assert code == 1
    assert lines[0] == "A02"
    assert [line.split()[0] for line in lines[1:-1:2]] == ["error:", "error:"]
    assert lines[-1] == "2 errors, 0 warnings in 1 slide"


def test_the_command_prints_one_json_object(slides_copy):
    save_marks(slides_copy / "A02.csv", [(900, 900)])
    code, out, _ = run("lint", slides_copy, slides_copy, "--json")
    told = json.loads(out)
    assert code == 1
    assert (told["slides"], told["n_errors"], told["n_warnings"], told["n_notes"]) == (["A01", "A02", "B01"], 1, 0, 0)
    (finding,) = told["findings"]
    assert (finding["check"], finding["slide"], finding["marks"]) == ("outside", "A02", [[900.0, 900.0]])


def test_a_folder_of_marks_that_is_not_there_is_refused(slides_folder, tmp_path):
    code, _, error = run("lint", tmp_path / "none", slides_folder)
    assert code == 1
    assert isinstance(error, AnnotationError)
    assert "no such file or folder of marks" in str(error)


def test_the_command_starts_without_torch(slides_folder):
    code = (
        "import sys; from mitosis.cli import app; "
        f"app(['lint', {str(slides_folder)!r}, {str(slides_folder)!r}], standalone_mode=False); "
        "print('torch' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines()[-1] == "False"


def test_many_places_are_cut_short():
    assert listing(list("abc")) == "a, b, c"
    assert listing(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"


# Real marks


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mpp"), [("mitos12", 0.2456), ("atypia14", 0.2273)])
def test_published_marks_have_no_error_and_no_false_alarm(real_data, name, mpp):
    assert run_lint(real_data / name, real_data / name, mpp=mpp) == ()


def test_the_box_file_of_midog_is_read_as_corners(real_data):
    (finding,) = found("box_reading", source=real_data / "annotations")
    assert finding.severity == "note"
    assert "read as x1,y1,x2,y2" in finding.message
