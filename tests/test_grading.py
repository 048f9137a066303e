"""Grading rules: each cut-off falls where its source puts it, and nothing is graded without being asked for."""

import math

import numpy as np
import pytest

from mitosis.errors import ConfigError
from mitosis.grading import RULES, find_rule, grade, hpf_area_mm2


def test_field_areas_are_those_in_use():
    """Field numbers 18, 20, 22, 25 and 26.5 at 40x."""
    areas = [hpf_area_mm2(number, 40) for number in (18, 20, 22, 25, 26.5)]
    assert areas == pytest.approx([0.159, 0.196, 0.238, 0.307, 0.345], abs=5e-4)
    assert 10 * hpf_area_mm2(22, 40) == pytest.approx(2.37, abs=0.01)
    with pytest.raises(ConfigError, match="must be above 0"):
        hpf_area_mm2(22, 0)


@pytest.mark.parametrize(
    ("name", "area", "scores"),
    [
        ("nottingham-density", 1.0, {0: "1", 3: "1", 4: "2", 7: "2", 8: "3", 100: "3"}),
        ("nottingham-density", 2.0, {6: "1", 7: "2", 15: "2", 16: "3"}),
        ("nottingham-field-0.59", 2.74, {9: "1", 10: "2", 19: "2", 20: "3"}),
        ("canine-mast-cell", 2.37, {6: "low", 7: "high"}),
        ("net", 2.0, {1: "G1", 2: "G2", 20: "G2", 21: "G3"}),
        ("gist", 5.0, {5: "low", 6: "high"}),
        ("melanoma", 1.0, {4: ""}),
        ("veterinary", 2.37, {4: ""}),
    ],
)
def test_cut_offs(name, area, scores):
    assert {count: grade(count, area, find_rule(name)).score for count in scores} == scores


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_a_rule_says_where_it_comes_from(rule):
    assert RULES[rule.name] is rule
    assert any(year in rule.citation for year in map(str, range(1990, 2027)))
    assert rule.applies_to
    assert rule.area_mm2 > 0
    leasts = [c.least for c in rule.classes]
    assert leasts == sorted(set(leasts))
    assert leasts[:1] in ([], [0])


def test_another_area_is_scaled_and_said():
    scaled = grade(7, 1.185, find_rule("canine-mast-cell"))
    assert (scaled.value, scaled.scaled, scaled.score) == (pytest.approx(14), True, "high")
    assert "(scaled)" in str(scaled)
    assert not grade(7, 2.36, find_rule("canine-mast-cell")).scaled


@pytest.mark.parametrize(
    ("name", "count", "area", "score"),
    [
        ("gist", 5, 4.999999999999936, "low"),
        ("net", 2, 2.00000000000038, "G2"),
        ("net", 20, 1.9999999999996, "G2"),
        ("nottingham-density", 16, 2.00000000000038, "3"),
        ("nottingham-density", 3, 0.9999999999997, "1"),
        ("canine-mast-cell", 7, 2.3700000000004, "high"),
        # scaled, to a cut-off
        ("gist", 3, 2.9999999999997, "low"),
    ],
)
def test_the_last_bit_of_an_area_decides_nothing(name, count, area, score):
    assert grade(count, area, find_rule(name)).score == score


def test_a_count_in_nearly_the_area_of_the_rule_is_taken_as_it_is():
    for count, area, name, score in ((5, 4.95, "gist", "low"), (20, 1.97, "net", "G2"), (2, 2.03, "net", "G2")):
        found = grade(count, area, find_rule(name), np.array([float(count)]))
        assert (found.value, found.scaled, found.score) == (count, False, score)
        assert found.probabilities[score] == 1


def test_a_count_at_a_cut_off_is_nearly_a_coin_flip():
    found = grade(8, 1.0, find_rule("nottingham-density"))
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert 0.4 < found.probabilities["3"] < 0.65
    assert str(found) == f"nottingham-density: 3 (probability {found.probabilities['3']:.2f}; 8.0 per mm²)"
    assert grade(80, 1.0, find_rule("nottingham-density")).probabilities["3"] == 1
    assert grade(0, 2.37, find_rule("nottingham-density")).probabilities["1"] > 0.95


def test_probabilities_follow_the_draws():
    means = np.array([4.0, 10.0, 10.0, 30.0])
    found = grade(5, 2.0, find_rule("net"), means)
    assert found.probabilities == {"G1": 0, "G2": 0.75, "G3": 0.25}


def test_no_area_has_no_score():
    found = grade(3, 0.0, find_rule("net"))
    assert (found.score, found.value, dict(found.probabilities)) == ("", None, {})
    assert str(found) == "net: no area"
    assert math.isnan(find_rule("net").value(3, 0.0))
    assert str(grade(3, 2.37, find_rule("veterinary"))) == "veterinary: 3.0 in 2.37 mm²"


def test_an_unknown_rule_is_refused_with_a_near_name():
    with pytest.raises(ConfigError, match="Did you mean 'nottingham-density'"):
        find_rule("nottingham-densty")
    with pytest.raises(ConfigError, match="Known: canine-mast-cell, gist"):
        find_rule("x")
