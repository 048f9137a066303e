"""Samplers: a contract over the registry, and what each promises."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from mitosis.config import TrainConfig
from mitosis.errors import ConfigError
from mitosis.patches import BACKGROUND, HARD_NEGATIVE, MITOTIC
from mitosis.sampling import SAMPLERS, Batches, Draw, PatchPool, epochs, for_rank

KINDS = tuple(MITOTIC if i % 10 == 0 else HARD_NEGATIVE if i % 10 < 3 else BACKGROUND for i in range(200))
POOL = PatchPool(KINDS, tuple("AB"[i % 3 == 0] for i in range(200)))
CONFIG = TrainConfig(batch_size=8, figure_share=0.5, seed=5, steps=400)
EVERY_SAMPLER = sorted(SAMPLERS)


def config(**changes: object) -> TrainConfig:
    return CONFIG.model_copy(update=changes)


def flat(batches: Batches) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


def draw(name: str, epoch: int, pool: PatchPool = POOL, settings: TrainConfig = CONFIG) -> Batches:
    return SAMPLERS[name](pool, settings, epoch)


def kinds_of(batch: list[Draw]) -> Counter[str]:
    return Counter(KINDS[each.row] for each in batch)


@pytest.mark.parametrize("name", EVERY_SAMPLER)
class TestEverySampler:
    def test_epochs_differ_and_repeat_exactly(self, name: str) -> None:
        assert draw(name, 3) == draw(name, 3)
        assert draw(name, 3) != draw(name, 4)
        assert draw(name, 3) != draw(name, 3, settings=config(seed=6))

    def test_no_draw_comes_twice_and_repeats_are_numbered(self, name: str) -> None:
        draws = flat(draw(name, 2))
        assert len(set(draws)) == len(draws)
        by_row: dict[int, list[int]] = {}
        for each in draws:
            by_row.setdefault(each.row, []).append(each.repeat)
        assert all(repeats == list(range(len(repeats))) for repeats in by_row.values())
        assert {each.epoch for each in draws} == {2}

    @given(
        kinds=st.lists(st.sampled_from([MITOTIC, HARD_NEGATIVE, BACKGROUND]), min_size=1, max_size=60),
        batch_size=st.integers(3, 9),
        share=st.floats(0, 1),
        epoch=st.integers(0, 3),
    )
    def test_batches_are_full_and_rows_exist(
        self, name: str, kinds: list[str], batch_size: int, share: float, epoch: int
    ) -> None:
        pool = PatchPool(tuple(kinds), ("",) * len(kinds))
        batches = draw(name, epoch, pool, config(batch_size=batch_size, figure_share=share))
        assert batches
        sizes = {len(batch) for batch in batches}
        assert sizes == {batch_size} or (name in ("uniform", "balanced") and sizes == {len(kinds)})
        assert all(0 <= each.row < len(kinds) for each in flat(batches))

    def test_a_run_taken_up_in_the_middle_of_an_epoch_goes_on_alike(self, name: str) -> None:
        def batches(steps: int) -> Batches:
            return [batch for epoch in epochs(POOL, config(sampler=name, steps=steps)) for batch in epoch]

        assert len(batches(400)) == 400
        assert batches(400)[:133] == batches(133)

    @pytest.mark.parametrize("n_ranks", [1, 2, 4])
    def test_ranks_share_each_batch_without_overlap_or_loss(self, name: str, n_ranks: int) -> None:
        batches = draw(name, 1)
        parts = [for_rank(batches, rank, n_ranks) for rank in range(n_ranks)]
        for number, batch in enumerate(batches):
            shared = [each for part in parts for each in part[number]]
            assert Counter(shared) == Counter(batch)
        assert len({len(part[0]) for part in parts}) == 1

    def test_within_a_sort_each_patch_is_shown_n_times_before_any_n_plus_1_times(self, name: str) -> None:
        """Over several epochs, so that an epoch goes on where the one before stopped."""
        shown: Counter[int] = Counter()
        for epoch in range(7):
            shown.update(each.row for each in flat(draw(name, epoch)))
            for kind, domain in set(zip(POOL.kinds, POOL.domains, strict=True)):
                counts = [
                    shown[row]
                    for row in range(len(POOL))
                    if (POOL.kinds[row], POOL.domains[row]) == (kind, domain) and shown[row]
                ]
                assert max(counts, default=0) - min(counts, default=0) <= 1


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"8 patches cannot be shared evenly by 3 processes"):
        for_rank(draw("uniform", 0), 0, 3)


def test_uniform_shows_every_patch_once() -> None:
    assert sorted(each.row for each in flat(draw("uniform", 0))) == list(range(200))


def test_what_uniform_leaves_out_comes_in_the_next_epoch() -> None:
    settings = config(batch_size=7)
    first, second = (flat(draw("uniform", epoch, settings=settings)) for epoch in (0, 1))
    left_out = set(range(200)) - {each.row for each in first}
    assert len(left_out) == 200 % 7
    assert left_out <= {each.row for each in second}


TWO_CLASSES = ("combined", "oversample", "undersample", "undersample-each-epoch")


@pytest.mark.parametrize("name", TWO_CLASSES)
@pytest.mark.parametrize(("share", "expected"), [(0.5, 4), (0.25, 2), (0.01, 1), (0.99, 7)])
def test_every_batch_has_its_share_of_figures(name: str, share: float, expected: int) -> None:
    batches = draw(name, 1, settings=config(figure_share=share))
    assert {kinds_of(batch)[MITOTIC] for batch in batches} == {expected}


@pytest.mark.parametrize("name", TWO_CLASSES)
def test_without_figures_others_fill_the_batch_and_the_other_way_round(name: str) -> None:
    for kind in (MITOTIC, BACKGROUND):
        pool = PatchPool((kind,) * 20, ("",) * 20)
        assert sorted({each.row for epoch in range(3) for each in flat(draw(name, epoch, pool))}) == list(range(20))


def test_oversample_shows_all_others_once_and_repeats_figures_evenly() -> None:
    shown = Counter(each.row for each in flat(draw("oversample", 0)))
    assert {n for row, n in shown.items() if KINDS[row] != MITOTIC} == {1}
    assert sum(n for row, n in shown.items() if KINDS[row] != MITOTIC) == 180
    repeats = {n for row, n in shown.items() if KINDS[row] == MITOTIC}
    assert repeats == {9}


def test_undersample_shows_the_same_others_in_each_epoch() -> None:
    first, second = ({each.row for each in flat(draw("undersample", epoch))} for epoch in (0, 1))
    assert first == second
    assert len(first) == 20 + 20


@pytest.mark.parametrize("name", ["undersample-each-epoch", "combined", "oversample"])
def test_others_are_all_seen_in_the_promised_number_of_epochs_and_none_twice_before(name: str) -> None:
    n_others = 180
    an_epoch = sum(KINDS[each.row] != MITOTIC for each in flat(draw(name, 0)))
    promised = math.ceil(n_others / an_epoch)
    shown: Counter[int] = Counter()
    for epoch in range(promised):
        assert (len(shown) == n_others) is False
        shown.update(each.row for each in flat(draw(name, epoch)) if KINDS[each.row] != MITOTIC)
    assert len(shown) == n_others
    assert max(shown.values()) <= 2 if n_others % an_epoch else max(shown.values()) == 1


def test_undersampled_subsets_of_two_epochs_are_disjoint_until_all_are_seen() -> None:
    seen = [{each.row for each in flat(draw("undersample-each-epoch", epoch))} for epoch in range(9)]
    figures = {row for row, kind in enumerate(KINDS) if kind == MITOTIC}
    assert all(len((a & b) - figures) == 0 for a, b in pairwise(seen))
    assert set.union(*seen) == set(range(200))


def test_combined_is_longer_than_undersampling_and_shorter_than_oversampling() -> None:
    under, both, over = (len(draw(name, 0)) for name in ("undersample-each-epoch", "combined", "oversample"))
    assert (under, both, over) == (5, 15, 45)


@pytest.mark.parametrize(
    ("mix", "expected"), [((0.5, 0.25, 0.25), (4, 2, 2)), ((0.5, 0.4, 0.1), (4, 3, 1)), ((0.6, 0.4, 0.0), (5, 3, 0))]
)
def test_mix_keeps_its_three_shares_in_every_batch(
    mix: tuple[float, float, float], expected: tuple[int, int, int]
) -> None:
    batches = draw("mix", 0, settings=config(mix=mix))
    found = {tuple(kinds_of(batch)[kind] for kind in (MITOTIC, HARD_NEGATIVE, BACKGROUND)) for batch in batches}
    assert found == {expected}


def test_mix_shares_out_what_is_lacking() -> None:
    pool = PatchPool((MITOTIC,) * 4 + (BACKGROUND,) * 30, ("",) * 34)
    batches = draw("mix", 0, pool, config(batch_size=6))
    assert {sum(each.row < 4 for each in batch) for batch in batches} == {4}
    assert {each.row for each in flat(batches)} == set(range(34))


def test_balanced_shows_every_class_in_every_domain_equally_often() -> None:
    pool = PatchPool((MITOTIC,) * 5 + (BACKGROUND,) * 400, tuple("AB"[i < 2 or i > 300] for i in range(405)))
    cells = set(zip(pool.kinds, pool.domains, strict=True))
    assert len(cells) == 4
    shown: Counter[tuple[str, str]] = Counter()
    for epoch in range(3):
        shown.update((pool.kinds[each.row], pool.domains[each.row]) for each in flat(draw("balanced", epoch, pool)))
        assert max(shown.values()) - min(shown.values()) <= 1
        assert chisquare([shown[cell] for cell in sorted(cells)]).pvalue > 0.99


def test_which_patch_comes_next_is_chance_not_the_order_of_the_index() -> None:
    """Chi-square of the first ten draws of many seeds: no row is preferred."""
    first = Counter(
        each.row for seed in range(400) for each in flat(draw("uniform", 0, settings=config(seed=seed)))[:10]
    )
    assert chisquare([first[row] for row in range(200)]).pvalue > 1e-6
    assert np.std([first[row] for row in range(200)]) > 2


def test_an_unknown_sampler_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'best': unknown. Known: balanced, .*, uniform"):
        next(epochs(POOL, config(sampler="best")))


def test_a_batch_too_small_for_its_shares_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 2 is too small for the sampler 'mix'.* at least 3"):
        draw("mix", 0, settings=config(sampler="mix", batch_size=2))
