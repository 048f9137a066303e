"""The second stage learns to tell round from square, and its scores do not hang on batches or neighbours."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import (
    MPP,
    QUICK_VERIFIER,
    ArraySlide,
    by_place,
    candidate_set,
    detections,
    spots_slide,
    verifier_settings,
)
from torch.nn.functional import cross_entropy

from mitosis import verification as module
from mitosis.crops import FIGURE, LOOK_ALIKE, OTHER, UNCLEAR, CandidateSet, read_crops
from mitosis.detections import Detections
from mitosis.errors import ModelError, PatchIndexError
from mitosis.looks import score_crops
from mitosis.verification import probabilities, train_verifier, verify
from mitosis.verifier import N_CLASSES, Classifier, Verifier


def test_it_learns_to_tell_round_from_square(learned):
    slide, places = spots_slide(9)
    scores = by_place(verify(slide, detections(places), learned, verifier_settings(combine="replace"), None))
    round_scores, square_scores = (
        [scores[tuple(place)] for place in part.tolist()] for part in (places[:8], places[8:])
    )
    assert min(round_scores) > max(square_scores)


@pytest.mark.slow
def test_with_the_transformer_it_learns_too(tmp_path):
    settings = verifier_settings(transformer=True, combine="replace", steps=60)
    network = train_verifier(candidate_set(tmp_path), settings)
    assert network.members[0].transformer.head.bias.abs().max() > 0
    slide, places = spots_slide(9)
    scores = by_place(verify(slide, detections(places), network, settings, None))
    means = [np.mean([scores[tuple(place)] for place in part.tolist()]) for part in (places[:8], places[8:])]
    assert means[0] > means[1] + 0.3


@pytest.mark.parametrize("symmetry", ["p4", "p4m"])
def test_with_filters_in_all_orientations_it_learns_too(tmp_path, symmetry):
    settings = verifier_settings(symmetry=symmetry, width=8, combine="replace")
    network = train_verifier(candidate_set(tmp_path), settings)
    filters = network.members[0].stem[0].weight.detach()  # of a plain network, which says nothing of its learning
    assert torch.equal(filters[1], torch.rot90(filters[0], 1, (1, 2)))
    slide, places = spots_slide(9)
    scores = by_place(verify(slide, detections(places), network, settings, None))
    means = [np.mean([scores[tuple(place)] for place in part.tolist()]) for part in (places[:8], places[8:])]
    assert means[0] > means[1] + 0.3


def test_other_rules_of_auxiliary_domains_are_not_learned(tmp_path):
    """There square is a figure; whoever learned both rules as one could tell nothing apart."""
    here = candidate_set(tmp_path / "here")
    there = candidate_set(tmp_path / "there", labels=(OTHER, FIGURE), seeds=(4, 5, 6))
    both = CandidateSet.join(*(with_domain(some, name) for some, name in ((here, "here"), (there, "there"))))
    settings = verifier_settings(auxiliary_domains=("there",), auxiliary_share=0.5, batch_size=32, steps=60)
    network = train_verifier(both, settings)
    assert network.members[0].last.weight.shape == (N_CLASSES, 4 * settings.width)
    slide, places = spots_slide(9)
    scores = by_place(verify(slide, detections(places), network, settings, None))
    rounds, squares = ([scores[tuple(place)] for place in part.tolist()] for part in (places[:8], places[8:]))
    assert min(rounds) > max(squares)


def with_domain(candidates, domain):
    slides = {name: replace(slide, domain=domain) for name, slide in candidates.slides.items()}
    return replace(candidates, slides=slides)


def test_the_loss_is_the_mean_of_what_is_said_for_all_domains_and_for_each():
    logits, labels = torch.randn(4, 4 * N_CLASSES), torch.tensor([0, 1, 2, 1])
    *of_domains, for_all = logits.split(N_CLASSES, dim=1)
    own = [of_domains[0][0], of_domains[2][1], of_domains[1][2], for_all[3]]
    expected = (cross_entropy(torch.stack(own), labels) + cross_entropy(for_all, labels)) / 2
    torch.testing.assert_close(module._loss(logits, labels, torch.tensor([0, 2, 1, -1])), expected)
    alone = module._loss(for_all, labels, torch.full((4,), -1))
    torch.testing.assert_close(alone, cross_entropy(for_all, labels))


def test_what_counts_is_the_mean_of_all_layers_but_that_of_auxiliary_domains():
    network = Classifier(2)
    network.last = torch.nn.Linear(8, 4 * N_CLASSES)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, other, _, for_all = network.eval()(images).split(N_CLASSES, dim=1)
        for _ in range(2):
            torch.testing.assert_close(module._keep_heads(network)(images), (one + other + for_all) / 3)


@pytest.mark.parametrize("views", [1, 8])
def test_scores_hang_neither_on_the_batch_nor_on_the_other_candidates(learned, views):
    slide, places = spots_slide(9)
    expected = by_place(verify(slide, detections(places), learned, QUICK_VERIFIER, None, views=views))
    assert len(set(expected.values())) > 8
    for batch_size in (1, 3, 64):
        found = verify(
            slide, detections(places[::-1]), learned, QUICK_VERIFIER, None, views=views, batch_size=batch_size
        )
        assert by_place(found) == expected
    some = verify(slide, detections(places[3:7]), learned, QUICK_VERIFIER, None, views=views)
    assert by_place(some) == {tuple(place): expected[tuple(place)] for place in places[3:7].tolist()}


def test_eight_views_make_a_turned_slide_the_same(learned):
    slide, places = spots_slide(9)
    places = np.floor(places)  # on the corner of a pixel, so that a turned crop holds the same pixels
    turned = ArraySlide(np.ascontiguousarray(np.rot90(slide.pixels)))
    moved = np.stack([places[:, 1], slide.dimensions[0] - places[:, 0]], axis=1)
    for views, same in ((8, True), (1, False)):
        before = by_place(verify(slide, detections(places), learned, QUICK_VERIFIER, None, views=views))
        after = by_place(verify(turned, detections(moved), learned, QUICK_VERIFIER, None, views=views))
        pairs = [
            (before[tuple(place)], after[tuple(other)])
            for place, other in zip(places.tolist(), moved.tolist(), strict=True)
        ]
        assert (max(abs(a - b) for a, b in pairs) < 2e-4) is same


def test_no_candidates_stay_none(learned):
    assert len(verify(spots_slide(9)[0], Detections.empty(), learned, QUICK_VERIFIER, None)) == 0
    assert score_crops(learned, np.empty((0, 32, 32, 3), np.uint8)).shape == (0,)


def test_size_and_place_are_kept(learned):
    slide, places = spots_slide(9)
    found = Detections(places, np.linspace(0.1, 0.9, 16), np.arange(16.0))
    after = verify(slide, found, learned, QUICK_VERIFIER, None)
    sizes = dict(zip(map(tuple, after.xy.tolist()), after.area_um2.tolist(), strict=True))
    assert sizes == {tuple(place): float(number) for number, place in enumerate(places.tolist())}


def test_each_member_learns_with_a_seed_of_its_own(tmp_path):
    candidates, seen = candidate_set(tmp_path), []
    together = train_verifier(candidates, verifier_settings(members=2, steps=3), lambda step, _: seen.append(step))
    assert seen == [1, 2, 3, 4, 5, 6]
    for number, member in enumerate(together.members):
        alone = train_verifier(candidates, verifier_settings(steps=3, seed=number)).members[0]
        assert all(
            torch.equal(a, b) for a, b in zip(member.state_dict().values(), alone.state_dict().values(), strict=True)
        )


def test_it_learns_what_another_network_says_whatever_the_labels_are(tmp_path, learned):
    candidates = candidate_set(tmp_path, labels=(OTHER, FIGURE))
    taught = probabilities(learned, candidates, QUICK_VERIFIER)
    network = train_verifier(candidates, verifier_settings(smote=True), taught=taught)
    slide, places = spots_slide(9)
    scores = score_crops(network, read_crops(slide, places, MPP, QUICK_VERIFIER.crop, None))
    assert scores[:8].min() > scores[8:].max()


def test_what_is_taught_is_learned_by_one_layer_for_all_domains(tmp_path):
    here, there = (candidate_set(tmp_path / name, seeds=seeds) for name, seeds in (("a", (1, 2)), ("b", (3, 4))))
    both = CandidateSet.join(with_domain(here, "a"), with_domain(there, "b"))
    settings = verifier_settings(auxiliary_domains=("b",), steps=2)
    taught = np.full((len(both.candidates), N_CLASSES), 1 / N_CLASSES, np.float32)
    losses = []
    network = train_verifier(both, settings, lambda _, loss: losses.append(loss), taught=taught)
    assert network.members[0].last.out_features == N_CLASSES
    assert losses[0] >= np.log(N_CLASSES) - 1e-3  # no cross-entropy with that is less


def test_probabilities_are_those_of_each_candidate_in_its_order(tmp_path, learned):
    candidates = candidate_set(tmp_path)
    crops = np.stack([candidates.crop(row)[8:40, 8:40] for row in candidates.candidates])
    said = probabilities(learned, candidates, QUICK_VERIFIER)
    np.testing.assert_allclose(said.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(said[:, 1], score_crops(learned, crops), atol=1e-5)
    shuffled = replace(candidates, candidates=candidates.candidates[::-1])
    np.testing.assert_allclose(probabilities(learned, shuffled, QUICK_VERIFIER), said[::-1], atol=1e-5)


def test_the_same_seed_gives_the_same_network_and_another_another(tmp_path):
    candidates = candidate_set(tmp_path)
    runs = [train_verifier(candidates, verifier_settings(steps=3, seed=seed)) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([value.flatten().float() for value in run.state_dict().values()]) for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_is_told_each_step(tmp_path):
    told = []
    train_verifier(candidate_set(tmp_path), verifier_settings(steps=5), lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(loss) for _, loss in told)


@pytest.mark.parametrize("labels", [(FIGURE, FIGURE), (OTHER, LOOK_ALIKE), (FIGURE, UNCLEAR)])
def test_what_cannot_be_learned_from_is_refused(tmp_path, labels):
    with pytest.raises(PatchIndexError, match="among the candidates, so there is nothing to tell apart"):
        train_verifier(candidate_set(tmp_path, labels), QUICK_VERIFIER)


def test_a_run_that_diverges_stops(tmp_path, monkeypatch):
    monkeypatch.setattr("mitosis.verification.to_input", lambda images: images.permute(0, 3, 1, 2) * torch.nan)
    with pytest.raises(ModelError, match="not finite in ten steps"):
        train_verifier(candidate_set(tmp_path), QUICK_VERIFIER)


def test_the_last_layer_can_be_learned_anew_from_classes_filled_up(tmp_path, learned):
    """Only the last layer differs from the network without, and it still tells the spots apart."""
    filled = train_verifier(candidate_set(tmp_path), QUICK_VERIFIER.model_copy(update={"smote": True}))
    for name, value in learned.state_dict().items():
        assert torch.equal(value, filled.state_dict()[name]) != ("last." in name)
    slide, places = spots_slide(9)
    scores = score_crops(filled, read_crops(slide, places, MPP, QUICK_VERIFIER.crop, None))
    assert scores[:8].min() > scores[8:].max()


def test_auxiliary_candidates_have_no_part_in_the_last_layer_learned_anew(tmp_path, monkeypatch):
    """Their labels are those of other rules."""
    asked = []
    monkeypatch.setattr(module, "refit_head", lambda _head, features, *_: asked.append(len(features)))
    candidates = candidate_set(tmp_path)
    slides = {name: replace(slide, domain="own") for name, slide in candidates.slides.items()}
    both = replace(candidates, slides=slides)
    settings = QUICK_VERIFIER.model_copy(update={"smote": True, "steps": 1})
    train_verifier(both, settings)
    name = next(iter(slides))
    other = replace(both, slides=slides | {name: replace(slides[name], domain="other")})
    train_verifier(other, settings.model_copy(update={"auxiliary_domains": ("other",)}))
    assert 0 < asked[1] == asked[0] - sum(row.slide_id == name for row in candidates.candidates)


def test_crops_that_are_read_ahead_get_the_same_scores(learned, monkeypatch):
    """As where a GPU waits for them."""
    slide, places = spots_slide(9)
    expected = by_place(verify(slide, detections(places), learned, QUICK_VERIFIER, None, batch_size=3))
    monkeypatch.setattr(module, "_device", lambda _: torch.device("cuda"))
    assert by_place(verify(slide, detections(places), learned, QUICK_VERIFIER, None, batch_size=3)) == expected


@pytest.mark.parametrize(
    ("device", "workers", "expected"), [("cpu", 0, 0), ("cpu", 1, 1), ("cpu", 3, 1), ("cuda", 0, 4), ("cuda", 6, 6)]
)
def test_crops_are_read_by_as_many_threads_as_there_is_use_for(learned, monkeypatch, device, workers, expected):
    slide, places = spots_slide(9)
    asked, in_threads = [], module.in_threads
    monkeypatch.setattr(module, "_device", lambda _: torch.device(device))

    def spy(work, items, n, ahead):
        asked.append((n, ahead))
        return in_threads(work, items, n, ahead)

    monkeypatch.setattr(module, "in_threads", spy)
    verify(slide, detections(places), learned, QUICK_VERIFIER, None, workers=workers)
    assert asked == [(expected, expected)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("views", [1, 8])
def test_a_gpu_gives_the_scores_of_the_processor(learned, views):
    slide, places = spots_slide(9)
    here, there = (
        by_place(verify(slide, detections(places), network, QUICK_VERIFIER, None, views=views, batch_size=5))
        for network in (copy.deepcopy(learned).cpu(), copy.deepcopy(learned).cuda())
    )
    assert here.keys() == there.keys()
    assert max(abs(here[place] - there[place]) for place in here) < 2.5e-4


def test_squares_are_read_block_by_block(monkeypatch):
    """So that neighbours find the tiles that the last one was cut from."""
    read, xy = [], np.random.default_rng(0).random((500, 2)) * 9000

    def note(_slide, some, _mpp, side, _stain):
        read.append(some)
        return np.zeros((len(some), side, side, 3), np.uint8)

    monkeypatch.setattr(module, "read_crops", note)
    settings = verifier_settings(width=2, crop=16)
    found = Detections(xy, np.full(500, 0.5), np.zeros(500))
    verify(None, found, Verifier.from_config(settings).eval(), settings, None)
    blocks = [tuple(block) for block in np.floor(np.concatenate(read) / 2048).tolist()]
    assert len([block for block, _ in itertools.groupby(blocks)]) == len(set(blocks)) == 25
