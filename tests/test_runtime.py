"""Runtime: device, precision and versions."""

import platform
from importlib.metadata import version

import pytest
import torch

from mitosis.files import dump_json
from mitosis.runtime import choose_device, choose_dtype, versions

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("present", "expected"), [(True, CUDA), (False, CPU)])
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, present, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert choose_device() == expected


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_precision_that_was_asked_for_is_taken(device):
    assert choose_dtype("float32", device) is torch.float32
    assert choose_dtype("bfloat16", device) is torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_on_a_cpu_bfloat16_is_for_those_that_have_it_in_hardware(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_dtype("auto", CPU) is expected


def test_an_older_torch_that_cannot_say_gets_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_dtype("auto", CPU) is torch.float32


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_on_a_gpu_it_is_for_those_that_support_it(monkeypatch, supported, expected):
    """Older ones emulate it, slowly."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported or including_emulation
    )
    assert choose_dtype("auto", CUDA) is expected


def test_versions_name_what_can_change_a_result():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert {"mitosis-toolkit", "numpy", "scipy", "albumentations"} <= set(found)
    dump_json(found)
