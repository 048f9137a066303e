"""What the models of ``train_release.py`` learn from and what they are measured on, fold by fold.

Three questions are asked of the same recipe. `CASES`: cases that no model of a fold has seen on any scanner, which
thresholds and model card stand on. `within-0` to `within-4`: fields of known cases, as in the ICPR 2012 contest; the
second scan of a slide is not learned from, as its fields would show the same cells. `from-aperio` and `from-hamamatsu`:
cases of the other scanner, after learning from one alone.
"""

from collections.abc import Sequence
from enum import Enum

__all__ = ["CASES", "FIELDS", "FOLDS", "FROM", "WITHIN", "Use", "part_of", "use_of"]

FIELDS = ("aperio", "hamamatsu")
"""Scanners of whole fields; what comes from others are crops."""

CASES = {"a": ("00", "03", "10"), "b": ("01", "05", "11"), "c": ("02", "04", "12", "18")}
"""Cases that are left out together. 03 and 04 were scanned twice, so a case stands for its slides of both scanners."""

SCANNED_TWICE = ("03", "04")
N_PARTS = 5
WITHIN = tuple(f"within-{part}" for part in range(N_PARTS))
FROM = {scanner: f"from-{scanner}" for scanner in FIELDS}
FOLDS = (*CASES, *WITHIN, *FROM.values(), "all")


class Use(Enum):
    """What a fold does with a field."""

    LEARN = "learn"
    PREDICT = "predict"
    NOTHING = "nothing"


def use_of(fold: str, slide_id: str, case_id: str, domain: str) -> Use:
    """What `fold`, one of `FOLDS`, does with a field of one of the scanners in `FIELDS`."""
    if fold in CASES:
        return Use.PREDICT if case_id in CASES[fold] else Use.LEARN
    if fold in WITHIN:
        if domain == "hamamatsu":
            return Use.NOTHING if case_id in SCANNED_TWICE else Use.LEARN
        part = int(slide_id.rpartition("_")[2]) % N_PARTS
        return Use.PREDICT if part == WITHIN.index(fold) else Use.LEARN
    if fold in FROM.values():
        if fold == FROM[domain]:
            return Use.LEARN
        return Use.NOTHING if case_id in SCANNED_TWICE else Use.PREDICT
    return Use.LEARN


def part_of(slide_id: str, case_id: str, domain: str, folds: Sequence[str] = ()) -> str:
    """What a field is scored with: its case, or among folds within cases the one that predicted it.

    Thresholds are chosen on the other parts.
    """
    within = (fold for fold in WITHIN if fold in folds)
    return next((fold for fold in within if use_of(fold, slide_id, case_id, domain) is Use.PREDICT), case_id)
