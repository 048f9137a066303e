"""Published rules that turn a mitotic count into a score. None is applied unless it is named.

A rule holds for one kind of tumour, for H&E, and for counts made as its authors did; most are one part of a grade. Only
cut-offs that were checked against a source are here: of the Nottingham cut-offs by field of view that is the field of
0.274 mm² (diameter 0.59 mm). For another field use `nottingham-density`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mitosis.errors import ConfigError

__all__ = ["RULES", "Grade", "Rule", "ScoreClass", "find_rule", "grade", "hpf_area_mm2"]


def hpf_area_mm2(field_number: float, objective: float) -> float:
    """Area of a high-power field, mm², of an eyepiece with `field_number` (mm) and an objective (40 for 40x).

    Field number 22 at 40x gives 0.2376 mm²: ten such fields are the 2.37 mm² of Meuten et al. [1]_.

    References
    ----------
    .. [1] Meuten, Moore, George: Mitotic count and the field of view area: time to standardize. Vet Pathol 2016;53:7-9.

    Raises
    ------
    ConfigError
        A number is not above 0.
    """
    if not (0 < field_number < math.inf and 0 < objective < math.inf):
        raise ConfigError(f"field number {field_number}, objective {objective}: both must be above 0.")
    return math.pi * (field_number / objective / 2) ** 2


SAME_AREA = 0.02
"""Areas that differ by no larger share are taken for the same: the edge of the tissue is not known better."""


@dataclass(frozen=True, slots=True)
class ScoreClass:
    """A score, and the value from which on it is given: `least` itself belongs to it if `inclusive`."""

    score: str
    least: float
    inclusive: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """A published rule.

    Attributes
    ----------
    name : str
    area_mm2 : float
        The area to count in, and that to which a count in another one is scaled.
    counts : str
        What is compared with the cut-offs: the `count` in `area_mm2`, or the `density` per mm².
    classes : tuple of ScoreClass
        By rising cut-off, the first from 0. None where the rule only says what to report.
    citation, applies_to : str
    note : str
        What must be known to use it; may be empty.
    """

    name: str
    area_mm2: float
    counts: Literal["count", "density"]
    classes: tuple[ScoreClass, ...]
    citation: str
    applies_to: str
    note: str = ""

    def scales(self, area_mm2: float) -> bool:
        """Whether a count in that area is scaled to the rule's: if they differ by more than 2 %."""
        return self.counts == "count" and abs(area_mm2 / self.area_mm2 - 1) > SAME_AREA

    def value(self, count: float, area_mm2: float) -> float:
        """What is compared with the cut-offs; NaN where there is no area.

        Rounded to 1e-9: no last bit of an area decides on which side of a cut-off a count lies.
        """
        if not area_mm2 > 0:
            return math.nan
        if self.counts == "count":
            return round(count * self.area_mm2 / area_mm2, 9) if self.scales(area_mm2) else count
        return round(count / area_mm2, 9)

    def score(self, value: float) -> str:
        """The score of a value; empty without classes, or for NaN."""
        reached = [c.score for c in self.classes if value > c.least or (c.inclusive and value == c.least)]
        return reached[-1] if reached else ""


@dataclass(frozen=True, slots=True)
class Grade:
    """What a rule says of a count.

    Attributes
    ----------
    score : str
        Empty where the rule has no classes, or nothing was counted on.
    value : float or None
        The count in the rule's area, or the density; None without an area.
    scaled : bool
        The rule compares counts, and this one was made in an area that differs from the rule's by more than 2 %.
    probabilities : dict
        Score to the probability that the mean of such windows belongs to it. A count near a cut-off is close to a coin
        flip between two scores, and this says so.
    rule : Rule
    """

    score: str
    value: float | None
    scaled: bool
    probabilities: Mapping[str, float]
    rule: Rule

    def __str__(self) -> str:
        """One sentence, without the citation."""
        unit = "per mm²" if self.rule.counts == "density" else f"in {self.rule.area_mm2:g} mm²"
        if self.value is None:
            return f"{self.rule.name}: no area"
        scaled = " (scaled)" if self.scaled else ""
        if not self.score:
            return f"{self.rule.name}: {self.value:.1f} {unit}{scaled}"
        chance = self.probabilities[self.score]
        return f"{self.rule.name}: {self.score} (probability {chance:.2f}; {self.value:.1f} {unit}{scaled})"


def grade(count: int, area_mm2: float, rule: Rule, means: NDArray[np.float64] | None = None, seed: int = 0) -> Grade:
    """Apply a rule to a count.

    Parameters
    ----------
    area_mm2 : float
        Tissue on which it was made.
    means : float64 [M], optional
        Equally likely draws of the mean of such counts (`mitosis.uncertainty.posterior`), from which the probabilities
        come. Without them they say what chance alone makes of the count: gamma with shape count + 1/2, the posterior
        of a Poisson mean under Jeffreys' prior.
    """
    value = rule.value(count, area_mm2)
    if math.isnan(value):
        return Grade("", None, False, {}, rule)
    if means is None:
        means = np.random.default_rng(seed).gamma(count + 0.5, 1.0, 4000)
    scores = [rule.score(v) for v in (means * rule.value(1, area_mm2)).tolist()]
    probabilities = {c.score: scores.count(c.score) / len(scores) for c in rule.classes}
    return Grade(rule.score(value), value, rule.scales(area_mm2), probabilities, rule)


def find_rule(name: str) -> Rule:
    """The rule of that name.

    Raises
    ------
    ConfigError
        There is none; near names are suggested.
    """
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(RULES))}."
        raise ConfigError(f"--rule {name}: there is no such rule. {hint}")
    return RULES[name]


SCORE_1 = ScoreClass("1", 0)

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "canine-mast-cell",
            2.37,
            "count",
            (ScoreClass("low", 0), ScoreClass("high", 7)),
            "Kiupel et al, Vet Pathol 2011;48:147-155; area of ten fields as in Meuten et al, Vet Pathol 2016;53:7-9",
            "canine cutaneous mast cell tumours",
            "7 or more in ten fields is one of four criteria, each of which makes a tumour high-grade.",
        ),
        Rule(
            "gist",
            5.0,
            "count",
            (ScoreClass("low", 0), ScoreClass("high", 5, inclusive=False)),
            "Miettinen, Lasota, Semin Diagn Pathol 2006;23:70-83 (50 fields; 5 mm² in the WHO classification)",
            "gastrointestinal stromal tumours",
            "The mitotic rate; the risk also hangs on size and site.",
        ),
        Rule(
            "melanoma",
            1.0,
            "density",
            (),
            "AJCC Cancer Staging Manual, 8th ed, 2017: mitoses per mm², counted from the hot spot on",
            "primary cutaneous melanoma",
            "Reported as a number; no class follows from it.",
        ),
        Rule(
            "net",
            2.0,
            "count",
            (ScoreClass("G1", 0), ScoreClass("G2", 2), ScoreClass("G3", 20, inclusive=False)),
            "WHO Classification of Tumours: Digestive System Tumours, 5th ed, 2019",
            "well-differentiated gastroenteropancreatic neuroendocrine tumours",
            "Mitoses only; the higher of this and the Ki-67 grade counts. WHO asks for 10 mm² where possible.",
        ),
        Rule(
            "nottingham-density",
            1.0,
            "density",
            (SCORE_1, ScoreClass("2", 3, inclusive=False), ScoreClass("3", 8)),
            "HL7 FHIR Breast Cancer Data guide 2018, MitoticCountScoreCS: 1 up to 3, 2 from 4 to 7, 3 from 8 per mm²",
            "invasive breast carcinoma",
            "The mitotic score only, one of three parts of the grade. A density between 3 and 4 is given 2.",
        ),
        Rule(
            "nottingham-field-0.59",
            2.74,
            "count",
            (SCORE_1, ScoreClass("2", 10), ScoreClass("3", 20)),
            "Elston, Ellis, Histopathology 1991;19:403-410; cut-offs for fields of 0.274 mm² as in HL7 FHIR Breast "
            "Cancer Data guide 2018, MitoticCountScore",
            "invasive breast carcinoma",
            "The mitotic score only, one of three parts of the grade; for ten fields of 0.59 mm diameter. Cut-offs of "
            "other fields are not included.",
        ),
        Rule(
            "veterinary",
            2.37,
            "count",
            (),
            "Meuten, Moore, George, Vet Pathol 2016;53:7-9; Donovan et al, Vet Pathol 2021;58:243-257",
            "tumours of animals, where the literature gives cut-offs for one kind of tumour at a time",
            "Reported as a number; no class follows from it.",
        ),
    )
}
"""By name."""
