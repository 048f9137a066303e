"""The rule of the MITOS contest of ICPR 2012, whose page gives two radii."""

from mitosis.matching.optimal import one_to_one
from mitosis.matching.protocol import Protocol

__all__ = ["MITOS12_5UM", "MITOS12_8UM"]

SOURCE = "MITOS contest of ICPR 2012, http://ludo17.free.fr/mitos_2012/metrics.html"
QUIRKS = (
    "The page says 8 µm in its first sentence and 5 µm in its definitions, so both are here; say which one is meant. "
    "It does not say what two detections on one mark are: a mark can be found once, so they are matched one to one "
    "and the second is a false positive. The contest took the centroids of segmented regions, not marks."
)

MITOS12_5UM = Protocol("mitos12-5um", 5.0, one_to_one, SOURCE, QUIRKS)
MITOS12_8UM = Protocol("mitos12-8um", 8.0, one_to_one, SOURCE, QUIRKS)
