"""What the second stage is shown: shares, order, and each crop with a stream of its own."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import MPP, QUICK_VERIFIER, candidate_set, spots_slide, verifier_settings

from mitosis import candidate_batches as module
from mitosis.candidate_batches import candidate_batches, draws, head_of
from mitosis.crops import FIGURE, LOOK_ALIKE, OTHER, crop_side, read_crops
from mitosis.errors import PatchIndexError


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
    batches = list(draws(pool, verifier_settings(steps=4)))
    assert len(batches) == 4
    assert {numbers_of(batch, pool) for batch in batches} == {expected}


def test_nothing_is_shown_again_before_all_of_its_class_were():
    pool = pools()
    shown = [draw for batch in draws(pool, verifier_settings(steps=30)) for draw in batch]
    assert len(set(shown)) == len(shown)
    for rows in pool.values():
        times = [time for row, time in shown if row in rows]
        assert times == sorted(times)
        for time in range(max(times)):
            assert sorted(row for row, when in shown if row in rows and when == time) == rows.tolist()
    orders = [[row for row, when in shown if row in pool[OTHER] and when == time] for time in range(3)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_the_domain_tells_nothing_of_the_class_where_domains_are_balanced():
    pool = pools(n_figures=8, n_look_alikes=2, n_others=40)
    domains = np.array(["a"] * 6 + ["b"] * 2 + ["a", "c"] + ["a"] * 4 + ["b"] * 26 + ["c"] * 10)
    shown = [row for batch in draws(pool, verifier_settings(steps=400), domains) for row, _ in batch]
    for name in (FIGURE, OTHER):
        of = domains[[row for row in shown if row in pool[name]]]
        assert np.mean(of == "a") == pytest.approx(6 / 8, abs=0.04)
        assert np.mean(of == "b") == pytest.approx(2 / 8, abs=0.04)
    assert set(shown) == set(np.flatnonzero(domains != "c"))
    batches = list(draws(pool, verifier_settings(steps=4), domains))
    assert {numbers_of(batch, pool) for batch in batches} == {(5, 5, 6)}
    assert batches == list(draws(pool, verifier_settings(steps=4), domains))
    alone = np.array(["a"] * 8 + ["c"] * 42)  # nothing else is of a domain with figures
    assert {row for batch in draws(pool, verifier_settings(steps=30), alone) for row, _ in batch} == set(range(50))


def test_the_domains_of_slides_are_what_is_balanced(tmp_path, monkeypatch):
    candidates = candidate_set(tmp_path)
    slides = {name: replace(slide, domain=name) for name, slide in candidates.slides.items()}
    given = []
    monkeypatch.setattr(module, "draws", lambda _pools, _settings, domains: given.append(domains) or iter(()))
    for balance in (True, False):
        settings = verifier_settings(balance_domains=balance)
        list(candidate_batches(replace(candidates, slides=slides), settings))
    assert given[0].tolist() == [candidate.slide_id for candidate in candidates.candidates]
    assert given[1] is None
    unknown = replace(candidates, slides={**slides, "S2": replace(slides["S2"], domain="")})
    with pytest.raises(PatchIndexError, match="of which domain the slide S2 is"):
        candidate_batches(unknown, verifier_settings(balance_domains=True))


def with_domains(candidates, *domains):
    """The slides S1, S2, ... as of these domains."""
    slides = zip(candidates.slides.items(), domains, strict=True)
    return replace(candidates, slides={name: replace(slide, domain=domain) for (name, slide), domain in slides})


def test_auxiliary_domains_have_their_share_of_a_batch_and_a_last_layer_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "augment", lambda image, mask, *_: (image, mask))
    candidates = with_domains(candidate_set(tmp_path), "a", "b", "c")
    settings = verifier_settings(auxiliary_domains=("b", "c"), auxiliary_share=0.25, shift=0, steps=8)
    domain_of = {
        candidates.crop(row)[8:40, 8:40].tobytes(): candidates.slides[row.slide_id].domain
        for row in candidates.candidates
    }
    seen = set()
    for images, labels, heads in candidate_batches(candidates, settings):
        domains = np.array([domain_of[image.tobytes()] for image in images.numpy()])
        assert heads.tolist() == (domains != "a").tolist() == [0] * 12 + [1] * 4
        assert [int((labels[heads == head] == 1).sum()) for head in (0, 1)] == [4, 1]
        seen |= set(domains)
    assert seen == {"a", "b", "c"}
    batches = candidate_batches(candidates, verifier_settings(steps=3))
    assert all((batch.heads == -1).all() for batch in batches)


def test_probabilities_that_are_taught_stand_in_for_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "augment", lambda image, mask, *_: (image, mask))
    candidates = with_domains(candidate_set(tmp_path), "a", "b", "b")
    rows = {candidates.crop(row)[8:40, 8:40].tobytes(): n for n, row in enumerate(candidates.candidates)}
    taught = np.random.default_rng(0).dirichlet((1, 1, 1), len(rows)).astype(np.float32)
    settings = verifier_settings(auxiliary_domains=("b",), shift=0, steps=4)
    for images, labels, heads in candidate_batches(candidates, settings, taught):
        expected = taught[[rows[image.tobytes()] for image in images.numpy()]]
        np.testing.assert_array_equal(labels.numpy(), expected)
        assert (heads == -1).all()


def test_each_domain_with_figures_has_a_last_layer_and_auxiliary_ones_share_another(tmp_path):
    candidates = with_domains(candidate_set(tmp_path, seeds=(1, 2, 3, 4)), "z", "a", "c", "b")
    settings = verifier_settings(auxiliary_domains=("c", "other"))
    assert head_of(candidates, settings) == {"a": 0, "b": 1, "z": 2, "c": 3, "other": 3}
    rows = candidates.candidates
    without = [row for row in rows if candidates.slides[row.slide_id].domain != "b" or row.label != FIGURE]
    assert head_of(replace(candidates, candidates=tuple(without)), settings) == {"a": 0, "z": 1, "c": 2, "other": 2}
    assert head_of(candidates, verifier_settings()) == {}


def test_each_sort_of_domains_has_figures_and_others(tmp_path):
    candidates = with_domains(candidate_set(tmp_path, labels=(FIGURE, FIGURE)), "a", "b", "b")
    with pytest.raises(
        PatchIndexError, match=r"nothing but mitotic figures among the candidates outside verifier\.aux"
    ):
        candidate_batches(candidates, verifier_settings(auxiliary_domains=("b",)))
    candidates = with_domains(candidate_set(tmp_path), "a", "a", "a")
    with pytest.raises(PatchIndexError, match=r"no mitotic figure among the candidates of verifier\.aux"):
        candidate_batches(candidates, verifier_settings(auxiliary_domains=("b",)))
    with pytest.raises(PatchIndexError, match="of which domain the slide S2 is"):
        candidate_batches(with_domains(candidates, "a", "", "b"), verifier_settings(auxiliary_domains=("b",)))


def test_an_item_has_a_stream_of_its_own(tmp_path, monkeypatch):
    seeds = []

    def spy(image, mask, strength, seed):
        seeds.append((seed, strength))
        return image, mask

    monkeypatch.setattr("mitosis.candidate_batches.augment", spy)
    list(candidate_batches(candidate_set(tmp_path), verifier_settings(steps=12)))
    assert len({seed for seed, _ in seeds}) == len(seeds) == 12 * 16
    assert {strength for _, strength in seeds} == {QUICK_VERIFIER.augment}


def test_crops_of_the_index_are_cut_to_the_middle(tmp_path, monkeypatch):
    """Without augmentation and shift the network learns from just what it will be shown."""
    monkeypatch.setattr(module, "augment", lambda image, mask, *_: (image, mask))
    seen = candidate_batches(candidate_set(tmp_path, seeds=(1,)), verifier_settings(shift=0, steps=2))
    slide, places = spots_slide(1)
    expected = read_crops(slide, places, MPP, QUICK_VERIFIER.crop, None)
    for images, labels, _ in seen:
        for image, label in zip(images.numpy(), labels.tolist(), strict=True):
            rows = expected[:8] if label == 1 else expected[8:]
            assert any(np.array_equal(image, crop) for crop in rows)


JITTERS = {"resolution_jitter": 0.2, "fourier_share": 1.0, "colour_jitter": 0.2, "scanner_jitter": 1.0}


def shown(candidates, **changes):
    """The crops of two steps, and what they are."""
    settings = verifier_settings(**{"steps": 2, "augment": 0.0, "shift": 0, "fourier_beta": 0.1} | changes)
    images, labels, _ = zip(*candidate_batches(candidates, settings), strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("name", JITTERS)
def test_each_jitter_changes_what_is_shown_and_nothing_else(name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "augment", lambda image, mask, *_: (image, mask))
    candidates = candidate_set(tmp_path)
    plain, labels = shown(candidates)
    changed, same_labels = shown(candidates, **{name: JITTERS[name]})
    again, _ = shown(candidates, **{name: JITTERS[name]})
    assert changed.shape == plain.shape
    assert np.array_equal(changed, again)
    assert np.array_equal(labels, same_labels)
    differ = [not np.array_equal(a, b) for a, b in zip(plain, changed, strict=True)]
    assert np.mean(differ) > 0.7


@pytest.mark.parametrize("jitter", [0.1, 0.3, 0.5])
def test_another_resolution_keeps_the_candidate_in_the_middle(jitter, tmp_path, monkeypatch):
    """A round spot of radius 9 px stays round the centre, and is between (1 - jitter) and (1 + jitter) of its size."""
    monkeypatch.setattr(module, "augment", lambda image, mask, *_: (image, mask))
    images, labels = shown(candidate_set(tmp_path), resolution_jitter=jitter, steps=8)
    areas = []
    for image in images[labels == 1]:
        ys, xs = np.nonzero(image[..., 0] < 120)
        assert abs(ys.mean() - 15.5) < 2
        assert abs(xs.mean() - 15.5) < 2
        areas.append(len(ys))
    usual = np.pi * 9**2
    assert min(areas) < 0.95 * usual < 1.05 * usual < max(areas)


def test_a_donor_is_of_another_case(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "augment", lambda image, mask, *_: (image, mask))
    pairs = []
    monkeypatch.setattr(module, "mix_amplitudes", lambda image, donor, *_: pairs.append((image, donor)) or image)
    candidates = candidate_set(tmp_path)
    shown(candidates, fourier_share=1.0)
    side = crop_side(QUICK_VERIFIER.crop)
    case_of = {candidates.crop(row).tobytes(): row.case_id for row in candidates.candidates}
    assert len(pairs) == 2 * QUICK_VERIFIER.batch_size
    assert all(image.shape == (side, side, 3) for image, _ in pairs)
    assert all(case_of[image.tobytes()] != case_of[donor.tobytes()] for image, donor in pairs)


@pytest.mark.slow
def test_batches_are_the_same_for_any_number_of_workers(tmp_path):
    candidates = with_domains(candidate_set(tmp_path), "a", "b", "c")
    settings = verifier_settings(auxiliary_domains=("b", "c"), steps=5, **JITTERS)
    by_thread = list(candidate_batches(candidates, settings))
    by_processes = list(candidate_batches(candidates, settings.model_copy(update={"workers": 2})))
    assert len(by_thread) == len(by_processes) == 5
    for one, other in zip(by_thread, by_processes, strict=True):
        assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))
    assert not torch.equal(by_thread[0].images, by_thread[1].images)
