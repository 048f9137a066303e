"""Training and validation cases: every case on one side only."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from mitosis.errors import LeakageError

__all__ = ["TRAIN", "VAL", "assign_splits", "check_leakage"]

TRAIN, VAL = "train", "val"


def assign_splits(figures: Mapping[str, int], val_fraction: float, seed: int) -> dict[str, str]:
    """Put each case into `train` or `val`.

    Parameters
    ----------
    figures : mapping of case to its number of mitotic figures
    val_fraction : float
        Fraction of the cases for `val`, rounded, at least one if there are two cases or more; 0 means none.

    Returns
    -------
    dict of case to split. The validation cases are drawn from those with figures, as long as one with figures stays
    in training: without figures neither side is of use.
    """
    cases = sorted(figures)
    if not val_fraction or len(cases) < 2:
        return dict.fromkeys(cases, TRAIN)
    n_val = min(max(1, round(val_fraction * len(cases))), len(cases) - 1)
    order = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
    with_figures = [case for case in order if figures[case]]
    without = [case for case in order if not figures[case]]
    kept_for_training = with_figures[-1:]
    chosen = [*with_figures[:-1], *without, *kept_for_training][:n_val]
    return {case: VAL if case in chosen else TRAIN for case in cases}


def check_leakage(rows: Iterable[tuple[str, str, str]]) -> None:
    """Refuse a split that puts one case, or one image under two names, on both sides.

    Parameters
    ----------
    rows : iterable of (split, case, sha256 of the slide file)

    Raises
    ------
    LeakageError
        It names the cases.
    """
    splits_of_case: dict[str, set[str]] = defaultdict(set)
    cases_of_file: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for split, case, digest in rows:
        splits_of_case[case].add(split)
        cases_of_file[digest].add((split, case))
    torn = sorted(case for case, splits in splits_of_case.items() if len(splits) > 1)
    if torn:
        raise LeakageError(f"cases on both sides of the split: {', '.join(torn)}. Give each case to one side.")
    for owners in cases_of_file.values():
        if len({split for split, _ in owners}) > 1:
            names = " and ".join(sorted(case for _, case in owners))
            raise LeakageError(
                f"cases {names} hold the same image on both sides of the split. Give them one case name."
            )
