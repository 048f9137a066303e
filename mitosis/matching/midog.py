"""The rule of the MIDOG challenges: marks in the order of their file, each with its nearest detection still free."""

import numpy as np
from numpy.typing import NDArray

from mitosis.matching.neighbours import edges_within
from mitosis.matching.protocol import Protocol
from mitosis.matching.result import MatchResult

__all__ = ["MIDOG", "in_file_order"]

FloatArray = NDArray[np.float64]


def in_file_order(truth_um: FloatArray, found_um: FloatArray, scores: FloatArray, radius_um: float) -> MatchResult:  # noqa: ARG001 - every rule of a protocol is asked the same way
    """Let each mark in turn take the nearest detection within the radius that no mark before it took.

    Of detections equally far away the one with the lowest index is taken; the evaluator leaves that open. Scores play
    no part.

    Parameters
    ----------
    truth_um, found_um : float64 [N, 2] and [M, 2]
        µm; the result depends on the order of `truth_um`.

    References
    ----------
    ``score_detection`` in evalutils/scorers.py of https://github.com/comic/evalutils, which the evaluation containers
    of MIDOG 2021, 2022 and 2025 call with 7.5 µm.
    """
    edges, distances = edges_within(truth_um, found_um, radius_um)
    served, used = set[int](), set[int]()
    for i, j in edges[np.lexsort((edges[:, 1], distances, edges[:, 0]))].tolist():
        if i not in served and j not in used:
            served.add(i)
            used.add(j)
    n_pairs = len(served)
    return MatchResult(n_pairs, len(found_um) - n_pairs, len(truth_um) - n_pairs)


MIDOG = Protocol(
    name="midog",
    radius_um=7.5,
    rule=in_file_order,
    source="evalutils/scorers.py: score_detection (github.com/comic/evalutils), as in MIDOG 2021, 2022 and 2025",
    quirks=(
        "Greedy: marks choose in the order of their file, so another order of the same marks may give other numbers, "
        "and a pair may be lost that the optimal rule would find. A second detection on a mark is a false positive. "
        "In 2021 and 2022 a case without a file of predictions was left out instead of counted as missed."
    ),
)
