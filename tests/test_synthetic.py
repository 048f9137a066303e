"""Synthetic tissue: what is drawn is what is said, the same every time and through every window."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from mitosis.annotations import Label, load_annotations
from mitosis.errors import OutputError
from mitosis.geometry import Box
from mitosis.slides import open_slide
from mitosis.synthetic import CELLS, Stain, draw_tissue, random_stain, write_phantom, write_truth
from mitosis.synthetic.canvas import CHANNELS, canvas_for
from mitosis.synthetic.drawing import draw_region
from mitosis.synthetic.figures import FIGURES
from mitosis.synthetic.lookalikes import LOOKALIKES
from mitosis.synthetic.phantom import make_scene
from mitosis.synthetic.scene import CLUTTER, OTHERS, PHASES
from mitosis.synthetic.texture import SCALES_UM, make_textures
from mitosis.synthetic.tissue import make_zones
from mitosis.tissue import find_tissue

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "make_sample_patches.py"
PLAIN = Stain(noise=0.0)


def tissue(seed=0, size=(300, 300), mpp=0.25, **options):
    return draw_tissue(np.random.default_rng(seed), size, mpp, **options)


def sprite(kind, seed=0, mpp=0.25, size=1.0, angle=0.7):
    canvas = canvas_for(CELLS[kind].radius_um, (0.5, 0.5), mpp, make_textures(mpp))
    return CELLS[kind].draw(np.random.default_rng(seed), canvas, size, angle)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("size", [0.88, 1.15])
def test_every_kind_draws_within_its_radius_and_darkens(kind, size):
    for seed in range(3):
        drawn = sprite(kind, seed, size=size)
        assert drawn.add.shape == (len(CHANNELS), *drawn.keep.shape)
        assert np.isfinite(drawn.add).all()
        assert drawn.add.min() >= 0
        assert drawn.keep.min() >= 0
        assert drawn.keep.max() <= 1
        assert drawn.add.sum(axis=0).max() > 0.15
        rim = np.ones_like(drawn.extent)
        rim[1:-1, 1:-1] = False
        assert drawn.add[:, rim].max() < 0.06
        assert (1 - drawn.keep[rim]).max() < 0.06
        assert not drawn.extent[rim].any()
        assert drawn.extent.any()


@pytest.mark.parametrize("kind", [name for name, kind in CELLS.items() if kind.value])
def test_a_marked_cell_is_one_piece_round_its_centre(kind):
    for seed in range(3):
        drawn = sprite(kind, seed, angle=seed)
        assert ndimage.label(drawn.extent)[1] == 1
        middle = len(drawn.extent) // 2
        assert drawn.extent[middle, middle]
        chromatin = drawn.add[CHANNELS.index("haematoxylin")] > 0.9
        if kind != "hyperchromatic":
            assert (chromatin & drawn.extent).sum() > 0.95 * chromatin.sum() > 0


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_has_the_same_form_at_half_the_resolution(kind):
    fine, coarse = sprite(kind, 5, 0.25), sprite(kind, 5, 0.5)
    amounts = [drawn.add.sum() * mpp**2 for drawn, mpp in ((fine, 0.25), (coarse, 0.5))]
    assert amounts[1] == pytest.approx(amounts[0], rel=0.2)


def test_shares_name_kinds_and_sum_to_one():
    assert set(PHASES) == set(FIGURES)
    assert set(OTHERS) | set(CLUTTER) == set(LOOKALIKES)
    for shares in (PHASES, OTHERS, CLUTTER):
        assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("phase", FIGURES)
def test_every_phase_can_be_asked_for_and_is_one_annotation_on_its_mask(phase):
    drawing = tissue(n_mitotic=2, n_lookalike=0, phases=[phase])
    assert drawing.kinds == (phase, phase)
    areas, n_areas = ndimage.label(drawing.mask == 1)
    places = {areas[int(mark.y), int(mark.x)] for mark in drawing.annotations}
    assert places == {1, 2}
    assert n_areas == 2


def test_annotations_agree_with_the_mask_and_keep_their_distance():
    drawing = tissue(3, (400, 360), n_mitotic=4, n_lookalike=4)
    assert drawing.image.shape == (360, 400, 3)
    assert drawing.mask.shape == (360, 400)
    labels = [mark.label for mark in drawing.annotations]
    assert labels.count(Label.MITOTIC_FIGURE) == labels.count(Label.NON_MITOTIC_FIGURE) == 4
    for mark, kind in zip(drawing.annotations, drawing.kinds, strict=True):
        value = CELLS[kind].value
        assert (mark.label == Label.MITOTIC_FIGURE) == (value == 1)
        assert drawing.mask[int(mark.y), int(mark.x)] == value
        others = [other for other in drawing.annotations if other is not mark]
        assert min(np.hypot(mark.x - o.x, mark.y - o.y) for o in others) * 0.25 >= 15


def test_figures_are_darker_than_the_tissue_around_them():
    drawing = tissue(4, n_mitotic=4, n_lookalike=0, stain=PLAIN)
    grey = drawing.image.mean(axis=2)
    assert np.percentile(grey[drawing.mask == 1], 20) < 80
    assert 130 < np.median(grey[drawing.mask == 0]) < 215


def test_the_seed_decides():
    one, again, other = (tissue(seed) for seed in (1, 1, 2))
    assert np.array_equal(one.image, again.image)
    assert one.annotations == again.annotations
    assert not np.array_equal(one.image, other.image)


def test_half_the_resolution_shows_the_same_scene():
    fine = tissue(6, (320, 320), 0.25, stain=PLAIN)
    coarse = tissue(6, (160, 160), 0.5, stain=PLAIN)
    assert fine.kinds == coarse.kinds
    places = [np.array([(mark.x, mark.y) for mark in drawing.annotations]) for drawing in (fine, coarse)]
    assert places[0] / 2 == pytest.approx(places[1])
    shrunk = fine.image.reshape(160, 2, 160, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - coarse.image).mean() < 8


def test_too_many_figures_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        tissue(size=(128, 128), n_mitotic=30)


def test_more_tumour_is_less_stroma():
    x, y = np.meshgrid(np.arange(0.0, 900, 10), np.arange(0.0, 900, 10))
    shares = [(make_zones(np.random.default_rng(2), tumour).at(x, y).stroma > 0).mean() for tumour in (-0.6, 0.0, 1.0)]
    assert shares[0] > 0.5 > shares[1] > 2 * shares[2]


def test_a_slide_has_a_rim_of_glass_and_a_middle_of_tissue():
    zones = make_zones(np.random.default_rng(2), size_um=(900.0, 900.0))
    x, y = np.meshgrid(np.arange(0.0, 900, 10), np.arange(0.0, 900, 10))
    glass = zones.at(x, y).glass > 0
    assert glass[0].all()
    assert glass[:, -1].all()
    assert 0.15 < glass.mean() < 0.8


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_stains_stay_within_bounds(seed):
    stain = random_stain(np.random.default_rng(seed))
    for vector in (stain.haematoxylin, stain.eosin):
        assert np.linalg.norm(vector) == pytest.approx(1)
        assert min(vector) > 0
    assert stain.haematoxylin[0] > 2 * stain.eosin[0]
    assert 0.8 <= stain.haematoxylin_amount <= 1.2
    assert 0.75 <= stain.eosin_amount <= 1.25
    assert 0.15 <= stain.blur_um <= 0.4
    assert 235 <= min(stain.glass) <= max(stain.glass) <= 255


def test_stains_differ():
    stains = [random_stain(np.random.default_rng(seed)) for seed in range(20)]
    assert len({dataclasses.astuple(stain) for stain in stains}) == 20
    images = [tissue(1, (80, 80), n_mitotic=0, n_lookalike=0, stain=stain).image for stain in stains]
    assert np.std([image.mean(axis=(0, 1)) for image in images], axis=0).min() > 2


def test_textures_tile_and_are_normal():
    textures = make_textures(0.25)
    for name in SCALES_UM:
        field = textures.fields[name]
        assert abs(field.mean()) < 0.02
        assert field.std() == pytest.approx(1, abs=0.1)
        seam = np.abs(field[0] - field[-1]).mean()
        assert seam == pytest.approx(np.abs(field[1:] - field[:-1]).mean(), rel=0.3)


def test_a_region_shows_the_same_pixels_through_every_window():
    scene, stain = make_scene(11, (600.0, 500.0), 60.0, 60.0)
    textures = make_textures(0.5)
    whole = draw_region(scene, Box(300, 200, 620, 460), stain, textures)
    for box in (Box(300, 200, 460, 330), Box(460, 330, 620, 460), Box(401, 233, 478, 391)):
        part = draw_region(scene, box, stain, textures)
        rows, columns = slice(box.y0 - 200, box.y1 - 200), slice(box.x0 - 300, box.x1 - 300)
        assert np.array_equal(part.image, whole.image[rows, columns])
        assert np.array_equal(part.mask, whole.mask[rows, columns])
        seen = {mark for mark in whole.annotations if box.x0 <= mark.x < box.x1 and box.y0 <= mark.y < box.y1}
        assert set(part.annotations) == seen


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantom") / "phantom.tif"
    marks = write_phantom(path, 5, (1500, 1300), 0.5, density_per_mm2=120.0)
    write_truth(path.with_suffix(".csv"), marks)
    return path, marks


def test_a_phantom_is_a_pyramid_that_knows_its_mpp(phantom):
    path, _ = phantom
    with tifffile.TiffFile(path) as tiff:
        assert [page.shape for page in tiff.pages] == [(1300, 1500, 3), (325, 375, 3)]
        assert [page.subfiletype for page in tiff.pages] == [0, 1]
        assert all(page.tile == (256, 256) and page.compression == 7 for page in tiff.pages)
        small = tiff.pages[1].asarray().mean(axis=2)
        large = tiff.pages[0].asarray().reshape(325, 4, 375, 4, 3).mean(axis=(1, 3, 4))
        assert np.abs(small - large).mean() < 3
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert slide.dimensions == (1500, 1300)


def test_a_phantom_shows_what_the_scene_is(phantom):
    path, _ = phantom
    scene, stain = make_scene(5, (750.0, 650.0), 120.0, 40.0)
    box = Box(600, 500, 1000, 800)
    drawn = draw_region(scene, box, stain, make_textures(0.5)).image
    with open_slide(path) as slide:
        read = slide.read_region((box.x0, box.y0), 0, box.size)
    assert np.abs(read.astype(float) - drawn).mean() < 5


def test_the_truth_lies_on_tissue_and_comes_back_from_its_file(phantom):
    path, marks = phantom
    assert sum(mark.label == Label.MITOTIC_FIGURE for mark in marks) > 5
    assert list(marks) == sorted(marks, key=lambda mark: (mark.y, mark.x))
    with open_slide(path) as slide:
        found = find_tissue(slide)
        for mark in marks:
            region = slide.read_region((int(mark.x) - 12, int(mark.y) - 12), 0, (24, 24))
            assert region.min() < 90
        assert found.contains(np.array([(mark.x, mark.y) for mark in marks])).mean() > 0.95
        corner = slide.read_region((0, 0), 0, (60, 60))
        assert corner.mean() > 230
    read = load_annotations(path.with_suffix(".csv"), "phantom", (1500, 1300), 0.5).annotations
    assert [(mark.x, mark.y, mark.label) for mark in read] == [
        (pytest.approx(mark.x, abs=0.01), pytest.approx(mark.y, abs=0.01), mark.label) for mark in marks
    ]


@pytest.mark.parametrize("compression", ["jpeg", "deflate", None])
def test_a_phantom_of_odd_size_can_be_written_with_every_compression(tmp_path, compression):
    path = tmp_path / "odd.tif"
    write_phantom(path, 3, (201, 1101), 0.8, compression=compression)
    image = tifffile.imread(path)
    assert image.shape == (1101, 201, 3)
    assert image[:10, :10].mean() > 230
    assert list(tmp_path.iterdir()) == [path]


def test_no_figures_where_none_are_wanted(tmp_path):
    assert write_phantom(tmp_path / "bare.tif", 3, (500, 500), 1.0, 0.0, lookalikes_per_mm2=0.0) == ()


def check(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, "--check", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_sample_patches_are_as_drawn():
    result = check()
    assert result.returncode == 0, result.stderr


def test_a_changed_sample_patch_is_named(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        source = ROOT / "sample_patches" / part / "case1_01.png"
        (tmp_path / part / source.name).write_bytes(source.read_bytes())
    mask = tmp_path / "masks" / "case1_01.png"
    with Image.open(mask) as image:
        values = np.array(image)
    values[:30, :30] = 1
    Image.fromarray(values).save(mask)
    result = check("--out", str(tmp_path))
    assert result.returncode == 1
    assert str(mask) in result.stderr


def test_a_slide_too_large_for_a_classic_tiff_becomes_a_big_one(tmp_path, monkeypatch):
    monkeypatch.setattr("mitosis.synthetic.phantom._CLASSIC_LIMIT", 1e5)
    write_phantom(tmp_path / "big.tif", 3, (300, 300), 1.0)
    with tifffile.TiffFile(tmp_path / "big.tif") as tiff:
        assert tiff.is_bigtiff


def test_a_phantom_for_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_phantom(tmp_path / "none" / "a.tif", 3, (300, 300), 1.0)
