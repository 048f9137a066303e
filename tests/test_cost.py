"""The cost of a network: what a counter of operations finds, without running it."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mitosis.cost import Cost, count_parameters, network_cost
from mitosis.unet import BLOCKS, UNet


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("width", "depth", "classes", "expansion", "stem"),
    [(3, 1, 2, 4, 1), (4, 2, 3, 1, 1), (2, 4, 2, 6, 1), (4, 2, 2, 4, 2), (3, 1, 3, 4, 4)],
)
def test_torch_counts_the_same(width: int, depth: int, classes: int, expansion: int, stem: int, block: str) -> None:
    network = UNet(width, depth, classes, block, expansion, stem).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(2, 3, 48, 32))
    found = network_cost(shapes(network))
    assert found.gflop_per_mpx == pytest.approx(counter.get_total_flops() / (2 * 48 * 32) / 1e3)
    assert found.n_parameters == sum(parameter.numel() for parameter in network.parameters())


def test_of_one_level_by_hand() -> None:
    """Two convolutions of one level, of 3 to 5 and 5 to 5 channels, then to 2 classes."""
    by_hand = {
        "down.0.0.weight": (5, 3, 3, 3),
        "down.0.1.weight": (5,),
        "down.0.1.running_mean": (5,),
        "down.0.1.num_batches_tracked": (),
        "down.0.3.weight": (5, 5, 3, 3),
        "head.weight": (2, 5, 1, 1),
        "head.bias": (2,),
    }
    learned = 135 + 5 + 225 + 10 + 2
    assert network_cost(by_hand) == Cost(learned, 2 * (135 + 225 + 10) / 1000)
    assert count_parameters(by_hand) == learned
    assert count_parameters({}) == 0


def test_a_square_millimetre_has_four_million_pixels_of_half_a_micrometre() -> None:
    assert Cost(1, 10.0).gflop_per_mm2(0.5) == pytest.approx(40.0)
    assert Cost(1, 10.0).gflop_per_mm2(0.25) == pytest.approx(160.0)


def test_it_needs_no_torch() -> None:
    code = "import sys, mitosis.cost; print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"
