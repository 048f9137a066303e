"""Near copies across cases: what must be found, what must not, and what the verb says of it."""

import io
import json

import numpy as np
import pytest
from conftest import EXTRACT, draw_field, extract, random_places, save_slide
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from mitosis.cli import app
from mitosis.config import ExtractConfig
from mitosis.near_duplicates import Record, count_pairs, find_near_duplicates, read_records
from mitosis.patches import PatchIndex

SIDE = 64


def tissue(seed, side=SIDE):
    """Optical density of tissue-like texture, float32 [side, side], 0.1 to 1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 1.2, mode="wrap")
    return (0.5 + 0.15 * noise / noise.std()).clip(0.1, 1).astype(np.float32)


def record(name, image, case=None, split="train"):
    return Record(name, case or name, split, image.astype(np.float32))


def pair(first, second):
    """What is found between two images of two cases."""
    return find_near_duplicates([record("a", first), record("b", second, split="val")])


def through_jpeg(density, quality=50):
    grey = np.clip(255 * np.exp(-density), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=quality)
    return -np.log((np.asarray(Image.open(stream), np.float32) + 1) / 256)


def resampled(image, factor):
    side = round(image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_a_copy_is_found_in_all_eight_symmetries_and_the_words_say_which(turns, mirror):
    image = tissue(1)
    (found,) = pair(image, np.rot90(image[:, ::-1] if mirror else image, turns))
    assert found.similarity == pytest.approx(1, abs=1e-4)
    assert found.overlap == pytest.approx(1, abs=1e-3)
    assert found.crosses_split
    # The words say how the second comes to lie as the first does: a mirrored turn is its own way back.
    assert ("mirrored" in found.how) == mirror
    assert found.how.startswith("copy")
    back = turns if mirror else -turns % 4
    assert (f"{90 * back}°" in found.how) == bool(turns)


@given(seed=st.integers(0, 2**32 - 1), dx=st.integers(-18, 18), dy=st.integers(-18, 18), turns=st.integers(0, 3))
@settings(max_examples=40)
def test_half_an_overlap_is_found_through_jpeg_and_another_stain(seed, dx, dy, turns):
    field = tissue(seed, SIDE + 36)
    first = field[18 : 18 + SIDE, 18 : 18 + SIDE]
    second = field[18 + dy : 18 + dy + SIDE, 18 + dx : 18 + dx + SIDE]
    (found,) = pair(first, np.rot90(through_jpeg(1.2 * second + 0.05), turns))
    share = (SIDE - abs(dx)) * (SIDE - abs(dy)) / SIDE**2
    assert found.overlap == pytest.approx(share, abs=0.05)
    assert found.similarity > 0.7


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_copy_of_another_scale_is_found(factor):
    field = ndimage.gaussian_filter(tissue(3, 70), 0.8)
    assert len(pair(field[:SIDE, :SIDE], resampled(field, factor))) == 1


@given(seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_other_tissue_is_no_copy(seed):
    assert pair(tissue(seed), tissue(seed + 2**31)) == []


def test_images_of_one_case_are_not_compared():
    image = tissue(1)
    assert find_near_duplicates([record("a", image, "case"), record("b", image, "case")]) == []


@pytest.mark.parametrize(
    "image",
    [
        np.full((SIDE, SIDE), np.nan),
        np.full((SIDE, SIDE), 0.3),
        np.zeros((SIDE, SIDE)),
        np.zeros((0, 0)),
        np.ones((1, 1)),
        np.where(np.arange(SIDE) < 4, tissue(0), np.nan),
    ],
    ids=["nothing", "even", "zero", "empty", "one pixel", "hardly any tissue"],
)
def test_images_without_texture_are_not_compared_and_break_nothing(image):
    records = [record("a", image), record("b", image), record("c", tissue(1)), record("d", tissue(2))]
    assert find_near_duplicates(records) == []
    assert count_pairs(records) == 1


def test_nothing_and_one_image_give_nothing():
    assert find_near_duplicates([]) == [] == find_near_duplicates([record("a", tissue(1))])
    assert count_pairs([]) == 0


def test_what_is_not_known_does_not_take_part():
    image = tissue(4)
    damaged = image.copy()
    damaged[:20] = np.nan
    (found,) = pair(damaged, image)
    assert found.similarity > 0.95
    assert found.overlap > 0.95


def test_images_of_different_shapes_are_compared():
    field = tissue(5, 90)
    (found,) = pair(field, field[10:74, 20:70])
    assert found.how.startswith("copy")
    assert find_near_duplicates([record("a", field[:40]), record("b", tissue(6, 70))]) == []


def test_order_of_the_records_does_not_matter_and_errors_come_first():
    images = {name: tissue(i // 2) for i, name in enumerate("abcdef")}
    splits = dict(zip("abcdef", ["train", "train", "train", "val", "val", "val"], strict=True))
    records = [record(name, image, split=splits[name]) for name, image in images.items()]
    found = find_near_duplicates(records)
    names = [(pair.first.name, pair.second.name) for pair in found]
    assert names == [("c", "d"), ("a", "b"), ("e", "f")]
    assert [pair.crosses_split for pair in found] == [True, False, False]
    again = find_near_duplicates(records[::-1])
    assert [(pair.first.name, pair.second.name) for pair in again] == names


def test_of_two_images_with_parts_the_strongest_match_is_given():
    one, two = tissue(1), tissue(2)
    records = [record("a", one), record("a", two), record("b", through_jpeg(one, 20)), record("b", two)]
    (found,) = find_near_duplicates(records)
    assert found.similarity == pytest.approx(1, abs=1e-4)


def test_beyond_the_budget_the_hash_still_finds_copies_of_whole_images():
    images = [tissue(seed) for seed in range(40)]
    records = [record(f"i{n:02d}", image) for n, image in enumerate(images)]
    records += [record("x", np.rot90(through_jpeg(images[7])[:, ::-1])), record("y", through_jpeg(images[30]))]
    found = find_near_duplicates(records, max_pairs=4)
    assert {(pair.first.name, pair.second.name) for pair in found} == {("i07", "x"), ("i30", "y")}


def test_after_the_copies_the_budget_goes_to_pairs_across_the_split():
    field = tissue(50, 90)
    records = [record(f"i{n}", tissue(n)) for n in range(12)]
    records += [record("x", field[:64, :64]), record("y", field[20:84, 10:74], split="val")]
    assert count_pairs(records) == 91
    (found,) = find_near_duplicates(records, max_pairs=20)
    assert found.crosses_split


RUN = CliRunner()
CUT = ExtractConfig(**EXTRACT.model_dump() | {"mpp": 0.5, "size": 64, "val_fraction": 0.5, "min_tissue": 0.0})


def patches(tmp_path, images):
    """A patch folder of these images by name."""
    slides = tmp_path / "slides"
    slides.mkdir(parents=True)
    for name, image in images.items():
        save_slide(slides / f"{name}.png", image)
    extract(slides, tmp_path / "patches", CUT, annotations=None)
    return tmp_path / "patches"


def stained(seed, side=320):
    """An image of nuclei, uint8 [side, side, 3]."""
    return draw_field(random_places(60, seed, side, side, apart=14), (), side, side, seed=seed)


def test_slides_are_put_together_from_their_tiles(tmp_path):
    image = stained(1, 256)
    index = PatchIndex.read(patches(tmp_path, {"one": image}))
    ((whole,),) = read_records(index)
    small = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BOX), np.float32)
    expected = -np.log((small + 1) / 256).mean(axis=-1)
    assert whole.name == whole.case == "one"
    np.testing.assert_allclose(whole.image, expected, atol=1e-5)


@pytest.mark.parametrize("filler", [0, 255])
def test_filler_in_place_of_tissue_is_not_what_two_slides_have_in_common(tmp_path, filler):
    images = {name: stained(seed, 256) for seed, name in enumerate("ab", start=5)}
    images["a"][:80], images["b"][:, -90:] = filler, filler
    parts = [part for slide in read_records(PatchIndex.read(patches(tmp_path, images))) for part in slide]
    assert [np.isnan(part.image).mean().round(1) for part in parts] == [0.3, 0.4]
    assert find_near_duplicates(parts) == []


def test_the_verb_says_which_slides_and_exits_with_1_if_they_cross_the_split(tmp_path):
    field = stained(2, 340)
    folder = patches(tmp_path, {"a": field[:256, :256], "b": field[64:320, 20:276], "c": stained(3, 256)})
    table = PatchIndex.read(folder)
    for val, code in ((["b"], 1), (["c"], 0)):
        (folder / "index.csv").write_text(table.with_val_cases(val).to_csv())
        result = RUN.invoke(app, ["check-splits", str(folder)])
        assert result.exit_code == code, result.output
        assert ("error" if code else "warning") in result.output
        assert "3 slides of 3 cases (2 train, 1 val), 3 pairs" in result.output
        content = json.loads(RUN.invoke(app, ["check-splits", str(folder), "--json"]).stdout)
        (found,) = content["near_duplicates"]
        assert {found["first"]["slide"], found["second"]["slide"]} == {"a", "b"}
        assert found["crosses_split"] == bool(code)
        assert found["overlap"] == pytest.approx(0.75 * 236 / 256, abs=0.06)


def test_the_verb_says_when_there_is_nothing_and_when_the_budget_was_too_small(tmp_path):
    folder = patches(tmp_path, {name: stained(seed, 256) for seed, name in enumerate("abc")})
    result = RUN.invoke(app, ["check-splits", str(folder), "--max-pairs", "1"])
    assert result.exit_code == 0, result.output
    assert "No near copies." in result.output
    assert "2 of the pairs were compared by hash only" in result.output


def test_real_cases_are_no_copies_and_one_field_of_two_scanners_is_found(real_data):
    """A04 and H04 are one glass slide on two scanners; these two fields overlap, the others do not."""
    fields = {"mitos12": ("A04_08", "A04_05", "A00_01"), "atypia14": ("H04_00Dd", "H04_04Dc", "H03_02Dd")}
    records = []
    for folder, names in fields.items():
        side_um = {"mitos12": 0.2456, "atypia14": 0.2273}[folder]
        for name in names:
            image = Image.open(real_data / folder / f"{name}.jpg").convert("RGB")
            size = (round(image.width * side_um / 8), round(image.height * side_um / 8))
            small = np.asarray(image.resize(size, Image.Resampling.BOX), np.float32)
            records.append(record(name, -np.log((small + 1) / 256).mean(axis=-1)))
    (found,) = find_near_duplicates(records)
    assert (found.first.name, found.second.name, found.how) == ("A04_08", "H04_00Dd", "overlap")
