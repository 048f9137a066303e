"""The rule of AMIDA13 and TUPAC16: a circle round every mark, and what lies in circles is right."""

import numpy as np
from numpy.typing import NDArray

from mitosis.matching.neighbours import is_near
from mitosis.matching.protocol import Protocol
from mitosis.matching.result import MatchResult

__all__ = ["AMIDA_TUPAC", "in_circles"]

FloatArray = NDArray[np.float64]


def in_circles(truth_um: FloatArray, found_um: FloatArray, scores: FloatArray, radius_um: float) -> MatchResult:  # noqa: ARG001 - every rule of a protocol is asked the same way
    """Count marks with a detection in their circle as found, and detections outside of all circles as false.

    Parameters
    ----------
    truth_um, found_um : float64 [N, 2] and [M, 2]
        µm. Scores play no part.

    References
    ----------
    ``prepare_f1_inputs`` in deephistopath/evaluation.py of https://github.com/CODAIT/deep-histopath, which cites the
    evaluation page of AMIDA13 (http://amida13.isi.uu.nl/?q=node/4).
    """
    tp = int(is_near(truth_um, found_um, radius_um).sum())
    fp = len(found_um) - int(is_near(found_um, truth_um, radius_um).sum())
    return MatchResult(tp, fp, len(truth_um) - tp)


AMIDA_TUPAC = Protocol(
    name="amida-tupac",
    radius_um=7.5,  # 30 px at 0.25 µm/px
    rule=in_circles,
    source="deephistopath/evaluation.py: prepare_f1_inputs (github.com/CODAIT/deep-histopath), after AMIDA13",
    quirks=(
        "Not one to one: any number of detections in a mark's circle are one true positive and none of them is false, "
        "and one detection may find two marks, so more marks can be found than there are detections. Scores must be "
        "above the threshold. Some code averages F1 over files; here slides are pooled."
    ),
    strict=True,
)
