"""The second stage in the engine that runs the first: the same scores for half the time that PyTorch takes."""

import io
import warnings
from collections.abc import Callable
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor, nn

from mitosis.crops import CLASSES, FIGURE
from mitosis.engines import OPSET, Precision, onnx_engine, to_input
from mitosis.openvino_runner import OpenVINORunner, streams
from mitosis.quantization import Ranges, quantize
from mitosis.verifier import Verifier

__all__ = ["SECOND_ENGINES", "EngineVerifier", "second_in_engine", "second_onnx"]

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 [B, side, side, 3] → float32 [B, classes], logarithms of probabilities."""


class EngineVerifier(Verifier):
    """A second stage that something else than PyTorch runs, for prediction only.

    It is made ready when it is asked for the first time, which takes about as long as a hundred candidates: a slide
    without any does not pay for it.

    Parameters
    ----------
    network : Verifier
        What it stands for; its weights are shared, and changes after the first call do not show.
    build : callable
        Makes what runs a network.
    in_flight : int
        How many threads may ask at once.
    """

    def __init__(self, network: Verifier, build: Callable[[Verifier], Run], in_flight: int = 1) -> None:
        nn.Module.__init__(self)
        self.members, self.in_flight = network.members, in_flight
        self._build = build
        self._built: Run | None = None
        self._building = Lock()
        several = network.apart() if len(network.members) > 1 else []
        self._apart = [EngineVerifier(member, build, in_flight) for member in several]

    def apart(self) -> list[Verifier]:
        """Each member by itself, in the same engine, where each is made ready once."""
        return [*self._apart] or [self]

    def run(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What `Verifier.run` is to give; several members are pooled as `Verifier` pools them."""
        if self._apart:
            each = [member.run(crops) for member in self._apart]
            together: NDArray[np.float32] = log_softmax(np.mean(each, axis=0), axis=1)
            return together
        with self._building:
            self._built = self._built or self._build(self)
        return self._built(crops)


class _Outputs(nn.Module):
    """What members say together of pixels as read: the logarithms of probabilities, or that of a figure alone."""

    def __init__(self, network: Verifier, figure: bool) -> None:
        super().__init__()
        self.members, self.figure = network.members, figure

    def forward(self, images: Tensor) -> Tensor:
        darkness = to_input(images)
        mean = torch.stack([member(darkness).log_softmax(dim=1) for member in self.members]).mean(dim=0)
        return mean.softmax(dim=1)[:, CLASSES.index(FIGURE)] if self.figure else mean.log_softmax(dim=1)


def _openvino(network: Verifier, precision: Precision) -> Run:
    run = OpenVINORunner(second_onnx(network), precision)
    return lambda images: run([images])[0]


def _onnxruntime(network: Verifier, precision: Precision) -> Run:  # noqa: ARG001 (signature of SECOND_ENGINES)
    return onnx_engine(second_onnx(network))


SECOND_ENGINES: dict[str, Callable[[Verifier, Precision], Run]] = {"openvino": _openvino, "onnxruntime": _onnxruntime}
"""Engines that a second stage runs in. CPU ms a view of a candidate, width 32, one thread of an AMD EPYC (November
2026): openvino 1.2 (bfloat16 0.6), torch 2.0 to 2.3. Scores differ by up to 1e-7 in float32."""


def second_in_engine(
    network: Verifier, engine: str, precision: Precision = "float32", ranges: Ranges | None = None
) -> Verifier:
    """The second stage run by `engine`, one of `mitosis.engines.ENGINES`, if that is another one than PyTorch.

    For int8 it needs the `ranges` of `mitosis.quantization`. A network with a spatial transformer stays with PyTorch,
    in float32: ONNX has no words for it in `OPSET`.
    """
    transforms = any(not isinstance(member.transformer, nn.Identity) for member in network.members)
    if engine not in SECOND_ENGINES or transforms:
        return network
    if precision == "int8":
        network = quantize(network, ranges or {})
    build, in_flight = SECOND_ENGINES[engine], streams() if engine == "openvino" else 1
    return EngineVerifier(network, lambda member: build(member, precision), in_flight)


def second_onnx(network: Verifier, *, figure: bool = False) -> bytes:
    """The second stage as an ONNX model of one input, ``images``, and one output, any number at once.

    It takes uint8 [batch, side, side, 3], RGB as read, and gives ``logits``, float32 [batch, classes], the logarithms
    of the classes' probabilities; with `figure` ``probability``, float32 [batch], that of a mitotic figure.
    """
    output = "probability" if figure else "logits"
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as in `mitosis.engines.onnx_model`
        torch.onnx.export(
            _Outputs(network, figure).eval(),
            (torch.zeros(2, 64, 64, 3, dtype=torch.uint8),),
            stream,  # type: ignore[arg-type]  # this exporter takes streams too
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=[output],
            dynamic_axes={"images": {0: "batch", 1: "height", 2: "width"}, output: {0: "batch"}},
        )
    return stream.getvalue()
