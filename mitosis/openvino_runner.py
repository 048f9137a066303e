"""Networks in OpenVINO: one core of a process, and requests that several threads share."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mitosis.runtime import import_extra

__all__ = ["OpenVINORunner", "openvino_core", "streams"]

_CORES: list[Any] = []
_MOST_STREAMS = 4


def openvino_core() -> Any:
    """The one core of this process, which no network outlives; a ConfigError if the package `openvino` is missing."""
    openvino = import_extra("openvino", "onnx openvino")
    if not _CORES:
        core = openvino.Core()
        core.set_property("CPU", {"ENABLE_CPU_PINNING": False})  # else several processes all take the first cores
        _CORES.append(core)
    return _CORES[0]


def streams() -> int:
    """How many arrays a network is best given at once: each on a thread of its own, as far as there are such.

    Two threads at one array wait for each other: of the first stage that takes an eighth more time, of two stages a
    tenth. Each array takes memory, so there are no more than four.
    """
    return min(_MOST_STREAMS, torch.get_num_threads())


class OpenVINORunner:
    """Run an ONNX model of one input and one output with OpenVINO: as many arrays as given, side by side.

    Several threads may ask at once, as many as there are `streams`; others wait. An array gets the same bits whatever
    runs beside it. The threads are those that PyTorch would use when it is asked first.

    Raises
    ------
    ConfigError
        The package `openvino` is not installed.
    """

    def __init__(self, content: bytes, precision: str) -> None:
        self._model, self._precision = openvino_core().read_model(content), precision
        self._compiling = Lock()
        self._ready: tuple[Any, list[Any]] | None = None

    def _compiled(self) -> tuple[Any, list[Any]]:
        """The model made ready to run, and requests that nobody is using."""
        with self._compiling:
            if self._ready is None:
                settings = {
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "NUM_STREAMS": streams(),
                    # Its own choice is bf16.
                    "INFERENCE_PRECISION_HINT": "bf16" if self._precision == "bfloat16" else "f32",
                    "CPU_RUNTIME_CACHE_CAPACITY": 8,  # of 5000 it would keep 1.3 MB for each size of images
                }
                self._ready = openvino_core().compile_model(self._model, "CPU", settings), []
            return self._ready

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """What the model says of each array."""
        compiled, free = self._compiled()
        running = [_take(free) or compiled.create_infer_request() for _ in arrays]
        try:
            for request, array in zip(running, arrays, strict=True):
                request.start_async({0: array}, share_inputs=True)  # which it keeps, and makes contiguous if need be
            for request in running:
                request.wait()
        except RuntimeError:
            self._ready = None  # what failed once fails on everything after it
            raise
        results = [np.array(request.get_output_tensor(0).data) for request in running]
        free.extend(running)
        return results


def _take(free: list[Any]) -> Any:
    try:
        return free.pop()
    except IndexError:
        return None
