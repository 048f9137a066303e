"""Networks in OpenVINO: one core of a process, and requests that several threads share."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mitosis.runtime import import_extra

__all__ = ["OpenVINORunner", "openvino_core"]

_CORES: list[Any] = []


def openvino_core() -> Any:
    """The one core of this process, which no network outlives; a ConfigError if the package `openvino` is missing."""
    openvino = import_extra("openvino", "onnx openvino")
    if not _CORES:
        core = openvino.Core()
        core.set_property("CPU", {"ENABLE_CPU_PINNING": False})  # else several processes all take the first cores
        _CORES.append(core)
    return _CORES[0]


class OpenVINORunner:
    """Run an ONNX model of one input and one output with OpenVINO: as many arrays as given, side by side.

    Several threads may ask at once. An array gets the same bits whatever runs beside it.

    Parameters
    ----------
    n_streams : int or None
        How many arrays are worked on at once, each by its share of the threads that PyTorch would use; None: as many as
        there are in the first call.

    Raises
    ------
    ConfigError
        The package `openvino` is not installed.
    """

    def __init__(self, content: bytes, precision: str, n_streams: int | None = None) -> None:
        self._model, self._precision, self._n_streams = openvino_core().read_model(content), precision, n_streams
        self._compiling = Lock()
        self._ready: tuple[Any, list[Any]] | None = None

    def _compiled(self, n_arrays: int) -> tuple[Any, list[Any]]:
        """The model made ready to run, and requests that nobody is using."""
        with self._compiling:
            if self._ready is None:
                threads = torch.get_num_threads()
                settings = {
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": min(threads, self._n_streams or n_arrays),
                    # Its own choice is bf16.
                    "INFERENCE_PRECISION_HINT": "bf16" if self._precision == "bfloat16" else "f32",
                    "CPU_RUNTIME_CACHE_CAPACITY": 40,  # of 5000 it would keep 1.3 MB for each size of images
                }
                self._ready = openvino_core().compile_model(self._model, "CPU", settings), []
            return self._ready

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """What the model says of each array."""
        compiled, free = self._compiled(len(arrays))
        running = [_take(free) or compiled.create_infer_request() for _ in arrays]
        try:
            for request, array in zip(running, arrays, strict=True):
                request.start_async({0: array})
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
