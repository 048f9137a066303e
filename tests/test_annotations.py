"""Readers of marks: each format's convention, what belongs to a slide, and every way a file can be broken."""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely.geometry import Polygon, box

from mitosis.annotations import (
    FORMATS,
    TELOPHASE_UM,
    Annotation,
    AnnotationSet,
    Label,
    find_annotations,
    label_mask,
    load_annotations,
    read_annotations,
    text,
    write_points,
)
from mitosis.annotations.annotation import label_of
from mitosis.annotations.segments import join_segments, pixel_outlines
from mitosis.annotations.text import read_head
from mitosis.errors import AnnotationError
from mitosis.slides import SLIDE_SUFFIXES

FIGURE, LOOK_ALIKE = Label.MITOTIC_FIGURE, Label.NON_MITOTIC_FIGURE
MPP = 0.25


def midog_json(bboxes: list[list[float]], categories: list[int] | None = None) -> dict[str, Any]:
    """Two images: 001 with these boxes, 002 without any."""
    categories = categories or [1] * len(bboxes)
    return {
        "images": [{"id": i, "file_name": f"00{i}.tiff", "width": 400, "height": 300} for i in (1, 2)],
        "categories": [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": category, "bbox": bbox}
            for k, (bbox, category) in enumerate(zip(bboxes, categories, strict=True))
        ],
    }


def feature(geometry: dict[str, Any] | None, name: Any = "Mitosis") -> dict[str, Any]:
    properties = {"objectType": "annotation", "classification": name}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def point(x: float, y: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [x, y]}


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8", newline="")
    elif isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    else:
        path.write_text(json.dumps(content))
    return path


MASK = np.zeros((300, 400), np.uint8)
MASK[48:51, 98:103] = 1
MASK[148:151, 198:203] = 2

# One figure centred at (100.5, 49.5) and one look-alike at (200.5, 149.5), where the format has look-alikes.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "label_mask": ("001_mask.png", MASK),
    "geojson": ("001.geojson", collection(feature(point(100.5, 49.5)), feature(point(200.5, 149.5), "imposter"))),
    "midog": ("MIDOG.json", midog_json([[75.5, 24.5, 125.5, 74.5], [175.5, 124.5, 225.5, 174.5]], [1, 2])),
    "points": ("001.csv", "x,y,label\n100.5,49.5,mitotic figure\n200.5,149.5,non-mitotic figure\n"),
    "atypia": ("001_mitosis.csv", "100,49,0.8\n"),
    "pixel_list": ("001.csv", ",".join(f"{x},{y}" for y in (48, 49, 50) for x in range(98, 103)) + "\n"),
}
EMPTY: dict[str, tuple[str, Any]] = {
    "label_mask": ("001_mask.png", np.zeros((300, 400), np.uint8)),
    "geojson": ("001.geojson", collection()),
    "points": ("001.csv", "x,y,label\n"),
    "atypia": ("001_mitosis.csv", ""),
    "pixel_list": ("001.csv", ""),
}


# ---- what holds for every format


def test_every_format_has_an_example() -> None:
    assert EXAMPLES.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("slide_id", ["001", "001.tiff"])
def test_format_is_found_recognised_and_read_under_the_house_convention(
    tmp_path: Path, name: str, slide_id: str
) -> None:
    path = write(tmp_path / EXAMPLES[name][0], EXAMPLES[name][1])
    assert find_annotations(tmp_path, slide_id) == (path,)
    found = load_annotations(tmp_path, slide_id, (400, 300), MPP)
    assert found == load_annotations(path, slide_id, (400, 300), MPP, format=name)
    figures = [(mark.x, mark.y) for mark in found.annotations if mark.label is FIGURE]
    look_alikes = [(mark.x, mark.y) for mark in found.annotations if mark.label is LOOK_ALIKE]
    assert figures == [pytest.approx((100.5, 49.5))]
    assert look_alikes == ([] if name in {"atypia", "pixel_list"} else [pytest.approx((200.5, 149.5))])
    assert found.n_outside == found.n_ignored == 0


@pytest.mark.parametrize("name", EMPTY)
def test_empty_file_means_no_figures_and_is_not_unlabelled(tmp_path: Path, name: str) -> None:
    write(tmp_path / EMPTY[name][0], EMPTY[name][1])
    assert load_annotations(tmp_path, "001", (400, 300), MPP).annotations == ()


@pytest.mark.parametrize("name", FORMATS)
def test_missing_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / EXAMPLES[name][0]
    with pytest.raises(AnnotationError, match=path.name):
        read_annotations(path, "001", format=name)


def read_or_error(path: Path, format: str | None) -> AnnotationSet | AnnotationError:
    try:
        return read_annotations(path, "001", format=format)
    except AnnotationError as error:
        return error


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_annotation_errors_escape_from_damaged_files(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = write(tmp_path / EXAMPLES[name][0], EXAMPLES[name][1])
    good = path.read_bytes()
    damage = data.draw(st.sampled_from(["bytes", "cut", "insert", "swap"]))
    place = data.draw(st.integers(0, len(good) - 1))
    snippet = data.draw(
        st.binary(max_size=8)
        | st.sampled_from([b"[", b"{", b'"', b",", b"-", b"1e999", b"NaN", b"null", b"[[]]", b"\n"])
    )
    length = data.draw(st.integers(0, 12))
    broken = {
        "bytes": data.draw(st.binary(max_size=60)),
        "cut": good[:place],
        "insert": good[:place] + snippet + good[place:],
        "swap": good[:place] + snippet + good[place + length :],
    }[damage]
    path.write_bytes(broken)
    for format in (name, None):
        found = read_or_error(path, format)
        if isinstance(found, AnnotationError):
            assert path.name in str(found)
        else:
            assert all(np.isfinite([mark.x, mark.y]).all() for mark in found.annotations)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def replaced(value: Any, path: list[int], new: Any) -> Any:
    """`value` with the part that `path` leads to replaced."""
    parts = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if not path or not parts:
        return new
    key, old = parts[path[0] % len(parts)]
    changed = dict(parts) | {key: replaced(old, path[1:], new)}
    return changed if isinstance(value, dict) else list(changed.values())


@given(path=st.lists(st.integers(0, 20), max_size=8), new=json_values)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["geojson", "midog"])
def test_json_of_another_shape_is_understood_or_refused_but_never_crashes(
    tmp_path: Path, name: str, path: list[int], new: Any
) -> None:
    content = EXAMPLES[name][1]
    if name == "geojson":
        ring = [[0, 0], [10, 0], [10, 9], [0, 10], [0, 0]]
        content = collection(
            *content["features"],
            feature({"type": "Polygon", "coordinates": [ring]}, {"name": "MF", "color": [1, 2, 3]}),
            feature({"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [ring]}]}),
        )
    file = write(tmp_path / EXAMPLES[name][0], replaced(content, path, new))
    found = read_or_error(file, name)
    assert not isinstance(found, AnnotationError) or file.name in str(found)


# ---- encodings and limits


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("points", "\ufeffx,y,label\r\n\r\n100.5,49.5,mitotic figure\r\n"),
        ("points", 'x;y;label\n"100,5";49,5;"MF"\n'),
        ("points", "X\tY\tClass\n100.5\t49.5\tMitosis\n"),
        ("points", "id,x_px,y_px\n7,100.5,49.5"),
        ("atypia", "\ufeff100;49;0.8\r\n\r\n"),
        ("atypia", "\n100,49\r"),
        ("pixel_list", "\ufeff100,49,\r\n\r\n"),
        ("pixel_list", " 100 ; 49 ; \n"),
    ],
)
def test_csv_with_byte_order_mark_other_delimiters_and_blank_lines(tmp_path: Path, name: str, content: str) -> None:
    file = write(tmp_path / "001.csv", content)
    (mark,) = read_annotations(file, "001", format=name).annotations
    assert (mark.x, mark.y, mark.label) == (100.5, 49.5, FIGURE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pixel_list", "1,2\n3,4,5\n", "line 2: 3 numbers are no list of x,y pairs"),
        ("pixel_list", "1,2,3,nan\n", "line 1: 'nan' is no pixel coordinate"),
        ("pixel_list", "1,2,,4\n", "line 1: '' is no pixel coordinate"),
        ("pixel_list", "1,2,3," + "9" * 5000, "line 1: '999"),
        ("pixel_list", "1.5,2,3,4\n", "needs whole numbers"),
        ("atypia", "1,2,3,4\n", "line 1: 4 fields"),
        ("atypia", "1,2\n\n3,inf\n", "line 3: 'inf' is no pixel coordinate"),
        ("points", "a,b\n1,2\n", "line 1: no columns x and y"),
        ("points", "x,y\n1,\n", "line 2: '' is no pixel coordinate"),
        ("points", "x,y,label\n1,2,stroma\n", "no class is a mitotic figure .found 'stroma'"),
        ("points", "x,y\n1,2\n".encode("utf-16"), "Save it again as UTF-8"),
        ("points", "x,y\n1,2\n".encode("utf-16-le"), "line 1: holds zero bytes"),
        ("points", b"x,y\n1,2\n\xff", "line 3: not UTF-8"),
        ("geojson", '{"type":"Feature",', "line 1: not JSON"),
        ("geojson", "[" * 100_000, "nested too deep"),
        ("geojson", "[" + "1" * 5000 + "]", "Export the file again"),
        ("geojson", '{"type":"FeatureCollection","type":"Feature"}', "'type' stands twice"),
        ("geojson", "{}", "no GeoJSON features"),
        ("geojson", collection(feature(point(float("nan"), 1))), "feature 1: 'nan' is no pixel coordinate"),
        ("geojson", collection(feature(point(1, 10**400))), "is no pixel coordinate"),
        ("geojson", collection(feature({"type": "Point", "coordinates": [1]})), "without x and y"),
        ("geojson", feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}), "fewer than three"),
        ("geojson", feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, 2]]]}), "without an area"),
        ("geojson", collection(feature(point(1, 2), "Tumor"), feature(None, None)), "found 'Tumor', 'unclassified'"),
        ("midog", {"images": []}, "not laid out like MIDOG.json"),
        ("midog", midog_json([[9, 9, -5, -5], [399, 299, -7, -7]]), "most boxes lie off their images"),
        ("midog", midog_json([[1, 2, 3, float("inf")]]), "annotation 0: 'inf'"),
        ("midog", midog_json([[1, 2, 3, 4]]) | {"categories": [{"id": 1, "name": "cell"}]}, "found 'cell'"),
        ("label_mask", np.full((4, 4), 7, np.uint8), "the value 7 has no meaning"),
        ("label_mask", np.array([[0, 255]], np.uint8), "255, which means ignore"),
        ("label_mask", np.zeros((4, 4, 3), np.uint8), "of mode RGB is no label mask"),
        ("label_mask", b"no image", "cannot be read as an image"),
    ],
)  # rows as in a table  # fmt: skip
def test_broken_file_is_told_by_name_place_and_fix(tmp_path: Path, name: str, content: Any, message: str) -> None:
    file = write(tmp_path / EXAMPLES[name][0], content)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(file, "001", format=name)
    assert str(caught.value).startswith(str(file))


def test_file_beyond_the_size_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "001.geojson.gz", gzip.compress(b"[" + b" " * (3 << 20) + b"]"))
    assert read_annotations(file, "001").annotations == ()
    monkeypatch.setattr(text, "MAX_BYTES", 2 << 20)
    with pytest.raises(AnnotationError, match="larger than 2 MB"):
        read_annotations(file, "001")


def test_damaged_gzip_is_an_annotation_error(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(EXAMPLES["geojson"][1]).encode())
    for broken in (packed[:-9], b"plain", packed[:12] + b"\xff\xff" + packed[14:]):
        with pytest.raises(AnnotationError, match="gzip"):
            read_annotations(write(tmp_path / "001.geojson.gz", broken), "001")


def test_unknown_format_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="pixel_list"):
        read_annotations(tmp_path / "a.csv", "a", format="asap")
    with pytest.raises(AnnotationError, match="of no known format"):
        read_annotations(write(tmp_path / "a.xml", "<a/>"), "a")


# ---- class names


@pytest.mark.parametrize("name", ["Mitosis", "mitotic figure", "Mitotic_Figures", "MF", "Tumor: Mitosis", " MITOSES "])
def test_names_of_mitotic_figures(name: str) -> None:
    assert label_of(name) is FIGURE


@pytest.mark.parametrize(
    "name",
    ["non-mitotic figure", "not mitotic figure", "Non-mitosis", "NonMitotic", "hard negative", "Imposter", "impostors",
     "look-alike", "Look-alikes", "lookalike", "not_mitosis", "non-mitotic"],
)  # rows as in a table  # fmt: skip
def test_names_of_look_alikes(name: str) -> None:
    assert label_of(name) is LOOK_ALIKE


@pytest.mark.parametrize("name", ["", "Tumor", "necrosis", "mitochondria", "Mitosis: Ignore*"])
def test_other_classes_are_neither(name: str) -> None:
    assert label_of(name) is None


# ---- point CSV


@given(
    marks=st.lists(
        st.builds(Annotation, st.floats(0, 1e5), st.floats(0, 1e5), st.sampled_from(list(Label))), max_size=20
    )
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_points_are_read_back_in_order(tmp_path: Path, marks: list[Annotation]) -> None:
    write_points(tmp_path / "a.csv", marks)
    back = read_annotations(tmp_path / "a.csv", "a").annotations
    assert [mark.label for mark in back] == [mark.label for mark in marks]
    assert np.allclose([(m.x, m.y) for m in back], [(m.x, m.y) for m in marks], rtol=0, atol=0.0005001)


def test_slide_column_selects_and_a_slide_it_does_not_name_is_unlabelled(tmp_path: Path) -> None:
    file = write(tmp_path / "all.csv", "slide,x,y,label\na.tiff,1,2,MF\nb,3,4,MF\na,5,6,imposter\n")
    found = load_annotations(file, "a", (9, 9), MPP).annotations
    assert [(mark.x, mark.label) for mark in found] == [(1.0, FIGURE), (5.0, LOOK_ALIKE)]
    assert load_annotations(file, "c", (9, 9), MPP, missing_ok=True) is None


def test_points_of_other_classes_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "x,y,label\n1,2,MF\n3,4,stroma\n5,6,\n")
    found = read_annotations(file, "a")
    assert (len(found.annotations), found.n_ignored) == (1, 2)


# ---- ATYPIA pairs


def test_pair_of_files_keeps_look_alikes_as_their_own_label(tmp_path: Path) -> None:
    figures = write(tmp_path / "H03_00Aa_mitosis.csv", "10,20,0.8\n")
    look_alikes = write(tmp_path / "H03_00Aa_not_mitosis.csv", "30,40,0.2\n50,60,0.0\n")
    assert find_annotations(tmp_path, "H03_00Aa") == (figures, look_alikes)
    found = load_annotations(tmp_path, "H03_00Aa", (400, 300), MPP).annotations
    assert found == (
        Annotation(10.5, 20.5, FIGURE),
        Annotation(30.5, 40.5, LOOK_ALIKE),
        Annotation(50.5, 60.5, LOOK_ALIKE),
    )


def test_look_alikes_without_the_file_of_figures_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a_not_mitosis.csv", "1,2\n")
    with pytest.raises(AnnotationError, match=r"look-alikes without a_mitosis\.csv"):
        find_annotations(tmp_path, "a")


def test_headerless_csv_of_single_points_is_points_not_one_pixel_figures(tmp_path: Path) -> None:
    file = write(tmp_path / "A06_00Aa.csv", "10,20,0.8\n30,40,0.7\n")
    assert read_annotations(file, "A06_00Aa").annotations == (
        Annotation(10.5, 20.5, FIGURE),
        Annotation(30.5, 40.5, FIGURE),
    )


def test_a_long_headerless_csv_of_points_is_no_pixel_list_wherever_its_head_is_cut(tmp_path: Path) -> None:
    for n_digits in range(1, 13):  # five of the cuts are within a line's first number
        file = write(tmp_path / f"{n_digits}.csv", f"1,{'2' * n_digits}\n" + "12345,67890\n" * 6000)
        head = read_head(file)
        assert next(name for name, reader in FORMATS.items() if reader.recognises(file, head)) == "atypia"


@pytest.mark.parametrize("word", ["non-mitotic figure", "0.8x", "nan"])
def test_words_in_a_headerless_csv_are_no_confidence(tmp_path: Path, word: str) -> None:
    file = write(tmp_path / "a.csv", f"100,100,0.7\n200,210,{word}\n")
    with pytest.raises(AnnotationError, match=rf"a\.csv, line 2: '{word}' is no confidence. Add the header line"):
        read_annotations(file, "a")


# ---- pixel lists

pixels = st.sets(st.tuples(st.integers(-3, 8), st.integers(0, 10)), min_size=1, max_size=60)


def covered(outlines: tuple[Polygon, ...]) -> set[tuple[int, int]]:
    columns, rows = np.meshgrid(np.arange(-5, 15), np.arange(-5, 15))
    inside = np.any([shapely.contains_xy(o, columns + 0.5, rows + 0.5) for o in outlines], axis=0)
    return set(zip(columns[inside].tolist(), rows[inside].tolist(), strict=True))


@given(pixels)
def test_outlines_cover_exactly_the_pixels(chosen: set[tuple[int, int]]) -> None:
    columns, rows = np.array(sorted(chosen, key=hash)).T
    outlines = pixel_outlines(columns, rows)
    assert covered(outlines) == chosen
    assert sum(outline.area for outline in outlines) == pytest.approx(len(chosen))
    assert all(outline.is_valid for outline in outlines)


@given(pixels)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_centre_of_a_pixel_list_is_the_mean_of_its_pixel_centres(tmp_path: Path, chosen: set[tuple[int, int]]) -> None:
    repeated = [*chosen, *chosen]
    file = write(tmp_path / "a.csv", ",".join(f"{x},{y}" for x, y in repeated))
    (mark,) = read_annotations(file, "a", format="pixel_list").annotations
    assert (mark.x, mark.y) == pytest.approx(np.mean(list(chosen), axis=0) + 0.5)
    assert covered(mark.outlines) == chosen


# ---- MIDOG


def test_midog_boxes_are_read_by_corners_or_by_size_whichever_fits(tmp_path: Path) -> None:
    corners = write(tmp_path / "a.json", midog_json([[300, 200, 350, 250], [10, 20, 60, 70]]))
    sizes = write(tmp_path / "b.json", midog_json([[300, 200, 50, 50], [10, 20, 50, 50]]))
    expected = [(325.0, 225.0), (35.0, 45.0)]
    for file in (corners, sizes):
        assert [(mark.x, mark.y) for mark in read_annotations(file, "001").annotations] == expected


def test_midog_boxes_without_image_sizes_are_read_as_the_smaller_boxes(tmp_path: Path) -> None:
    content = midog_json([[300, 200, 350, 250], [310, 210, 360, 260]])
    for image in content["images"]:
        del image["width"], image["height"]
    (first, _) = read_annotations(write(tmp_path / "a.json", content), "001").annotations
    assert (first.x, first.y) == (325.0, 225.0)


def test_midog_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "MIDOG.json", midog_json([[10, 20, 60, 70]]))
    assert len(read_annotations(file, "001").annotations) == 1
    write(file, midog_json([[10, 20, 60, 70], [100, 200, 150, 250]]))
    assert len(read_annotations(file, "001").annotations) == 2


def test_midog_file_is_found_in_a_folder_whatever_the_order_of_its_parts(tmp_path: Path) -> None:
    content = midog_json([[10, 20, 60, 70]] * 2000)
    file = write(tmp_path / "MIDOG.json", json.dumps(content, sort_keys=True))
    assert '"images"' not in read_head(file)
    assert find_annotations(tmp_path, "001") == (file,)


@pytest.mark.parametrize("content", [{"images": ["001.tiff"], "scanner": "X"}, {"annotations": []}])
def test_json_of_something_else_does_not_stand_in_the_way(tmp_path: Path, content: dict[str, Any]) -> None:
    write(tmp_path / "info.json", content)
    own = write(tmp_path / "001.csv", "x,y\n1,1\n")
    assert find_annotations(tmp_path, "001") == (own,)


def test_midog_image_without_marks_is_unlabelled_not_negative(tmp_path: Path) -> None:
    file = write(tmp_path / "MIDOG.json", midog_json([[10, 20, 60, 70]]))
    assert find_annotations(tmp_path, "002") == ()
    for source in (file, tmp_path):
        assert load_annotations(source, "002.tiff", (400, 300), MPP, missing_ok=True) is None
        with pytest.raises(AnnotationError, match=r"unlabelled.*empty 002\.csv"):
            load_annotations(source, "002.tiff", (400, 300), MPP)
    write(tmp_path / "002.csv", "")
    assert load_annotations(tmp_path, "002.tiff", (400, 300), MPP).annotations == ()


def test_midog_categories_of_other_things_are_counted(tmp_path: Path) -> None:
    content = midog_json([[10, 20, 60, 70], [30, 20, 80, 70]], [1, 3])
    content["categories"].append({"id": 3, "name": "apoptosis"})
    found = read_annotations(write(tmp_path / "a.json", content), "001")
    assert (len(found.annotations), found.n_ignored) == (1, 1)


def test_midog_real_file_has_its_published_numbers(real_data: Path) -> None:
    file = real_data / "annotations" / "MIDOG.json"
    content = json.loads(file.read_text())
    slides = ["001", "075.tiff", "150"]
    for slide in slides:
        image = next(i for i in content["images"] if i["file_name"].startswith(slide[:3]))
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        found = load_annotations(file, slide, (image["width"], image["height"]), MPP)
        assert found.n_outside == 0
        for category, label in ((1, FIGURE), (2, LOOK_ALIKE)):
            n = sum(a["category_id"] == category for a in own)
            assert sum(mark.label is label for mark in found.annotations) == n
    assert load_annotations(file, "151", (1, 1), MPP, missing_ok=True) is None


def test_midog_real_file_read_as_one_slide_gives_every_mark(tmp_path: Path, real_data: Path) -> None:
    content = json.loads((real_data / "annotations" / "MIDOG.json").read_text())
    for annotation in content["annotations"]:
        annotation["image_id"] = 1
    content["images"] = [{"id": 1, "file_name": "001.tiff"}]
    found = read_annotations(write(tmp_path / "a.json", content), "001").annotations
    assert [sum(mark.label is label for mark in found) for label in (FIGURE, LOOK_ALIKE)] == [1721, 2714]


# ---- GeoJSON

BOW_TIE = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
SQUARE_HOLE = [[[0, 0], [30, 0], [31, 30], [0, 30], [0, 0]], [[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]]
POLYGON = {"type": "Polygon", "coordinates": SQUARE_HOLE}
TRIANGLE = [[0, 0], [9, 0], [0, 9]]


@pytest.mark.parametrize("wrap", [lambda f: collection(f), lambda f: [f], lambda f: f])
@pytest.mark.parametrize(
    "name", ["Mitosis", {"name": "Mitosis", "color": [200, 0, 0]}, {"names": ["Tumor", "Mitosis"]}]
)
def test_geojson_layouts_and_spellings_of_the_class(tmp_path: Path, wrap: Any, name: Any) -> None:
    file = write(tmp_path / "a.json", wrap(feature(point(1.5, 2.5), name)))
    assert read_annotations(file, "a").annotations == (Annotation(1.5, 2.5, FIGURE),)


@pytest.mark.parametrize(
    ("geometry", "areas"),
    [
        (POLYGON, [30 * 30.5 - 100]),
        ({"type": "Polygon", "coordinates": [BOW_TIE]}, [25, 25]),
        ({"type": "MultiPolygon", "coordinates": [[TRIANGLE], SQUARE_HOLE]}, [40.5, 815]),
        ({"type": "GeometryCollection", "geometries": [point(1, 1), POLYGON]}, [815]),
    ],
)
def test_geojson_outlines_are_one_figure_with_valid_parts(
    tmp_path: Path, geometry: dict[str, Any], areas: list[float]
) -> None:
    (mark,) = read_annotations(write(tmp_path / "a.geojson", feature(geometry)), "a").annotations
    assert [outline.area for outline in mark.outlines] == pytest.approx(areas)
    assert all(outline.is_valid for outline in mark.outlines)


def test_geojson_multipoint_is_one_figure_a_point_and_a_rectangle_is_a_box(tmp_path: Path) -> None:
    rectangle = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 20], [0, 20], [0, 0]]]}
    content = [feature({"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}), feature(rectangle, "imposter")]
    found = read_annotations(write(tmp_path / "a.geojson", content), "a").annotations
    assert found == (Annotation(1, 2, FIGURE), Annotation(3, 4, FIGURE), Annotation(5, 10, LOOK_ALIKE))


def test_geojson_lines_and_other_classes_are_counted_even_if_their_shape_is_broken(tmp_path: Path) -> None:
    line = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    broken = {"type": "Polygon", "coordinates": "none"}
    content = collection(feature(point(1, 2)), feature(line), feature(None), feature(broken, "Tumor"))
    found = read_annotations(write(tmp_path / "a.geojson", content), "a")
    assert (len(found.annotations), found.n_ignored) == (1, 3)


def test_geojson_takes_the_nucleus_of_a_cell(tmp_path: Path) -> None:
    nucleus = {"type": "Polygon", "coordinates": [[[10, 10], [20, 10], [10, 20]]]}
    cell = feature({"type": "Polygon", "coordinates": SQUARE_HOLE}) | {"nucleusGeometry": nucleus}
    (mark,) = read_annotations(write(tmp_path / "a.geojson", cell), "a").annotations
    assert mark.outlines[0].area == 50


def test_geojson_measurements_may_be_nan_and_the_file_gzipped(tmp_path: Path) -> None:
    content = feature(point(1, 2))
    content["properties"]["measurements"] = {"a": float("nan"), "b": "Infinity"}
    file = write(tmp_path / "a.geojson.gz", gzip.compress(json.dumps(content).encode()))
    assert find_annotations(tmp_path, "a") == (file,)
    assert len(read_annotations(file, "a").annotations) == 1


# ---- label masks


def test_label_mask_areas_touching_at_a_corner_are_one_and_ignored_pixels_none(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:4, 2:4] = mask[4:6, 4:6] = 1
    mask[10:12, 10:12] = 255
    mask[15, 15] = 2
    found = read_annotations(write(tmp_path / "a_mask.png", mask), "a").annotations
    assert [(mark.label, mark.x, mark.y) for mark in found] == [(FIGURE, 4.0, 4.0), (LOOK_ALIKE, 15.5, 15.5)]
    assert covered(found[0].outlines) == {(int(c), int(r)) for r, c in np.argwhere(mask == 1)}


def test_a_mask_may_be_as_large_as_a_plain_image_and_no_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    file = tmp_path / "a_mask.png"
    Image.fromarray(np.ones((20, 20), np.uint8)).save(file)
    assert len(read_annotations(file, "a").annotations) == 1
    monkeypatch.setattr(label_mask, "MAX_PIXELS", 399)
    with pytest.raises(AnnotationError, match=r"20 x 20 px are too many. Give the marks as GeoJSON"):
        read_annotations(file, "a")


def test_black_and_white_mask_is_figures(tmp_path: Path) -> None:
    image = np.zeros((9, 9), bool)
    image[3:6, 3:6] = True
    (mark,) = read_annotations(write(tmp_path / "a_mask.png", image), "a").annotations
    assert (mark.label, mark.x, mark.y) == (FIGURE, 4.5, 4.5)


def test_mask_in_a_masks_folder_is_found_but_a_picture_beside_it_is_none(tmp_path: Path) -> None:
    write(tmp_path / "a.png", MASK)
    assert find_annotations(tmp_path, "a") == ()
    (tmp_path / "masks").mkdir()
    file = write(tmp_path / "masks" / "a.png", MASK)
    assert find_annotations(tmp_path, "a") == find_annotations(tmp_path / "masks", "a") == (file,)


@pytest.mark.parametrize("name", ["label_mask", "midog"])
def test_marks_made_on_an_image_of_another_size_are_refused(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / EXAMPLES[name][0], EXAMPLES[name][1])
    with pytest.raises(AnnotationError, match=r"\(400, 300\) px, but slide 001 has \(800, 600\) px"):
        load_annotations(file, "001", (800, 600), MPP)


# ---- which files belong to a slide


def test_two_files_for_one_slide_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "001.csv", "")
    write(tmp_path / "MIDOG.json", EXAMPLES["midog"][1])
    with pytest.raises(AnnotationError, match=r"both 001\.csv and MIDOG\.json"):
        find_annotations(tmp_path, "001")


def test_files_of_other_slides_and_other_json_are_left_alone(tmp_path: Path) -> None:
    for name, content in (("0011.csv", ""), ("settings.json", '{"a": 1}'), ("broken.json", "{"), ("x.json", "[]")):
        write(tmp_path / name, content)
    assert find_annotations(tmp_path, "001") == ()
    assert find_annotations(tmp_path, "n" * 250) == ()


@pytest.mark.parametrize("name", ["a.CSV", "a.GEOJSON", "a_mask.PNG", "a_mitosis.CSV"])
def test_capitals_of_an_ending_do_not_matter(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, "")
    assert find_annotations(tmp_path, "a") == (file,)


@pytest.mark.parametrize("suffix", sorted(SLIDE_SUFFIXES))
def test_a_slide_is_named_with_or_without_the_suffix_of_any_slide(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / "all.csv", f"slide,x,y\nscan{suffix},1,1\n")
    assert len(read_annotations(file, "scan").annotations) == 1


def test_unlabelled_slide_is_none_or_an_error_by_choice(tmp_path: Path) -> None:
    assert load_annotations(tmp_path, "a", (9, 9), MPP, missing_ok=True) is None
    with pytest.raises(AnnotationError, match="unlabelled, which is not the same as free of figures"):
        load_annotations(tmp_path, "a", (9, 9), MPP)


# ---- off the slide, and segments


def test_marks_off_the_slide_are_dropped_with_a_count(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "x,y,label\n0,0,MF\n99.9,49.9,MF\n100,10,MF\n10,50,MF\n-0.1,5,imposter\n")
    found = load_annotations(file, "a", (100, 50), MPP)
    assert [mark.x for mark in found.annotations] == [0, 99.9]
    assert found.n_outside == 3


def segment(x: float, label: Label = FIGURE, y: float = 0, width: float = 10) -> Annotation:
    return Annotation(x + width / 2, y + 5, label, (box(x, y, x + width, y + 10),))


def test_segments_within_a_telophase_distance_are_one_figure() -> None:
    joined = join_segments([segment(0), segment(200), segment(15, width=20)], 6)
    assert [len(mark.outlines) for mark in joined] == [2, 1]
    assert (joined[0].x, joined[0].y) == pytest.approx(((100 * 5 + 200 * 25) / 300, 5))
    assert joined[1] == segment(200)


@pytest.mark.parametrize(
    "marks",
    [
        [segment(0), segment(16)],  # a gap of exactly the distance
        [segment(0), segment(11, LOOK_ALIKE)],
        [Annotation(5, 5, FIGURE), Annotation(6, 5, FIGURE)],
        [segment(0), Annotation(11, 5, FIGURE)],
        [],
    ],
)
def test_what_is_not_telophase_stays_apart(marks: list[Annotation]) -> None:
    assert join_segments(marks, 6) == tuple(marks)


def test_telophase_distance_zero_keeps_touching_segments() -> None:
    marks = (segment(0), segment(10))
    assert join_segments(marks, 0) == marks
    assert len(join_segments(marks, 0.001)) == 1


@given(st.permutations(range(5)))
def test_joining_does_not_depend_on_the_order(order: list[int]) -> None:
    marks = [segment(0), segment(14), segment(28), segment(100), segment(14, LOOK_ALIKE)]
    joined = join_segments([marks[i] for i in order], 6)
    assert sorted((round(mark.x, 6), len(mark.outlines)) for mark in joined) == [(19, 1), (19, 3), (105, 1)]


def test_mitos12_has_226_segments_and_222_figures(real_data: Path) -> None:
    folder = real_data / "mitos12"
    counts = {0.0: 0, 4.0: 0, TELOPHASE_UM: 0, 7.5: 0}
    for picture in sorted(folder.glob("*.jpg")):
        for distance in counts:
            found = load_annotations(folder, picture.stem, (2084, 2084), 0.2456, telophase_um=distance)
            counts[distance] += len(found.annotations)
            assert found.n_outside == 0
    assert list(counts.values()) == [226, 222, 222, 222]


def test_atypia14_has_its_figures_and_look_alikes(real_data: Path) -> None:
    folder = real_data / "atypia14"
    labels = []
    for picture in sorted(folder.glob("*.jpg")):
        with Image.open(picture) as image:
            found = load_annotations(folder, picture.stem, image.size, 0.2273)
        labels += [mark.label for mark in found.annotations]
        assert found.n_outside == 0
    assert (labels.count(FIGURE), labels.count(LOOK_ALIKE)) == (595, 536)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=3, max_size=9))
@example([(1.0, 0.0), (0.0, 3.045724536800536e-33), (1.0, 2.0), (0.0, 0.0), (0.0, 1.0)])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_polygon_becomes_valid_outlines_or_is_refused(tmp_path: Path, ring: list[tuple[float, float]]) -> None:
    file = write(tmp_path / "a.geojson", feature({"type": "Polygon", "coordinates": [ring]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            (mark,) = read_annotations(file, "a").annotations
        except AnnotationError:
            return
    assert all(outline.is_valid and outline.area > 0 for outline in mark.outlines)
    assert np.isfinite([mark.x, mark.y]).all()
