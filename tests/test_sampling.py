"""Samplers: a contract over the registry, and what `oversample` promises."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.config import TrainConfig
from mitosis.sampling import SAMPLERS, oversample, uniform

HAS_FIGURE = [i % 10 == 0 for i in range(200)]
CONFIG = TrainConfig(batch_size=8, figure_share=0.5, seed=5)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
class TestEverySampler:
    def test_epochs_differ_and_repeat_exactly(self, name: str) -> None:
        sampler = SAMPLERS[name]
        assert sampler(HAS_FIGURE, CONFIG, 3) == sampler(HAS_FIGURE, CONFIG, 3)
        assert sampler(HAS_FIGURE, CONFIG, 3) != sampler(HAS_FIGURE, CONFIG, 4)
        assert sampler(HAS_FIGURE, CONFIG, 3) != sampler(HAS_FIGURE, CONFIG.model_copy(update={"seed": 6}), 3)

    @given(
        flags=st.lists(st.booleans(), min_size=1, max_size=60),
        batch_size=st.integers(1, 16),
        share=st.floats(0, 1),
        epoch=st.integers(0, 50),
    )
    def test_draws_are_rows_of_full_batches_and_no_draw_comes_twice(
        self, name: str, flags: list[bool], batch_size: int, share: float, epoch: int
    ) -> None:
        config = TrainConfig(batch_size=batch_size, figure_share=share)
        batches = SAMPLERS[name](flags, config, epoch)
        draws = [draw for batch in batches for draw in batch]
        assert batches
        assert all(0 <= draw.row < len(flags) and draw.epoch == epoch for draw in draws)
        assert len(set(draws)) == len(draws)
        if len(batches) > 1:
            assert {len(batch) for batch in batches} == {batch_size}


def test_uniform_shows_every_patch_once() -> None:
    rows = [draw.row for batch in uniform(HAS_FIGURE, CONFIG, 0) for draw in batch]
    assert sorted(rows) == list(range(200))


def test_oversample_keeps_its_share_in_every_batch_and_shows_all_others() -> None:
    batches = oversample(HAS_FIGURE, CONFIG, 0)
    assert {sum(HAS_FIGURE[draw.row] for draw in batch) for batch in batches} == {4}
    others = Counter(draw.row for batch in batches for draw in batch if not HAS_FIGURE[draw.row])
    assert set(others.values()) == {1}
    assert len(others) == 180


def test_oversample_repeats_figures_evenly_and_numbers_the_repeats() -> None:
    draws = [draw for batch in oversample(HAS_FIGURE, CONFIG, 0) for draw in batch if HAS_FIGURE[draw.row]]
    shown = Counter(draw.row for draw in draws)
    assert max(shown.values()) - min(shown.values()) <= 1
    assert all(sorted(d.repeat for d in draws if d.row == row) == list(range(n)) for row, n in shown.items())


def test_without_figures_oversample_is_uniform() -> None:
    assert oversample([False] * 20, CONFIG, 1) == uniform([False] * 20, CONFIG, 1)
