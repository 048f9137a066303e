"""What a network costs to run, from the shapes of its weights: no torch is needed, and no weight is read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mitosis.geometry import area_mm2

__all__ = ["Cost", "count_parameters", "network_cost"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a U-Net costs as it learned. As it is run (`mitosis.folding`) it costs less.

    Attributes
    ----------
    n_parameters : int
        Learned numbers; statistics of batch normalisation are not counted.
    gflop_per_mpx : float
        10⁹ floating-point operations a million pixels: 2 for each multiplication with the addition after it, of
        convolutions. Activations, pooling and batch normalisation, which folds into the convolutions, are not counted.
    """

    n_parameters: int
    gflop_per_mpx: float

    def gflop_per_mm2(self, mpp: float) -> float:
        """GFLOP a mm² of pixels of `mpp` µm. What tiles need around them comes on top, and depends on their size."""
        return self.gflop_per_mpx / area_mm2(1e6, mpp)


def count_parameters(shapes: Mapping[str, Sequence[int]]) -> int:
    """Learned numbers among weights of these shapes, by name."""
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(_STATISTICS))


def network_cost(shapes: Mapping[str, Sequence[int]]) -> Cost:
    """The cost of the `mitosis.unet.UNet` whose weights have these names and shapes.

    A weight of a convolution is [channels out, channels in / groups, height, width], and each of its numbers is
    multiplied once for every pixel that comes out. Its name says at which level that is: a level has a quarter of the
    pixels of the one above.

    Parameters
    ----------
    shapes : mapping of str to sequence of int
        As in a ``state_dict``, or in the head of a safetensors file.
    """
    depth = len({name.split(".")[1] for name in shapes if name.startswith("up.")})
    side = shapes["down.0.0.weight"][2]
    stem = side // 2 if side > 3 else 1  # a stem's first convolution is twice as wide as its squares
    per_place = sum(math.prod(shape) / 4 ** _level(name, depth) for name, shape in shapes.items() if len(shape) == 4)
    per_pixel = per_place / stem**2
    return Cost(count_parameters(shapes), 2 * per_pixel * 1e6 / 1e9)


def _level(name: str, depth: int) -> int:
    """How often the picture was halved where this weight is used."""
    part, number, *_ = name.split(".")
    if part == "head":
        return 0
    return int(number) if part == "down" else depth - 1 - int(number)
