"""The folds of the recipe: what is predicted was never learned from, and every field is predicted once."""

import pytest
from release_folds import CASES, FOLDS, WITHIN, Use, part_of, use_of

TWICE = ("03", "04")
APERIO = [(f"A{case:02}_{field:02}", f"{case:02}", "aperio") for case in range(5) for field in range(10)]
HAMAMATSU = [
    (f"H{case}_{field:02}Aa", case, "hamamatsu")
    for case in (*TWICE, "05", "10", "11", "12", "18")
    for field in range(4)
]
ALL = [*APERIO, *HAMAMATSU]


def used(fold: str, use: Use) -> list[tuple[str, str, str]]:
    return [one for one in ALL if use_of(fold, *one) is use]


def test_each_field_is_predicted_by_one_fold_of_cases() -> None:
    predicted = [one for fold in CASES for one in used(fold, Use.PREDICT)]
    assert sorted(predicted) == sorted(ALL)


@pytest.mark.parametrize("fold", CASES)
def test_a_case_is_on_one_side_whatever_scanned_it(fold: str) -> None:
    learned, predicted = ({case for _, case, _ in used(fold, use)} for use in (Use.LEARN, Use.PREDICT))
    assert not learned & predicted
    assert len(learned | predicted) == 10


def test_each_aperio_field_is_predicted_by_one_fold_within_cases() -> None:
    within = [fold for fold in FOLDS if fold.startswith("within-")]
    predicted = [one for fold in within for one in used(fold, Use.PREDICT)]
    assert sorted(predicted) == sorted(APERIO)
    for fold in within:
        learned = used(fold, Use.LEARN)
        assert {case for _, case, domain in learned if domain == "aperio"} == {f"{case:02}" for case in range(5)}
        assert not {case for _, case, domain in learned if domain == "hamamatsu"} & set(TWICE)


@pytest.mark.parametrize(("scanner", "other"), [("aperio", "hamamatsu"), ("hamamatsu", "aperio")])
def test_from_one_scanner_the_other_is_predicted_without_slides_that_both_scanned(scanner: str, other: str) -> None:
    learned, predicted = (used(f"from-{scanner}", use) for use in (Use.LEARN, Use.PREDICT))
    assert {domain for *_, domain in learned} == {scanner}
    assert {domain for *_, domain in predicted} == {other}
    assert not {case for _, case, _ in learned} & {case for _, case, _ in predicted}
    assert not {case for _, case, _ in predicted} & set(TWICE)


def test_the_model_that_ships_learns_from_all() -> None:
    assert used("all", Use.LEARN) == ALL


def test_a_field_is_scored_with_its_case_or_with_the_fields_that_were_left_out_with_it() -> None:
    assert part_of("A03_07", "03", "aperio") == part_of("H03_00Aa", "03", "hamamatsu") == "03"
    assert part_of("A03_07", "03", "aperio", CASES) == "03"
    assert part_of("A03_07", "03", "aperio", WITHIN) == "within-2"
