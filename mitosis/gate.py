"""The candidate gate: a small classifier drops what is surely no figure before the second stage reads a pixel of it.

Most candidates of a first stage are told from figures by a glance. The gate takes it at the pixels that the first stage
has in memory, at its µm/px, so it costs a small part of what the second stage does, which reads each square anew. What
it lets through keeps its score, but that what was dropped is no part of a crowd (`mitosis.crowding`).

It learns what the second stage says of candidates, not what they are marked as (`mitosis.second_stage.train_gate`): so
it loses fewer of those that the second stage would count, and drops more of the others.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mitosis.crops import corners
from mitosis.detections import SCORE_STEPS
from mitosis.engines import Engine
from mitosis.looks import in_batches

__all__ = ["BATCH", "Gate"]

BATCH = 32
"""Squares that are looked at together."""
_STEP = 8  # the last ones are filled up to a multiple: an engine gets ready for each number of them that it meets


@dataclass(frozen=True)
class Gate:
    """A network that is ready to run.

    Attributes
    ----------
    engine : Engine
        Of `mitosis.looks.crop_engine`, asked by as many threads as look at tiles.
    side : int
        Of the squares, px of the first stage.
    least : float
        Probability of a figure from which on a candidate passes.
    """

    engine: Engine
    side: int
    least: float

    def passes(self, image: NDArray[np.uint8], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which candidates go on to the second stage, [N].

        Parameters
        ----------
        image : uint8 [H, W, 3]
            Pixels that the first stage saw, the square round each candidate among them.
        xy : float64 [N, 2]
            Places, px of the image.
        """
        places = corners(xy, self.side)
        crops = np.zeros((-(-len(places) // _STEP) * _STEP, self.side, self.side, 3), np.uint8)
        for crop, (x, y) in zip(crops, places.tolist(), strict=False):
            crop[...] = image[y : y + self.side, x : x + self.side]
        return self.lets_through(in_batches(self.engine, crops, BATCH)[: len(places)])

    def lets_through(self, probability: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of some probabilities are high enough, in rounded steps, as last bits hang on the engine."""
        passed: NDArray[np.bool_] = np.rint(probability * SCORE_STEPS) >= np.rint(self.least * SCORE_STEPS)
        return passed
