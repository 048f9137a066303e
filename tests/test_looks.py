"""Which member is asked about which candidate, how often, and what both stages say together."""

import numpy as np
import pytest
import torch
from conftest import QUICK_VERIFIER, by_place, candidate_set, detections, spots_slide, verifier_settings

from mitosis import looks as module
from mitosis.crops import read_crops
from mitosis.looks import combine_scores, final_scores
from mitosis.verification import train_verifier, verify
from mitosis.verifier import Verifier


def test_only_what_looks_promising_is_given_more_views(learned, monkeypatch):
    slide, places = spots_slide(9)
    once = by_place(verify(slide, detections(places), learned, QUICK_VERIFIER, None))
    middle = float(np.median(list(once.values())))
    settings = QUICK_VERIFIER.model_copy(update={"views_from": middle})
    all_views, found = (
        by_place(verify(slide, detections(places), learned, some, None, views=8)) for some in (QUICK_VERIFIER, settings)
    )
    again = {place for place, score in once.items() if score >= middle}
    assert 0 < len(again) < len(once)
    assert found == {place: (all_views if place in again else once)[place] for place in once}
    shown = []
    engine = module._run(learned)
    monkeypatch.setattr(module, "_run", lambda _network: lambda crops: shown.append(len(crops)) or engine(crops))
    verify(slide, detections(places), learned, settings, None, views=8)
    assert sum(shown) == len(places) + 7 * len(again)


def test_other_members_are_asked_about_what_the_first_finds_promising(tmp_path):
    settings = verifier_settings(members=2)
    network = train_verifier(candidate_set(tmp_path), settings)
    slide, places = spots_slide(9)
    alone, together = (
        by_place(verify(slide, detections(places), some, settings, None, views=4))
        for some in (network.apart()[0], network)
    )
    upright = by_place(verify(slide, detections(places), network.apart()[0], settings, None))
    middle = float(np.median(list(upright.values())))
    quick = settings.model_copy(update={"members_from": middle})
    again = {place for place, score in upright.items() if score >= middle}
    assert 0 < len(again) < len(places)
    for batch_size in (3, 64):
        found = by_place(verify(slide, detections(places), network, quick, None, views=4, batch_size=batch_size))
        assert found == {place: (together if place in again else upright)[place] for place in upright}
    assert alone != together
    crops = read_crops(slide, places, settings.mpp, settings.crop, None)
    scores = final_scores(network, crops, np.full(len(crops), 0.5), quick, views=4)
    assert found == {tuple(place): score for place, score in zip(places.tolist(), scores.tolist(), strict=True)}


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_member_is_asked_the_same_twice(monkeypatch, in_flight):
    torch.manual_seed(0)
    network, crops = (
        Verifier(4, 32, members=3).eval(),
        np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8),
    )
    network.in_flight, first = in_flight, np.linspace(0.2, 0.9, 20)
    settings = verifier_settings(members=3, first_weight=0.5)
    whole = final_scores(network, crops, first, settings)
    asked, run = [], module._run

    def counted(some):
        engine = run(some)

        def count(crops):
            asked.extend(len(crops) * [list(network.members).index(member) for member in some.members])
            return engine(crops)

        return count

    monkeypatch.setattr(module, "_run", counted)
    quick = settings.model_copy(update={"members_from": 0.5})
    promising = final_scores(network.apart()[0], crops, first, settings) >= 0.5
    asked.clear()
    found = final_scores(network, crops, first, quick)
    np.testing.assert_array_equal(found[promising], whole[promising])
    assert 0 < promising.sum() < 20
    assert [asked.count(number) for number in range(3)] == [20, promising.sum(), promising.sum()]


def test_promising_candidates_wait_until_they_fill_a_batch(learned, monkeypatch):
    slide, places = spots_slide(9)
    once = verify(slide, detections(places), learned, QUICK_VERIFIER, None)
    settings = QUICK_VERIFIER.model_copy(update={"views_from": float(np.sort(once.score)[-6])})
    shown, engine = [], module._run(learned)
    monkeypatch.setattr(module, "_run", lambda _network: lambda crops: shown.append(len(crops)) or engine(crops))
    verify(slide, detections(places), learned, settings, None, views=4, batch_size=4)
    assert sorted(shown) == 3 * [2] + 7 * [4]  # 16 places; of 6 promising ones 4 and 2, each in 3 more views


def test_crops_at_hand_get_the_scores_that_their_candidates_get(learned):
    slide, places = spots_slide(9)
    for settings in (QUICK_VERIFIER, QUICK_VERIFIER.model_copy(update={"views_from": 0.3})):
        expected = verify(slide, detections(places), learned, settings, None, views=4)
        crops = read_crops(slide, expected.xy, settings.mpp, settings.crop, None)
        found = final_scores(learned, crops, np.full(len(crops), 0.5), settings, views=4)
        np.testing.assert_array_equal(found, expected.score)


def test_scores_are_combined_as_asked_and_are_never_nothing():
    probability, first = np.array([0.25, 1.0, 0.0, 0.123456]), np.array([1.0, 0.25, 0.5, 0.0001])
    replaced = combine_scores(probability, first, verifier_settings(combine="replace"))
    assert replaced.tolist() == [0.25, 1.0, 0.0001, 0.1235]
    geometric = combine_scores(probability, first, verifier_settings(combine="geometric"))
    assert geometric.tolist() == [0.5, 0.5, 0.0071, 0.0035]


def test_log_odds_are_averaged_by_weight():
    probability, first = np.array([0.8, 0.8, 1.0, 0.0]), np.array([0.2, 0.8, 0.0001, 1.0])
    # odds 4 and 1/4: weights of a half cancel, 0.75 leaves 4^(0.75 - 0.25) = 2
    assert combine_scores(probability, first, verifier_settings(combine="log_odds", first_weight=0.5))[:2].tolist() == [
        0.5,
        0.8,
    ]
    assert combine_scores(probability, first, verifier_settings(combine="log_odds", first_weight=0.25)).tolist()[0] == (
        pytest.approx(2 / 3, abs=1e-4)
    )
    # The surest answers of the two against each other: neither is infinitely sure.
    sure = combine_scores(probability, first, verifier_settings(combine="log_odds", first_weight=0.2)).tolist()[2:]
    assert sure == [0.996, 0.004]
    alone = combine_scores(probability, first, verifier_settings(combine="log_odds", first_weight=0.0))
    assert alone.tolist() == [0.8, 0.8, 0.9999, 0.0001]
