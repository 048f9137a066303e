"""Runtime: device, precision and versions."""

import platform
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import pytest
import torch

from mitosis.files import dump_json
from mitosis.runtime import _FREE_STREAMS, choose_device, choose_dtype, on_device, pinned, versions, without_tf32

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [CPU, pytest.param(CUDA, marks=NEEDS_GPU)]


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


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (1, 1), (2, 2), (3, 0), (7, 1)])
def test_processes_share_the_gpus_of_a_machine_in_turn(monkeypatch, number, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_device(number) == torch.device("cuda", expected)


def test_without_a_gpu_every_process_takes_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(3) == CPU
    batch = torch.zeros(3)
    assert pinned(batch) is batch


def half_of(images):
    return images.float() / 2


@pytest.mark.parametrize("device", DEVICES)
def test_arrays_go_through_work_on_a_device_as_tensors(device):
    run = on_device(half_of, device)
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 30), dtype=np.uint8)
    found = run(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images / np.float32(2))
    again = run(images[:2])
    assert again.shape == (2, 40, 30)
    np.testing.assert_array_equal(found, images / np.float32(2))  # not overwritten


@pytest.mark.parametrize("device", DEVICES)
def test_threads_that_call_at_once_each_get_their_own(device):
    run = on_device(
        lambda images: (images.float()[:, None] * torch.ones(300, device=device)[:, None, None]).sum(1), device
    )
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 200, 200), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, images))
    for image, sums in zip(images, found, strict=True):
        np.testing.assert_array_equal(sums, image * np.float32(300))


@pytest.mark.parametrize("device", DEVICES)
def test_work_that_fails_leaves_nothing_behind(device):
    run = on_device(lambda images: half_of(images).view(7), device)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shape"):
            run(np.zeros((2, 3), np.uint8))
    np.testing.assert_array_equal(run(np.full(7, 4, np.uint8)), np.full(7, 2.0))


def test_convolutions_without_tf32_are_the_same_but_for_the_flag_they_are_given(monkeypatch):
    """Of cuDNN there is a stand-in here, which is told all that the real one would be."""
    flags = []

    def convolution(images, weight, padding, stride, dilation, groups, benchmark, deterministic, allow_tf32):
        flags.append((benchmark, deterministic, allow_tf32))
        return torch.conv2d(images, weight, None, stride, padding, dilation, groups)

    monkeypatch.setattr(torch, "cudnn_convolution", convolution)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 6, 3, padding=2, dilation=2),
    )
    images = torch.randn(2, 4, 16, 12)
    with torch.inference_mode():
        expected = network(images)
        assert flags == []
        torch.testing.assert_close(without_tf32(network, images), expected)
        assert flags == [(False, False, False)] * 2
        assert torch.equal(network(images), expected)
    assert len(flags) == 2


@NEEDS_GPU
def test_on_a_gpu_float32_is_exact_where_pytorch_would_round():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(64, 64, 3, padding=1)
    images = torch.randn(2, 64, 32, 32)
    with torch.no_grad():
        expected = layer.double()(images.double()).float()
        there = layer.float().cuda()
        rough, exact = there(images.cuda()).cpu(), without_tf32(there, images.cuda()).cpu()
        again = there(images.cuda()).cpu()
    assert (exact - expected).abs().max() < 5e-5
    assert (rough - expected).abs().max() > 1e-4
    assert torch.equal(again, rough)  # elsewhere all is as it was


@NEEDS_GPU
def test_on_a_gpu_streams_are_used_again():
    run = on_device(half_of, CUDA)
    for _ in range(3):
        run(np.zeros((4, 4), np.uint8))
    free = _FREE_STREAMS[torch.device("cuda", torch.cuda.current_device())]
    assert 1 <= len(free) == len({stream.cuda_stream for stream in free})
    number = len(free)
    on_device(half_of, CUDA)(np.zeros((4, 4), np.uint8))
    assert len(free) == number
