"""Splits: a case is on one side, and both sides can be used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.errors import LeakageError
from mitosis.splits import TRAIN, VAL, assign_splits, check_leakage

cohorts = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 3), max_size=12)
fractions = st.floats(0, 0.99)


@given(figures=cohorts, fraction=fractions, seed=st.integers(0, 2**32))
def test_every_case_gets_a_side_and_the_number_of_them_is_right(figures, fraction, seed):
    splits = assign_splits(figures, fraction, seed)
    assert set(splits) == set(figures)
    assert set(splits.values()) <= {TRAIN, VAL}
    n_val = list(splits.values()).count(VAL)
    if fraction == 0 or len(figures) < 2:
        assert n_val == 0
    else:
        assert n_val == min(max(1, round(fraction * len(figures))), len(figures) - 1)


@given(figures=cohorts, fraction=fractions, seed=st.integers(0, 2**32))
def test_training_keeps_figures_and_validation_gets_some_where_there_are_enough(figures, fraction, seed):
    splits = assign_splits(figures, fraction, seed)
    sides = {side: [case for case in splits if splits[case] == side and figures[case]] for side in (TRAIN, VAL)}
    n_with = sum(n > 0 for n in figures.values())
    if n_with:
        assert sides[TRAIN]
    if n_with > 1 and fraction:
        assert sides[VAL]


@given(figures=cohorts, fraction=fractions, seed=st.integers(0, 100))
def test_the_split_does_not_depend_on_the_order_of_the_cases(figures, fraction, seed):
    turned = dict(reversed(figures.items()))
    assert assign_splits(turned, fraction, seed) == assign_splits(figures, fraction, seed)


def test_another_seed_gives_another_split():
    figures = {f"case {i}": 1 for i in range(20)}
    assert len({tuple(assign_splits(figures, 0.2, seed).items()) for seed in range(10)}) > 5


def test_a_clean_split_passes():
    check_leakage([("train", "a", "1"), ("train", "a", "2"), ("train", "b", "1"), ("val", "c", "3"), ("val", "d", "3")])


def test_a_case_on_both_sides_is_refused_by_name():
    with pytest.raises(LeakageError, match=r"cases on both sides of the split: b, c\."):
        check_leakage(
            [("train", "a", "1"), ("train", "b", "2"), ("val", "b", "3"), ("train", "c", "4"), ("val", "c", "5")]
        )


def test_one_image_under_two_case_names_on_both_sides_is_refused():
    with pytest.raises(LeakageError, match="cases a and b hold the same image"):
        check_leakage([("train", "a", "1"), ("val", "b", "1")])
