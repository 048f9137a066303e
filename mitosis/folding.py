"""A network as it is run: the same answers, but for rounding, for less work than while it learned."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mitosis.unet import UNet

__all__ = ["fold", "fold_batch_norm"]

Network = TypeVar("Network", bound=nn.Module)


def fold(network: Network) -> Network:
    """A copy of `network` for prediction, on the weights as they are now.

    Batch normalisation becomes part of the convolution before it. Of a U-Net what comes from below is no longer
    enlarged and then looked at by a convolution of 3x3: both are one transposed convolution of 4x4, which multiplies 4
    times for each of the 9 of before. Its head, if there are two classes, gives the difference of their logits alone.
    """
    folded = fold_batch_norm(network)
    if isinstance(folded, UNet):
        folded.up = nn.ModuleList(_Joined.of(block) if _can_be_split(block) else block for block in folded.up)
        if folded.classes == 2:
            folded.head, folded.classes = _difference(folded.head, folded.stem**2), 1
    return folded


def fold_batch_norm(network: Network) -> Network:
    """A copy of `network` for prediction, with each batch normalisation folded into the convolution before it.

    Only inside ``nn.Sequential``, where the order of the layers is the order they run in, and where a norm is named
    after its convolution (``first`` and ``first_norm``); others stay as they are.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for block in list(folded.modules()):
        names = list(block._modules)  # named_children leaves out what comes twice
        after = names[1:] if isinstance(block, nn.Sequential) else [f"{name}_norm" for name in names]
        for name, next_name in zip(names, after, strict=False):
            convolution, norm = getattr(block, name), getattr(block, next_name, None)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, name, nn.utils.fuse_conv_bn_eval(convolution, norm))
                setattr(block, next_name, nn.Identity())
    return folded


def _can_be_split(block: nn.Module) -> bool:
    """Whether its first layer looks at all channels in squares of 3x3."""
    first = next(block.children())
    return isinstance(first, nn.Conv2d) and first.kernel_size == (3, 3) and first.groups == 1


class _Joined(nn.Module):
    """The blocks of a level on the way up, what comes from below taken at its own size.

    Parameters
    ----------
    below, beside : nn.Module
        The first convolution, split by what it looks at.
    then : nn.Module
        All that follows it.
    """

    def __init__(self, below: nn.Module, beside: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.below, self.beside, self.then = below, beside, then

    @classmethod
    def of(cls, block: nn.Module) -> "_Joined":
        """The same as `block`, whose first layer is a convolution of 3x3; two channels of three come from below."""
        first, *then = block.children()
        assert isinstance(first, nn.Conv2d)
        n_below = first.in_channels * 2 // 3
        below = nn.ConvTranspose2d(n_below, first.out_channels, 4, stride=2, padding=1, bias=False)
        beside = nn.Conv2d(first.in_channels - n_below, first.out_channels, 3, padding=1)
        below.weight.data, beside.weight.data = _enlarging(first.weight[:, :n_below]), first.weight[:, n_below:].clone()
        beside.bias = first.bias
        return cls(below, beside, nn.Sequential(*then)).eval().requires_grad_(False)

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:
        joined: Tensor = self.then(self.below(below) + self.beside(beside))
        return joined


def _enlarging(weight: Tensor) -> Tensor:
    """Weights [in, out, 4, 4] of a transposed convolution that does what `weight`, [out, in, 3, 3], does on an image
    enlarged twice (nearest neighbour): a place's four copies each give what the 3x3 round them is multiplied by."""
    turned = weight.transpose(0, 1).flip(2, 3)
    return torch.stack([functional.pad(turned, (x, 1 - x, y, 1 - y)) for y in (0, 1) for x in (0, 1)]).sum(dim=0)


def _difference(head: nn.Conv2d, n: int) -> nn.Conv2d:
    """Logits of the second class of two less those of the first, each of `n` channels."""
    one = nn.Conv2d(head.in_channels, n, 1)
    assert head.bias is not None
    one.weight.data, one.bias = head.weight[n:] - head.weight[:n], nn.Parameter(head.bias[n:] - head.bias[:n])
    return one.requires_grad_(False)
