"""Detections against marks: which found point is which true point, under a named protocol.

A protocol is a file here with a rule ``(truth_um, found_um, scores, radius_um) -> MatchResult`` and a `Protocol`, and a
line in `PROTOCOLS`. `match` and `gains` are the rule of `DEFAULT_PROTOCOL` with the pairs, and for every threshold at
once. Published numbers can only be compared under the same protocol, on the same marks.
"""

from mitosis.matching.ccmct import CCMCT
from mitosis.matching.circles import AMIDA_TUPAC
from mitosis.matching.midog import MIDOG
from mitosis.matching.mitos12 import MITOS12_5UM, MITOS12_8UM
from mitosis.matching.optimal import MATCH_RADIUS_UM, OPTIMAL, gains, match
from mitosis.matching.protocol import Protocol
from mitosis.matching.result import Matching, MatchResult

__all__ = [
    "DEFAULT_PROTOCOL",
    "MATCH_RADIUS_UM",
    "PROTOCOLS",
    "MatchResult",
    "Matching",
    "Protocol",
    "gains",
    "match",
]

PROTOCOLS: dict[str, Protocol] = {
    "optimal": OPTIMAL,
    "midog": MIDOG,
    "amida-tupac": AMIDA_TUPAC,
    "ccmct": CCMCT,
    "mitos12-5um": MITOS12_5UM,
    "mitos12-8um": MITOS12_8UM,
}
"""Every protocol by its name."""

DEFAULT_PROTOCOL = "optimal"
