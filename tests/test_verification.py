"""The second stage learns to tell round from square, and its scores do not hang on batches or neighbours."""

import itertools

import numpy as np
import pytest
import torch
from conftest import FIGURE as DARK
from conftest import MPP, ArraySlide, draw_field, random_places

from mitosis.config import VerifierConfig
from mitosis.crops import (
    FIGURE,
    LOOK_ALIKE,
    OTHER,
    UNCLEAR,
    Candidate,
    CandidateSet,
    CandidateSlide,
    crop_side,
    read_crops,
    save_crops,
    save_table,
)
from mitosis.detections import Detections
from mitosis.errors import ModelError, PatchIndexError
from mitosis.files import make_folder
from mitosis.verification import combine_scores, draws, score_crops, train_verifier, verify

QUICK = VerifierConfig(width=4, crop=32, mpp=MPP, steps=40, batch_size=16, augment=0.2, shift=2, learning_rate=0.01)


def draw_round_and_square(round_places, square_places, seed=0):
    """Dark spots of one area and colour that differ in shape alone."""
    image = draw_field(round_places, seed=seed, radius=9.0)
    for x, y in square_places:
        image[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8] = DARK
    return image


def slide_of(seed, n=8):
    places = np.array(random_places(2 * n, seed, border=24, apart=40))
    return ArraySlide(draw_round_and_square(places[:n], places[n:], seed)), places


def candidate_set(folder, labels=(FIGURE, OTHER), seeds=(1, 2, 3)):
    """Round spots under the first label and square ones under the second."""
    make_folder(folder / "crops")
    candidates, slides = [], {}
    for seed in seeds:
        slide, places = slide_of(seed)
        save_crops(folder, f"S{seed}", read_crops(slide, places, MPP, crop_side(QUICK.crop), None))
        slides[f"S{seed}"] = CandidateSlide(f"S{seed}", "train", "", MPP, places[:8].tolist(), len(places), 1.0)
        for row, (x, y) in enumerate(places.tolist()):
            candidates.append(
                Candidate(f"S{seed}", f"S{seed}", "", "", row, x, y, 0.5, labels[row >= 8], True),
            )
    save_table(folder, candidates, slides, {})
    return CandidateSet.read(folder)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A network that has seen three slides of round and square spots."""
    return train_verifier(candidate_set(tmp_path_factory.mktemp("toy")), QUICK)


def detections(places, score=0.5):
    return Detections(places, np.full(len(places), score), np.ones(len(places)))


def by_place(found):
    return {tuple(place): score for place, score in zip(found.xy.tolist(), found.score.tolist(), strict=True)}


def test_it_learns_to_tell_round_from_square(learned):
    slide, places = slide_of(9)
    scores = by_place(verify(slide, detections(places), learned, replace_settings(combine="replace"), None))
    round_scores, square_scores = (
        [scores[tuple(place)] for place in part.tolist()] for part in (places[:8], places[8:])
    )
    assert min(round_scores) > max(square_scores)


@pytest.mark.slow
def test_with_the_transformer_it_learns_too(tmp_path):
    settings = replace_settings(transformer=True, combine="replace", steps=60)
    network = train_verifier(candidate_set(tmp_path), settings)
    assert network.transformer.head.bias.abs().max() > 0
    slide, places = slide_of(9)
    scores = by_place(verify(slide, detections(places), network, settings, None))
    means = [np.mean([scores[tuple(place)] for place in part.tolist()]) for part in (places[:8], places[8:])]
    assert means[0] > means[1] + 0.3


def replace_settings(**changes):
    return VerifierConfig.model_validate(QUICK.model_dump() | changes)


@pytest.mark.parametrize("views", [1, 8])
def test_scores_hang_neither_on_the_batch_nor_on_the_other_candidates(learned, views):
    slide, places = slide_of(9)
    expected = by_place(verify(slide, detections(places), learned, QUICK, None, views=views))
    assert len(set(expected.values())) > 8
    for batch_size in (1, 3, 64):
        found = verify(slide, detections(places[::-1]), learned, QUICK, None, views=views, batch_size=batch_size)
        assert by_place(found) == expected
    some = verify(slide, detections(places[3:7]), learned, QUICK, None, views=views)
    assert by_place(some) == {tuple(place): expected[tuple(place)] for place in places[3:7].tolist()}


def test_eight_views_make_a_turned_slide_the_same(learned):
    slide, places = slide_of(9)
    places = np.floor(places)  # on the corner of a pixel, so that a turned crop holds the same pixels
    turned = ArraySlide(np.ascontiguousarray(np.rot90(slide.pixels)))
    moved = np.stack([places[:, 1], slide.dimensions[0] - places[:, 0]], axis=1)
    for views, same in ((8, True), (1, False)):
        before = by_place(verify(slide, detections(places), learned, QUICK, None, views=views))
        after = by_place(verify(turned, detections(moved), learned, QUICK, None, views=views))
        pairs = [
            (before[tuple(place)], after[tuple(other)])
            for place, other in zip(places.tolist(), moved.tolist(), strict=True)
        ]
        assert (max(abs(a - b) for a, b in pairs) < 2e-4) is same


def test_no_candidates_stay_none(learned):
    assert len(verify(slide_of(9)[0], Detections.empty(), learned, QUICK, None)) == 0
    assert score_crops(learned, np.empty((0, 32, 32, 3), np.uint8)).shape == (0,)


def test_size_and_place_are_kept(learned):
    slide, places = slide_of(9)
    found = Detections(places, np.linspace(0.1, 0.9, 16), np.arange(16.0))
    after = verify(slide, found, learned, QUICK, None)
    sizes = dict(zip(map(tuple, after.xy.tolist()), after.area_um2.tolist(), strict=True))
    assert sizes == {tuple(place): float(number) for number, place in enumerate(places.tolist())}


def test_scores_are_combined_as_asked_and_are_never_nothing():
    probability, first = np.array([0.25, 1.0, 0.0, 0.123456]), np.array([1.0, 0.25, 0.5, 0.0001])
    replaced = combine_scores(probability, first, replace_settings(combine="replace"))
    assert replaced.tolist() == [0.25, 1.0, 0.0001, 0.1235]
    geometric = combine_scores(probability, first, replace_settings(combine="geometric"))
    assert geometric.tolist() == [0.5, 0.5, 0.0071, 0.0035]


def test_the_same_seed_gives_the_same_network_and_another_another(tmp_path):
    candidates = candidate_set(tmp_path)
    runs = [train_verifier(candidates, replace_settings(steps=3, seed=seed)) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([value.flatten().float() for value in run.state_dict().values()]) for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_is_told_each_step(tmp_path):
    told = []
    train_verifier(candidate_set(tmp_path), replace_settings(steps=5), lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(loss) for _, loss in told)


@pytest.mark.parametrize("labels", [(FIGURE, FIGURE), (OTHER, LOOK_ALIKE), (FIGURE, UNCLEAR)])
def test_what_cannot_be_learned_from_is_refused(tmp_path, labels):
    with pytest.raises(PatchIndexError, match="among the candidates, so there is nothing to tell apart"):
        train_verifier(candidate_set(tmp_path, labels), QUICK)


def test_a_run_that_diverges_stops(tmp_path, monkeypatch):
    monkeypatch.setattr("mitosis.verification._step", lambda *_: float("nan"))
    with pytest.raises(ModelError, match="not finite in ten steps"):
        train_verifier(candidate_set(tmp_path), QUICK)


# What a batch holds


def pools(n_figures=3, n_look_alikes=5, n_others=11):
    ends = np.cumsum([n_figures, n_look_alikes, n_others])
    parts = np.split(np.arange(ends[-1]), ends[:-1])
    return dict(zip((FIGURE, LOOK_ALIKE, OTHER), parts, strict=True))


def numbers_of(batch, pool):
    return tuple(sum(row in pool[name] for row, _ in batch) for name in (FIGURE, LOOK_ALIKE, OTHER))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [(pools(), (5, 5, 6)), (pools(n_look_alikes=0), (5, 0, 11)), (pools(n_others=0), (5, 11, 0))],
)
def test_shares_are_kept_and_one_kind_stands_in_for_the_other(pool, expected):
    batches = list(draws(pool, replace_settings(steps=4)))
    assert len(batches) == 4
    assert {numbers_of(batch, pool) for batch in batches} == {expected}


def test_nothing_is_shown_again_before_all_of_its_class_were():
    pool = pools()
    shown = [draw for batch in draws(pool, replace_settings(steps=30)) for draw in batch]
    assert len(set(shown)) == len(shown)
    for rows in pool.values():
        times = [time for row, time in shown if row in rows]
        assert times == sorted(times)
        for time in range(max(times)):
            assert sorted(row for row, when in shown if row in rows and when == time) == rows.tolist()
    orders = [[row for row, when in shown if row in pool[OTHER] and when == time] for time in range(3)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_an_item_has_a_stream_of_its_own(tmp_path, monkeypatch):
    seeds = []

    def spy(image, mask, strength, seed):
        seeds.append((seed, strength))
        return image, mask

    monkeypatch.setattr("mitosis.verification.augment", spy)
    train_verifier(candidate_set(tmp_path), replace_settings(steps=12))
    assert len({seed for seed, _ in seeds}) == len(seeds) == 12 * 16
    assert {strength for _, strength in seeds} == {QUICK.augment}


def test_crops_of_the_index_are_cut_to_the_middle(tmp_path, monkeypatch):
    """Without augmentation and shift the network learns from just what it will be shown."""
    seen = []
    monkeypatch.setattr("mitosis.verification.augment", lambda image, mask, *_: (image, mask))
    monkeypatch.setattr(
        "mitosis.verification._step", lambda _n, _o, images, labels, _s: seen.append((images, labels)) or 0.0
    )
    train_verifier(candidate_set(tmp_path, seeds=(1,)), replace_settings(shift=0, steps=2))
    slide, places = slide_of(1)
    expected = read_crops(slide, places, MPP, QUICK.crop, None)
    for images, labels in seen:
        for image, label in zip(images.numpy(), labels.tolist(), strict=True):
            rows = expected[:8] if label == 1 else expected[8:]
            assert any(np.array_equal(image, crop) for crop in rows)


def test_the_last_layer_can_be_learned_anew_from_classes_filled_up(tmp_path, learned):
    """Only the last layer differs from the network without, and it still tells the spots apart."""
    filled = train_verifier(candidate_set(tmp_path), QUICK.model_copy(update={"smote": True}))
    for name, value in learned.state_dict().items():
        assert torch.equal(value, filled.state_dict()[name]) != name.startswith("last")
    slide, places = slide_of(9)
    scores = score_crops(filled, read_crops(slide, places, MPP, QUICK.crop, None))
    assert scores[:8].min() > scores[8:].max()
