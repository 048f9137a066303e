"""Weights that treat all orientations of a picture alike, while a network learns.

A cell has no upright position. Where each filter of a convolution comes in all quarter turns (the group p4), or in
these and mirrored (p4m), a network need not learn every orientation by itself, and has a quarter or an eighth of the
weights to learn. Channels stand in sets, one of a set for each orientation; what a set shows of a turned picture is
what it shows of the upright one, turned, and moved on in the set.

`tie_orientations` makes a `Classifier` learn so, and `untie_orientations` gives a plain one the same weights: to run it
needs nothing of this. Answers on turned pictures agree nearly, as a convolution of stride 2 begins at the left and at
the top.

References
----------
Cohen & Welling: Group equivariant convolutional networks, ICML 2016, arXiv 1602.07576; for mitotic figures Bekkers et
al.: Roto-translation covariant convolutional networks, MICCAI 2018, arXiv 1804.03393.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from mitosis.sections import ORIENTATIONS
from mitosis.verifier import DROPOUT, Classifier

__all__ = ["tie_orientations", "untie_orientations"]


def tie_orientations(network: Classifier, symmetry: str) -> Classifier:
    """Let the weights of `network` depend on fewer, which it then learns instead; gives the same object.

    Parameters
    ----------
    symmetry : str
        A key of `mitosis.sections.ORIENTATIONS`, of which the network's width is a multiple; ``none`` changes nothing.
    """
    n = ORIENTATIONS[symmetry]
    if n > 1:
        for name, parameter, depends in _dependent(network, n):
            register_parametrization(network.get_submodule(name), parameter, depends)
        # What is dropped is dropped in all orientations, or the others would tell it.
        network.dropout = nn.Sequential(nn.Unflatten(1, (-1, n)), nn.Dropout1d(DROPOUT), nn.Flatten())
    return network


@torch.no_grad()
def untie_orientations(network: Classifier, plain: Classifier, symmetry: str) -> Classifier:
    """Give `plain`, a network of the same shape, the weights that a tied one has now; gives the same object.

    Statistics of batch normalisation become the means over each set, as all of a set show the same in the end.
    """
    values = {}
    for name in plain.state_dict():
        layer, _, parameter = name.rpartition(".")
        value: Tensor = getattr(network.get_submodule(layer), parameter)
        if parameter.startswith("running"):
            sets = value.view(-1, ORIENTATIONS[symmetry])
            value = sets.mean(dim=1, keepdim=True).expand_as(sets).flatten()
        values[name] = value
    plain.load_state_dict(values)
    return plain.eval()


def _dependent(network: Classifier, n: int) -> list[tuple[str, str, nn.Module]]:
    """The name of each layer with weights to tie, that of the weights there, and how they depend on fewer."""
    found: list[tuple[str, str, nn.Module]] = [("last", "weight", _Means(n))]
    for part in ("stem", "blocks"):
        for name, layer in network.get_submodule(part).named_modules(prefix=part):
            if isinstance(layer, nn.Conv2d):
                found.append((name, "weight", _Turned(n, sets_in=part != "stem")))
            elif isinstance(layer, nn.BatchNorm2d):
                found += [(name, parameter, _Repeated(n)) for parameter in ("weight", "bias")]
    return found


class _Turned(nn.Module):
    """Filters [out n, in n, k, k] of such of one orientation, [out, in n, k, k].

    Parameters
    ----------
    n : int
        Number of orientations.
    sets_in : bool
        Whether what comes in stands in sets, too; colours do not.
    """

    def __init__(self, n: int, sets_in: bool) -> None:
        super().__init__()
        self.n, self.sets_in = n, sets_in
        self.moved = _moved(n)

    def forward(self, upright: Tensor) -> Tensor:
        if self.sets_in:
            n_out, _, *side = upright.shape
            sets = upright.view(n_out, -1, self.n, *side)
            each = [_orient(sets[:, :, order], number).flatten(1, 2) for number, order in enumerate(self.moved)]
        else:
            each = [_orient(upright, number) for number in range(self.n)]
        return torch.stack(each, dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last)

    def right_inverse(self, filters: Tensor) -> Tensor:
        return filters[:: self.n].clone()


class _Repeated(nn.Module):
    """One number for each channel of a set."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, each: Tensor) -> Tensor:
        return each.repeat_interleave(self.n, dim=-1)

    def right_inverse(self, repeated: Tensor) -> Tensor:
        return repeated[..., :: self.n].clone()


class _Means(_Repeated):
    """Weights of the means of sets, as weights of all their channels."""

    def forward(self, each: Tensor) -> Tensor:
        return super().forward(each) / self.n

    def right_inverse(self, repeated: Tensor) -> Tensor:
        return super().right_inverse(repeated) * self.n


def _orient(pictures: Tensor, number: int) -> Tensor:
    """Pictures [..., k, k] in an orientation: mirrored from the fourth on, then turned by quarters."""
    mirrored = pictures.flip(-1) if number >= 4 else pictures
    return torch.rot90(mirrored, number % 4, (-2, -1))


def _moved(n: int) -> list[list[int]]:
    """Of each orientation: which channel of an upright set stands at which place of a set that is oriented so."""
    seen = torch.arange(9).view(3, 3)

    def before(orientation: int, place: int) -> int:
        """The orientation that becomes that of `place` once it is oriented."""
        wanted = _orient(seen, place)
        return next(k for k in range(n) if torch.equal(_orient(_orient(seen, k), orientation), wanted))

    return [[before(orientation, place) for place in range(n)] for orientation in range(n)]
