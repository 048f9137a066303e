"""Cohort: which slides a run has, and what is known of each before it is opened."""

import os
from pathlib import Path

import pytest

from mitosis.cohort import SlideSource, find_sources, read_manifest
from mitosis.errors import AnnotationError, ConfigError, SlideError, SlideNotFoundError


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_gives_its_slides_by_name_and_nothing_else(tmp_path):
    folder = touch(tmp_path / "s", "b.svs", "a.PNG", "a.csv", "a_mask.png", ".hidden.png", "notes.txt")
    touch(folder / "inner", "c.svs")
    sources = find_sources([folder])
    assert [source.slide_id for source in sources] == ["a", "b"]
    assert sources[0] == SlideSource(folder / "a.PNG", "a", "a")


def test_files_are_taken_as_named_and_options_go_to_each(tmp_path):
    folder, marks = touch(tmp_path, "b.svs", "a.weird"), touch(tmp_path / "marks", "a.csv")
    sources = find_sources([folder / "b.svs", folder / "a.weird"], domain="lab", mpp=0.25, annotations=marks)
    assert [source.slide_id for source in sources] == ["a", "b"]
    assert {(source.domain, source.mpp, source.annotations) for source in sources} == {("lab", 0.25, marks)}


@pytest.mark.parametrize(
    ("pattern", "cases"),
    [
        (None, ["A01_x", "A02_x", "B01_x"]),
        (r"^[AB]\d", ["A0", "A0", "B0"]),
        (r"^(\w)\d+", ["A", "A", "B"]),
        (r"^(A\d\d)|^(B\d\d)", ["A01", "A02", "B01"]),
    ],
)
def test_the_case_is_what_the_pattern_or_its_first_group_finds(tmp_path, pattern, cases):
    touch(tmp_path, "A01_x.png", "A02_x.png", "B01_x.png")
    assert [source.case_id for source in find_sources([tmp_path], case_pattern=pattern)] == cases


def test_a_name_without_a_case_is_refused_by_name(tmp_path):
    touch(tmp_path, "A01.png", "other.png")
    with pytest.raises(ConfigError, match=r"finds nothing in the slide name 'other'"):
        find_sources([tmp_path], case_pattern=r"^A\d\d")


def test_a_pattern_that_finds_no_letter_makes_no_case(tmp_path):
    with pytest.raises(ConfigError, match=r"finds nothing in the slide name 'a'"):
        find_sources([touch(tmp_path, "a.png")], case_pattern="x*")


def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    (Path(os.fsdecode(bytes(tmp_path) + b"/M\xfcller.png"))).touch()
    with pytest.raises(SlideError, match=r"M\\udcfcller\.png.*no UTF-8. Rename it"):
        find_sources([tmp_path])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("marks.csv", "x,y,label\n100,100,mitotic figure\n"),
        ("marks.csv", "100,100\n"),
        ("marks.geojson", '{"type": "FeatureCollection", "features": []}'),
    ],
)
def test_marks_of_one_slide_are_not_taken_for_those_of_another(tmp_path, name, text):
    marks = write(touch(tmp_path, "a.svs", "b.svs") / name, text)
    assert find_sources([tmp_path / "a.svs"], annotations=marks)[0].annotations == marks
    with pytest.raises(AnnotationError, match=rf"{name}: holds the marks of one slide, but 2 slides are given"):
        find_sources([tmp_path], annotations=marks)
    with pytest.raises(AnnotationError, match=rf"{name}: holds the marks of one slide, but 2 slides are given"):
        read_manifest(write(tmp_path / "m.txt", f"slide,annotations\na.svs,{name}\nb.svs,{name}\n"))


@pytest.mark.parametrize(
    ("name", "text"), [("m.csv", "File_Name,x,y\na.svs,1,1\n"), ("m.json", '{"images": [], "annotations": []}')]
)
def test_a_file_that_names_its_slides_serves_several(tmp_path, name, text):
    marks = write(touch(tmp_path, "a.svs", "b.svs") / name, text)
    assert [source.annotations for source in find_sources([tmp_path], annotations=marks)] == [marks, marks]


def test_a_pattern_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--case-pattern \(: not a regular expression"):
        find_sources([touch(tmp_path, "a.png")], case_pattern="(")


def test_two_slides_of_one_name_are_refused_naming_both(tmp_path):
    paths = [touch(tmp_path / name, "same.png") / "same.png" for name in ("one", "two")]
    with pytest.raises(SlideError, match=r"one/same\.png and .*two/same\.png have the same name"):
        find_sources(paths)
    with pytest.raises(SlideError, match="same name"):
        find_sources([touch(tmp_path / "one", "same.svs")])


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(SlideNotFoundError, match=r"nothing\.svs: no such file"):
        find_sources([tmp_path / "nothing.svs"])
    with pytest.raises(SlideNotFoundError, match="no slide in this folder"):
        find_sources([touch(tmp_path / "empty", "a.csv")])
    with pytest.raises(AnnotationError, match=r"marks\.csv: no such file or folder"):
        find_sources([touch(tmp_path / "s", "a.png")], annotations=tmp_path / "marks.csv")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.svs", ["b"]),
        ("*", ["a", "b"]),
        ("**/*.svs", ["b", "c"]),
        ("[ab].*", ["a", "b"]),
        ("inner/?.svs", ["c"]),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_pattern_gives_the_slides_that_match(tmp_path, monkeypatch, pattern, names, relative):
    folder = touch(tmp_path / "s", "b.svs", "a.PNG", "a.csv", "a_mask.png", ".hidden.png", "notes.txt")
    touch(folder / "inner", "c.svs")
    monkeypatch.chdir(tmp_path)
    sources = find_sources([(Path("s") if relative else folder) / pattern])
    assert [source.slide_id for source in sources] == names
    assert all(source.path.is_absolute() != relative for source in sources)


def test_a_pattern_that_matches_nothing_or_is_none_is_named(tmp_path):
    touch(tmp_path, "a.csv")
    for pattern in ("*.svs", "*.csv", "none/*"):
        with pytest.raises(SlideNotFoundError, match="no slide matches this pattern"):
            find_sources([tmp_path / pattern])
    with pytest.raises(SlideNotFoundError, match="not a pattern"):
        find_sources([tmp_path / "**x"])


def test_a_name_with_brackets_is_a_name_if_it_is_there(tmp_path):
    assert find_sources([touch(tmp_path, "a[1].png", "a1.png") / "a[1].png"])[0].slide_id == "a[1]"


@pytest.mark.parametrize("name", ["...png", "..png"])
def test_a_name_that_would_lead_out_of_the_output_folder_is_refused(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(SlideError, match="of no name"):
        find_sources([tmp_path / name])


def test_a_manifest_says_everything_and_its_paths_start_at_its_folder(tmp_path):
    touch(tmp_path / "data", "b.svs", "a.svs", "a.csv", "a.geojson")
    manifest = write(
        tmp_path / "data" / "m.csv",
        "\ufeffslide,case,domain,mpp,annotations,roi\nb.svs,,,,,\na.svs,patient 1,Aperio,0.25,a.csv,a.geojson\n",
    )
    first, second = read_manifest(manifest)
    data = tmp_path / "data"
    marks, region = data / "a.csv", data / "a.geojson"
    assert first == SlideSource(data / "a.svs", "a", "patient 1", "Aperio", 0.25, marks, region)
    assert second == SlideSource(data / "b.svs", "b", "b")


@pytest.mark.parametrize(
    "text",
    [
        "slide,case,mpp,note\na.svs,p1,0.5,good\nb.svs\n",
        "Slide, CASE ,Mpp\r\n a.svs , p1 , 0.5\r\nb.svs,,\r\n",
        "slide;case;mpp\na.svs;p1;0.5\nb.svs;;\n",
        "slide\tcase\tmpp\n\na.svs\tp1\t0.5\nb.svs\n",
    ],
)
def test_a_manifest_may_come_from_any_table_program_and_options_serve_rows_that_say_nothing(tmp_path, text):
    folder, marks = touch(tmp_path, "a.svs", "b.svs"), touch(tmp_path / "marks", "a.csv")
    given = {"case_pattern": "^.", "domain": "lab", "mpp": 0.25, "annotations": marks}
    first, second = read_manifest(write(folder / "m.csv", text), **given)
    assert first == SlideSource(folder / "a.svs", "a", "p1", "lab", 0.5, marks)
    assert second == SlideSource(folder / "b.svs", "b", "b", "lab", 0.25, marks)


def test_an_absolute_path_in_a_manifest_stays(tmp_path):
    touch(tmp_path / "elsewhere", "a.svs")
    manifest = write(tmp_path / "m.csv", f"slide\n{tmp_path / 'elsewhere' / 'a.svs'}\n")
    assert read_manifest(manifest)[0].path == tmp_path / "elsewhere" / "a.svs"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "needs a header"),
        ("slide\n", "at least one row"),
        ("file\na.svs\n", "needs a header with the column 'slide'"),
        ("slide,mpp\na.svs,wide\n", "line 2: mpp 'wide' is not a number"),
        ("case,slide\np1,a.svs\np2\n", "line 3: no slide"),
        ("slide,case\n,p1\n", "line 2: no slide"),
        ("slide,case_id\na.svs,p1\n", "unknown column 'case_id'. Write 'case', or delete it"),
        ("slide,domains\na.svs,p1\n", "unknown column 'domains'. Write 'domain'"),
        ("slide,case\na.svs,p1,0.25\n", "line 2: more fields than columns"),
        ("slide,annotations\na.svs,none.csv\n", r"none\.csv: no such file or folder"),
        ("slide,roi\na.svs,none.geojson\n", r"m\.csv, line 2: .*none\.geojson: no such file of a region"),
        ("slide,roi\na.svs,.\n", "line 2: .*: no such file of a region"),
    ],
)
def test_a_manifest_that_says_too_little_is_refused_with_its_line(tmp_path, text, complaint):
    touch(tmp_path, "a.svs")
    with pytest.raises((ConfigError, AnnotationError), match=complaint):
        read_manifest(write(tmp_path / "m.csv", text))


def test_an_unreadable_manifest_is_named(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"slide\n\xff\xfe\n")
    for path, reason in (
        (tmp_path / "missing.csv", ": there is no such file"),
        (tmp_path / "m.csv", ", line 2: not UTF-8"),
        (tmp_path, ": cannot be read"),
    ):
        with pytest.raises(ConfigError, match=f"{path.name}{reason}"):
            read_manifest(path)


def test_equal_names_in_a_manifest_are_refused(tmp_path):
    with pytest.raises(SlideError, match="same name"):
        read_manifest(write(tmp_path / "m.csv", "slide\none/a.svs\ntwo/a.tif\n"))
