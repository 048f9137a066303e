"""Inference: what is found does not depend on how a slide was tiled, and one bad slide or tile spoils no other."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import (
    FIGURE,
    MPP,
    ArraySlide,
    busy_network,
    damage_tiles,
    draw_field,
    random_places,
    save_tiff,
)
from shapely.geometry import box

from mitosis.checkpoints import ModelCard, VerifierCard, load_model
from mitosis.config import CountConfig, NetworkConfig, VerifierConfig
from mitosis.crops import CLASSES
from mitosis.crowding import discount_crowds, tissue_around
from mitosis.detections import Detections, concatenate, find_peaks, merge, reach_px
from mitosis.engines import to_input
from mitosis.errors import ConfigError, ModelError, SlideError
from mitosis.geometry import Box
from mitosis.inference import Model, count_slide, start_slide
from mitosis.looks import combine_scores
from mitosis.regions import Region
from mitosis.score_calibration import UNCALIBRATED, ScoreCalibration
from mitosis.slides import BadTile, open_slide
from mitosis.stain import StainLevels, measure_stain
from mitosis.tissue import find_tissue
from mitosis.verification import verify
from mitosis.verifier import Verifier

CARD = ModelCard(
    network=NetworkConfig(width=4, depth=2, normalise_stain=False),
    classes=("background", "mitotic figure"),
    mpp=MPP,
    threshold=0.5,
)
TILE = 128
CORE = TILE - 2 * reach_px(MPP)  # of the oracle, which needs no context


def by_darkness(images):
    """An engine that sees figures where there is little red light."""
    return ((images[..., 0] < 100) * 0.9).astype(np.float32)


FEW_PER_MM2 = 200.0  # candidates from which on they are a crowd on the busy slide of 0.02 mm²

ORACLE = Model(by_darkness, CARD, stride=1, radius=0)


def config(**settings):
    return CountConfig(**{"tile_size": TILE, "workers": 0, "hotspot_mm2": 0.005, **settings})


def found_on(slide, model=ORACLE, **settings):
    return count_slide(slide, "s", model, config(**settings)).candidates


def assert_same(found, expected):
    """Threads and tile sizes move probabilities by some 1e-7, so a rounded score may be one step off, no more."""
    assert len(found) == len(expected)
    order, expected_order = (np.lexsort(d.xy.round().T) for d in (found, expected))
    np.testing.assert_allclose(found.xy[order], expected.xy[expected_order], atol=0.01)
    np.testing.assert_allclose(found.score[order], expected.score[expected_order], atol=1.5e-4)
    np.testing.assert_allclose(found.area_um2[order], expected.area_um2[expected_order], atol=2 * MPP**2)


# One network, one slide, every way to cut it


@pytest.fixture(scope="module")
def busy_model():
    return Model.of(busy_network(), CARD)


@pytest.fixture(scope="module")
def busy_slide():
    """340 x 270 px, the left 40 of them glass."""
    places = random_places(16, 3, width=340, height=270)
    return ArraySlide(draw_field(places, random_places(6, 4), width=340, height=270, glass=40))


@pytest.fixture(scope="module")
def whole(busy_slide):
    """Detections of the network run once on the whole slide with white around it, without any tiling."""
    network, border = busy_network(), 48
    width, height = busy_slide.dimensions
    right, bottom = -(-(width + border) // 4) * 4, -(-(height + border) // 4) * 4
    padding = ((border, bottom - height), (border, right - width), (0, 0))
    image = np.pad(busy_slide.pixels, padding, constant_values=255)
    with torch.no_grad():
        probability = network(to_input(torch.from_numpy(image[np.newaxis]))).softmax(1)[0, 1].numpy()
    box = Box(-border, -border, right, bottom)
    found = find_peaks(probability, box, Box(0, 0, width, height), MPP, MPP, 0.05)
    return merge(found[find_tissue(busy_slide).contains(found.xy)], MPP, config().merge_um)


def test_the_busy_network_is_a_hard_case(whole):
    assert len(whole) > 30
    assert np.ptp(whole.score) > 0.25


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("tile_size", "batch_size"), [(128, 1), (128, 4), (132, 4), (192, 3), (256, 1), (256, 4), (512, 1)]
)
def test_tiles_give_what_the_whole_slide_gives(busy_model, busy_slide, whole, tile_size, batch_size, workers):
    found = found_on(busy_slide, busy_model, tile_size=tile_size, batch_size=batch_size, workers=workers)
    assert_same(found, whole)


def test_turned_and_mirrored_views_do_not_depend_on_tiles_either(busy_model, busy_slide, whole):
    small, big = (found_on(busy_slide, busy_model, tile_size=size, views=8) for size in (132, 512))
    assert_same(small, big)
    with pytest.raises(AssertionError):
        assert_same(small, whole)


def test_nor_does_a_network_that_sees_every_slide_at_the_usual_stain(busy_slide, whole):
    card = CARD.model_copy(update={"network": CARD.network.model_copy(update={"normalise_stain": True})})
    model = Model.of(busy_network(), card)
    small, big = (found_on(busy_slide, model, tile_size=size) for size in (132, 512))
    assert_same(small, big)
    with pytest.raises(AssertionError):
        assert_same(small, whole)


def test_scores_in_a_region_are_those_of_the_whole_slide(busy_slide):
    """Stain levels are those of the slide: how a region is drawn moves no score."""
    card = CARD.model_copy(update={"network": CARD.network.model_copy(update={"normalise_stain": True})})
    model, width = Model.of(busy_network(), card), busy_slide.dimensions[0]
    region = Region((box(0, 0, width / 3, busy_slide.dimensions[1]),))
    whole = count_slide(busy_slide, "s", model, config()).candidates
    part = count_slide(busy_slide, "s", model, config(), region=region).candidates
    inner = [found[found.xy[:, 0] < width / 3 - 20] for found in (whole, part)]
    assert 3 < len(inner[0]) < len(whole)
    assert_same(inner[1], inner[0])


def test_the_stain_of_a_part_may_be_that_of_its_slide(busy_slide):
    card = CARD.model_copy(update={"network": CARD.network.model_copy(update={"normalise_stain": True})})
    model, part = Model.of(busy_network(), card), ArraySlide(busy_slide.pixels[:128, :128])
    own, other = StainLevels((0.3, 0.4, 0.3), (0.9, 1.2, 1.0)), measure_stain(part, find_tissue(part), MPP)
    found = [count_slide(part, "s", model, config(), stain=stain).candidates for stain in (None, other, own)]
    assert_same(found[0], found[1])
    with pytest.raises(AssertionError):
        assert_same(found[0], found[2])
    unchanged = [count_slide(part, "s", Model.of(busy_network(), CARD), config(), stain=each) for each in (None, own)]
    assert_same(*(each.candidates for each in unchanged))


def test_without_its_margin_they_would_not(busy_model, busy_slide, whole):
    found = found_on(busy_slide, replace(busy_model, radius=0))
    with pytest.raises(AssertionError):
        assert_same(found, whole)


def test_off_its_stride_they_would_not(busy_model, busy_slide):
    slide = ArraySlide(busy_slide.pixels[:268])  # sides are multiples of 4, but a margin of 42 px is none
    found, expected = (found_on(slide, model) for model in (replace(busy_model, stride=2, radius=25), busy_model))
    with pytest.raises(AssertionError):
        assert_same(found, expected)


@pytest.fixture(scope="module")
def two_stages(busy_model):
    """The busy model and a second stage that takes all for figures, whose scores are calibrated down."""
    second = VerifierCard(
        settings=VerifierConfig(width=2, crop=16, mpp=MPP, score_floor=0.01, combine="geometric"),
        classes=CLASSES,
        threshold=0.3,
        count_threshold=0.3,
        score_calibration=ScoreCalibration(1.5, -0.5),
    )
    torch.manual_seed(0)
    verifier = Verifier.from_config(second.settings).eval()
    with torch.no_grad():
        verifier.members[0].last.bias[CLASSES.index("mitotic figure")] += 2
    return replace(busy_model, card=CARD.model_copy(update={"verifier": second}), second=verifier)


@pytest.mark.parametrize("score_floor", [0.05, 0.4, 0.45])
def test_what_cannot_reach_the_floor_is_not_looked_at_again_and_would_not_have_been_kept(
    busy_slide, two_stages, score_floor
):
    card, handed = two_stages.card.verifier, []

    def spy(slide, candidates, *others, **named):
        handed.append(candidates.score)
        return verify(slide, candidates, *others, **named)

    with mock.patch("mitosis.inference.verify", spy):
        few = found_on(busy_slide, two_stages, score_floor=score_floor)
        everything = found_on(busy_slide, two_stages, score_floor=0.0001)
    expected = everything[everything.score >= score_floor]
    for name in ("xy", "score", "area_um2"):
        np.testing.assert_array_equal(getattr(few, name), getattr(expected, name))
    able = card.score_calibration(combine_scores(np.ones_like(handed[1]), handed[1], card.settings)) >= score_floor
    np.testing.assert_array_equal(np.sort(handed[0]), np.sort(handed[1][able]))
    assert 0 < len(few) <= len(handed[0])
    assert score_floor < 0.1 or len(handed[0]) < len(handed[1])


def crowded(model, **settings):
    """The model, told that a few candidates are a crowd."""
    second = model.card.verifier
    settings = second.settings.model_copy(update={"crowding": 1.0, "crowding_from": FEW_PER_MM2, **settings})
    return replace(
        model, card=model.card.model_copy(update={"verifier": second.model_copy(update={"settings": settings})})
    )


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("crowding", [0.0, 1.0])
def test_final_scores_do_not_depend_on_tiles_either(busy_slide, two_stages, batch_size, crowding):
    model = crowded(two_stages, crowding=crowding)
    small, big = (found_on(busy_slide, model, tile_size=size, batch_size=batch_size) for size in (132, 512))
    assert len(big) > 20
    assert_same(small, big)


def test_crowds_are_discounted_before_scores_are_calibrated(busy_slide, two_stages):
    second = two_stages.card.verifier
    raw = replace(
        two_stages,
        card=two_stages.card.model_copy(
            update={"verifier": second.model_copy(update={"score_calibration": UNCALIBRATED})}
        ),
    )
    before = found_on(busy_slide, raw, score_floor=0.0001)
    around_mm2 = tissue_around(before.xy, find_tissue(busy_slide))
    less = discount_crowds(before, around_mm2, busy_slide.mpp, 1.0, FEW_PER_MM2)
    expected = Detections(less.xy, second.score_calibration(less.score), less.area_um2).sorted()
    assert_same(found_on(busy_slide, crowded(two_stages), score_floor=0.0001), expected)
    assert (less.score < before.score).any()


@pytest.mark.parametrize("score_floor", [0.3, 0.4, 0.45])
def test_who_asks_for_high_scores_alone_gets_the_same_scores_although_others_make_a_crowd(
    busy_slide, two_stages, score_floor
):
    model = crowded(two_stages, crowding=0.2)
    few, all_of_them = (found_on(busy_slide, model, score_floor=floor) for floor in (score_floor, 0.0001))
    assert 0 < len(few) < len(all_of_them)
    assert_same(few, all_of_them[all_of_them.score >= score_floor])


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.3])
def test_a_figure_anywhere_near_the_corner_of_four_tiles_is_counted_once(shift):
    """Nine by nine corners of tiles, a figure at each, every one off its corner by another (dx, dy)."""
    offsets = np.arange(-8, 9, 2) + shift
    places = [
        (CORE * (column + 1) + dx, CORE * (row + 1) + dy)
        for row, dy in enumerate(offsets)
        for column, dx in enumerate(offsets)
    ]
    side = CORE * 10
    found = found_on(ArraySlide(draw_field(places, width=side, height=side)))
    assert len(found) == 81
    distance = np.hypot(*(np.array(places)[:, None] - found.xy[None]).T)
    assert distance.min(axis=0).max() < 0.6
    assert distance.min(axis=1).max() < 0.6


@pytest.mark.parametrize(("gap", "n"), [(24, 2), (18, 2), (14, 1)])
@pytest.mark.parametrize("place", [CORE - 30, CORE - 9, CORE, CORE + 5])
def test_two_figures_are_two_unless_nearer_than_the_merge_radius(place, gap, n):
    """8 µm are 16 px; small figures, so that they do not touch."""
    figures = [(place - gap / 2, 100.0), (place + gap / 2, 100.0)]
    assert len(found_on(ArraySlide(draw_field(figures, radius=3.5)), merge_um=8)) == n


def test_places_are_level_0_px_whatever_the_slides_own_mpp():
    figures = random_places(8, 2, width=500, height=400, border=30, apart=60)
    found = found_on(ArraySlide(draw_field(figures, width=500, height=400, radius=10), mpp=0.25))
    assert len(found) == 8
    assert np.hypot(*(np.array(figures)[:, None] - found.xy[None]).T).min(axis=0).max() < 1.5
    np.testing.assert_allclose(found.area_um2, np.pi * 2.5**2, rtol=0.25)


# Counts


@pytest.fixture(scope="module")
def darkness_model(model_folder):
    return Model.of(*load_model(model_folder))


def count(slide, model, **settings):
    return count_slide(slide, "s", model, config(**settings))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_mirrored_or_turned_slide_has_the_same_count(darkness_model, seed):
    pixels = draw_field(random_places(12, seed, width=300, height=200), random_places(4, seed + 9), 300, 200)
    expected = count(ArraySlide(pixels), darkness_model)
    assert 8 <= expected.report.mitotic_count <= 12
    for other in (pixels[::-1], pixels[:, ::-1], pixels.transpose(1, 0, 2)):
        turned = count(ArraySlide(np.ascontiguousarray(other)), darkness_model)
        assert turned.report.mitotic_count == expected.report.mitotic_count
        assert turned.report.n_candidates == expected.report.n_candidates


@pytest.mark.parametrize("padding", [(0, 64), (37, 0), (101, 53)])
def test_white_around_a_slide_changes_no_count(darkness_model, padding):
    pixels = draw_field(random_places(10, 4, border=24))
    around = np.pad(pixels, ((padding[1], 7), (padding[0], 200), (0, 0)), constant_values=255)
    expected, found = (count(ArraySlide(image), darkness_model) for image in (pixels, around))
    assert found.report.mitotic_count == expected.report.mitotic_count == 10
    np.testing.assert_allclose(found.candidates.sorted().xy - padding, expected.candidates.sorted().xy, atol=0.01)


def test_two_slides_side_by_side_have_the_sum_of_their_counts(darkness_model):
    left, right = (draw_field(random_places(n, n, border=24), seed=n) for n in (5, 9))
    both = ArraySlide(np.concatenate([left, right], axis=1))
    assert count(both, darkness_model).report.mitotic_count == 14


def test_what_is_dark_on_glass_is_not_counted():
    pixels = draw_field([(200.0, 60.0), (220.0, 200.0)], glass=128)
    pixels[40:50, 97:107] = FIGURE  # in a tile with tissue
    assert len(concatenate([find_peaks(by_darkness(pixels), *[Box(0, 0, 256, 256)] * 2, MPP, MPP, 0.05)])) == 3
    assert len(found_on(ArraySlide(pixels))) == 2
    counted = count(ArraySlide(pixels), ORACLE)
    assert counted.report.n_candidates == 2
    assert (counted.candidates.xy[:, 0] > 128).all()


def test_a_blank_slide_is_counted_without_running_the_network():
    def never(_images):
        raise AssertionError("nothing to look at")

    report = count(ArraySlide(np.full((300, 300, 3), 245, np.uint8)), replace(ORACLE, engine=never)).report
    assert (report.status, report.mitotic_count, report.density_per_mm2) == ("no_tissue", 0, None)


def test_the_report_says_what_it_stands_on():
    model = replace(ORACLE, card=CARD.model_copy(update={"weights_sha256": "abc"}))
    slide = ArraySlide(draw_field(random_places(5, 1)))
    report = count_slide(slide, "name", model, config(), "digest").report
    assert (report.slide, report.status, report.mitotic_count) == ("name", "ok", 5)
    assert (report.model_sha256, report.source_sha256, report.mpp, report.slide_mpp) == ("abc", "digest", MPP, MPP)
    assert report.settings == config().model_dump(mode="json")
    assert "torch" in report.versions
    assert report.tissue_mm2 == pytest.approx(0.128**2)


def test_the_threshold_is_the_cards_unless_one_is_given():
    slide = ArraySlide(draw_field(random_places(5, 1)))
    for model_threshold, given, expected in ((0.5, None, 5), (0.95, None, 0), (0.95, 0.5, 5), (0.5, 0.95, 0)):
        model = replace(ORACLE, card=CARD.model_copy(update={"threshold": model_threshold}))
        report = count(slide, model, threshold=given).report
        assert (report.mitotic_count, report.n_candidates) == (expected, 5)
        assert report.threshold == (given or model_threshold)


def test_the_threshold_for_an_unbiased_count_is_a_choice():
    slide = ArraySlide(draw_field(random_places(5, 1)))
    model = replace(ORACLE, card=CARD.model_copy(update={"threshold": 0.95, "count_threshold": 0.5}))
    counts = [count(slide, model, objective=objective).report.mitotic_count for objective in ("f1", "count")]
    assert counts == [0, 5]
    older = replace(ORACLE, card=CARD.model_copy(update={"count_threshold": None}))
    with pytest.raises(ModelError, match="no threshold for a count without bias"):
        count(slide, older, objective="count")


def test_sums_over_tissue_are_not_in_memory_while_tiles_are_looked_at(busy_slide):
    """Of the largest slides they take 25 MB."""
    card = CARD.model_copy(update={"network": CARD.network.model_copy(update={"normalise_stain": True})})
    started = start_slide(busy_slide, replace(ORACLE, card=card), config())
    assert started.stain is not None
    assert started.tissue.area_mm2 > 0
    assert "_integral" not in vars(started.tissue)


def test_progress_is_told_batch_by_batch():
    told = []
    slide = ArraySlide(draw_field([], width=300, height=200))
    count_slide(slide, "s", ORACLE, config(batch_size=5), on_tiles=lambda *progress: told.append(progress))
    n_tiles = told[-1][1]
    assert n_tiles > 5
    assert told == [(min(done, n_tiles), n_tiles) for done in range(5, n_tiles + 5, 5)]


@pytest.mark.parametrize(("stride", "radius", "needed"), [(3, 24, "a multiple of 3 above "), (4, 60, "above ")])
def test_a_tile_that_does_not_fit_the_network_is_refused_with_one_that_does(stride, radius, needed):
    model, slide = replace(ORACLE, stride=stride, radius=radius), ArraySlide(draw_field([(60.0, 60.0)]))
    with pytest.raises(ConfigError, match=rf"count\.tile_size = 128: this model needs .*{needed}\d+\.") as refused:
        found_on(slide, model)
    above = int(str(refused.value).rstrip(".").split()[-1])
    assert len(found_on(slide, model, tile_size=above + 20 * stride)) == 1


# Damage


def test_a_damaged_tile_is_taken_from_the_area_and_its_detections_are_dropped():
    pixels = draw_field([(96.0, 96.0), (30.0, 30.0), (200.0, 60.0)])
    bad = (BadTile(0, Box(64, 64, 128, 128), "premature end"),)
    report = count(ArraySlide(pixels, bad_tiles=bad), ORACLE, max_bad_fraction=0.1).report
    assert (report.status, report.mitotic_count, report.n_candidates) == ("degraded", 2, 2)
    assert report.bad_tiles == bad
    assert report.excluded_mm2 == pytest.approx(0.032**2)
    assert report.tissue_mm2 == pytest.approx(0.128**2 - 0.032**2)


def test_too_much_damage_is_an_error_that_says_how_much_and_where():
    bad = (BadTile(0, Box(64, 64, 128, 128), "premature end"),)
    slide = ArraySlide(draw_field([(30.0, 30.0)]), bad_tiles=bad, path="a.tif")
    complaint = r"a\.tif: 6\.2% of the tissue lies in damaged tiles, over 1\.0% \(first: premature end\)"
    with pytest.raises(SlideError, match=complaint):
        count(slide, ORACLE)
    assert count(slide, ORACLE, max_bad_fraction=0.0625).report.status == "degraded"


def test_a_file_with_a_damaged_tile_counts_the_rest(tmp_path):
    figures = [(96.0, 96.0), (30.0, 30.0), (200.0, 60.0), (220.0, 220.0)]
    path = save_tiff(tmp_path / "a.tif", draw_field(figures))
    with open_slide(path) as slide:
        expected = count(slide, ORACLE).report
    damage_tiles(path, 5)
    with open_slide(path) as slide:
        report = count(slide, ORACLE, max_bad_fraction=0.1).report
    assert (expected.status, expected.mitotic_count) == ("ok", 4)
    assert (report.status, report.mitotic_count) == ("degraded", 3)
    assert [bad.box for bad in report.bad_tiles] == [Box(64, 64, 128, 128)]
    assert report.excluded_mm2 == pytest.approx(0.032**2)


def test_a_file_that_is_half_damaged_has_failed(tmp_path):
    path = save_tiff(tmp_path / "a.tif", draw_field([(200.0, 60.0)]))
    damage_tiles(path, *(row * 4 + column for row in range(4) for column in (0, 1)))
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"50\.0% of the tissue lies in damaged tiles"):
        count(slide, ORACLE)
