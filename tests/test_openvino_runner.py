"""Networks in OpenVINO: asked by several threads, after a failure, and beside other processes."""

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

if any(find_spec(package) is None for package in ("onnx", "openvino")):
    pytest.skip("the engine openvino is not installed here", allow_module_level=True)

from mitosis.engines import onnx_model
from mitosis.openvino_runner import OpenVINORunner, openvino_core


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    return onnx_model(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)))


def images(n, side=64):
    return [np.random.default_rng(number).integers(0, 256, (1, side, side, 3), dtype=np.uint8) for number in range(n)]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_that_ask_at_once_get_what_they_asked_for(content, monkeypatch, n_threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    runner, arrays = OpenVINORunner(content, "float32"), images(24)
    expected = [runner([array])[0] for array in arrays]
    assert not np.array_equal(expected[0], expected[1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda array: runner([array])[0], arrays))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(runner(arrays), expected)  # or all in one call


def test_arrays_are_read_as_they_are_seen_and_may_change_afterwards(content):
    runner, arrays = OpenVINORunner(content, "float32"), images(8)
    turned = [np.rot90(array, axes=(1, 2)) for array in arrays]
    assert not any(array.flags.c_contiguous for array in turned)
    expected = [runner([array.copy()])[0] for array in turned]
    found = runner(turned)
    for array in arrays:
        array[...] = 0
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n_before", [0, 2])
def test_it_goes_on_after_a_failure(content, n_before):
    runner, (array, *before) = OpenVINORunner(content, "float32"), images(1 + n_before)
    (expected,) = runner([array])
    with pytest.raises(RuntimeError, match=r"(?i)shape|dimension|channel"):
        runner([*before, array[..., :2]])
    np.testing.assert_array_equal(runner([array])[0], expected)


@pytest.mark.parametrize(("n_threads", "expected"), [(1, 1), (3, 3), (9, 4)])
def test_threads_are_shared_out_to_streams(content, monkeypatch, n_threads, expected):
    given = []
    compile_model = openvino_core().compile_model

    class Core:
        def read_model(self, model):
            return openvino_core().read_model(model)

        def compile_model(self, model, device, settings):
            given.append(settings)
            return compile_model(model, device, settings)

    monkeypatch.setattr("mitosis.openvino_runner.openvino_core", Core)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    runner = OpenVINORunner(content, "float32")
    runner(images(1))
    runner(images(3))
    assert [(one["NUM_STREAMS"], one["INFERENCE_NUM_THREADS"]) for one in given] == [(expected, n_threads)]


def test_processes_are_free_to_share_the_cores(content):
    core = openvino_core()
    compiled = core.compile_model(core.read_model(content), "CPU")
    assert not compiled.get_property("ENABLE_CPU_PINNING")
