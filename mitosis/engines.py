"""How a network is run: uint8 images in, probabilities of a mitotic figure out.

`ENGINES` has the ways to run it, the fastest first. All fold batch normalisation into the convolutions before it and
agree with the plain float32 network to 1e-4 in every probability (1e-7 as a rule), if they run in float32.

Megapixels per CPU second of a U-Net of width 16 and depth 3 (November 2026, two cores of an AMD EPYC with bfloat16);
four tiles of 512 px on 1 and 2 threads, one tile of 1024 px on 1 thread and on 2 that share it: openvino 1.33, 1.34,
1.33, 1.30 (bfloat16 2.83, 2.74, 2.88, 2.63; int8 4.04, 3.76, 3.93, 2.39, so none is shared any more); onnxruntime 1.20,
1.13, 1.26, 0.97; torch 0.90, 0.85, 0.93, 0.81 (bfloat16 1.67, 1.77, 2.08, 1.56).
"""

import io
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mitosis.errors import ConfigError
from mitosis.folding import fold, fold_batch_norm
from mitosis.openvino_runner import OpenVINORunner
from mitosis.runtime import import_extra, on_device

__all__ = [
    "ENGINES",
    "OPSET",
    "Engine",
    "build_engine",
    "choose_engine",
    "describe_engine",
    "onnx_engine",
    "onnx_model",
    "onnxruntime_engine",
    "openvino_engine",
    "to_input",
    "torch_engine",
    "torch_scorer",
]

OPSET = 17
"""Version of the ONNX operators that exported networks use (ONNX 1.12 of 2022, ONNX Runtime 1.12 and newer)."""

Engine = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 [B, H, W, 3] → float32 [B, H, W], probability that a pixel belongs to a mitotic figure."""

Precision = Literal["float32", "bfloat16", "float16", "int8"]
"""What the network multiplies in; float16 on a GPU only. For int8 it must come from `mitosis.quantization.quantize`."""


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W], ``1 - value / 255``: glass is 0, as is the padding of convolutions."""
    darkness = 1 - images.permute(0, 3, 1, 2).to(torch.float32) / 255
    return darkness.contiguous(memory_format=torch.channels_last)


class _Scorer(nn.Module):
    """From bytes to probabilities as one network: what is exported, and what PyTorch runs."""

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.one_logit = getattr(network, "classes", None) == 1  # that of two classes which were folded into one

    def forward(self, images: Tensor) -> Tensor:
        exact = self.dtype is torch.float32  # then there is nothing to cast, nor is a cast exported
        logits: Tensor = self.network(to_input(images) if exact else to_input(images).to(self.dtype))
        logits = logits if exact else logits.float()
        return logits.sigmoid().squeeze(1) if self.one_logit else logits.softmax(dim=1)[:, 1]


def torch_scorer(network: nn.Module, device: torch.device, precision: Precision = "float32") -> nn.Module:
    """A copy of `network` for prediction: uint8 [B, H, W, 3] on `device` to float32 [B, H, W] there."""
    # On a GPU a transposed convolution would go round `mitosis.runtime.without_tf32`, and need not repeat itself.
    folded = fold(network) if device.type == "cpu" else fold_batch_norm(network)
    scorer = _Scorer(folded, getattr(torch, precision))
    return scorer.to(device=device, dtype=scorer.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch types no memory_format


def torch_engine(network: nn.Module, device: torch.device, precision: Precision = "float32") -> Engine:
    """Run a copy of `network` with PyTorch; later changes of `network` do not reach it.

    In bfloat16 a number has 8 bits, in float16 11, so probabilities differ from float32 by up to some 1e-2, and by less
    from one tile size to another: candidates near the threshold may come or go. On a GPU threads may call it at once.
    """
    return on_device(torch_scorer(network, device, precision), device, exact=precision == "float32")


def onnx_model(network: nn.Module) -> bytes:
    """`network` as an ONNX model that does all an `Engine` does.

    Input ``images``: uint8 [batch, height, width, 3], RGB as read; height and width are multiples of the network's
    stride. Output ``probability``: float32 [batch, height, width]. All three sizes are free.

    Raises
    ------
    ConfigError
        The package `onnx` is not installed.
    """
    import_extra("onnx", "onnx onnxruntime")
    free = {0: "batch", 1: "height", 2: "width"}
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs onnxscript and writes two files
        torch.onnx.export(
            _Scorer(fold(network).cpu()),
            (torch.zeros(1, 128, 128, 3, dtype=torch.uint8),),
            stream,  # type: ignore[arg-type]  # this exporter takes streams too
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["probability"],
            dynamic_axes={"images": free, "probability": free},
        )
    return stream.getvalue()


def onnx_engine(content: bytes) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Run an ONNX model with ONNX Runtime on the processor, on as many threads as PyTorch would use.

    Its input is called ``images``, and it has one output.

    Raises
    ------
    ConfigError
        The package `onnxruntime` is not installed.
    """
    runtime = import_extra("onnxruntime", "onnx onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait for work in a loop would take the cores from those that read tiles.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        probability: NDArray[np.float32] = session.run(None, {"images": images})[0]
        return probability

    return run


def onnxruntime_engine(network: nn.Module, device: torch.device, precision: Precision = "float32") -> Engine:
    """Run `network` with ONNX Runtime, on the processor whatever `device` is.

    Raises
    ------
    ConfigError
        `onnx` or `onnxruntime` is not installed.
    """
    del device, precision
    return onnx_engine(onnx_model(network))


def openvino_engine(network: nn.Module, device: torch.device, precision: Precision = "float32") -> Engine:
    """Run `network` with OpenVINO, on the processor whatever `device` is.

    The images of a batch run side by side, which is 10 to 20 % faster than one after the other; and each gets the same
    bits in any batch.

    Raises
    ------
    ConfigError
        `onnx` or `openvino` is not installed.
    """
    del device
    run = OpenVINORunner(onnx_model(network), precision)

    def run_side_by_side(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        each = run([image[np.newaxis] for image in images])
        return each[0] if len(each) == 1 else np.concatenate(each)

    return run_side_by_side


ENGINES: dict[str, Callable[[nn.Module, torch.device, Precision], Engine]] = {
    "openvino": openvino_engine,
    "onnxruntime": onnxruntime_engine,
    "torch": torch_engine,
}
"""Ways to run a network on a processor, the fastest first."""

_RUNS: dict[str, tuple[Precision, ...]] = {
    "openvino": ("float32", "bfloat16", "int8"),
    "onnxruntime": ("float32",),  # of int8 it would do half in float32, and no faster
    "torch": ("float32", "bfloat16", "float16"),
}
"""What each can multiply in."""
_NEEDS = {"openvino": ("onnx", "openvino"), "onnxruntime": ("onnx", "onnxruntime"), "torch": ()}


def choose_engine(name: str, device: torch.device, precision: Precision = "float32") -> str:
    """The engine that `name` stands for: ``auto`` is the fastest whose packages are installed, and torch on a GPU.

    Raises
    ------
    ConfigError
        There is no engine of that name.
    """
    if name in ENGINES:
        return name
    if name != "auto":
        raise ConfigError(f"count.engine = {name}: unknown. Known: auto, {', '.join(ENGINES)}.")
    if device.type != "cpu":
        return "torch"
    able = [engine for engine in ENGINES if precision in _RUNS[engine]]
    return next((engine for engine in able if all(find_spec(package) for package in _NEEDS[engine])), "torch")


def build_engine(
    network: nn.Module, device: torch.device, name: str = "auto", precision: Precision = "float32"
) -> Engine:
    """Run `network` with the engine of `name` (see `choose_engine`).

    Raises
    ------
    ConfigError
        There is no such engine, its packages are not installed, or it cannot run in `precision`.
    """
    chosen = choose_engine(name, device, precision)
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("count.precision = float16: only torch on a GPU runs in it. Choose bfloat16 or float32.")
    if precision not in _RUNS[chosen]:
        able = " or ".join(engine for engine in ENGINES if precision in _RUNS[engine])
        raise ConfigError(f"count.precision = {precision}: {chosen} does not run in it. Choose the engine {able}.")
    return ENGINES[chosen](network, device, precision)


def describe_engine(name: str, precision: Precision = "float32") -> str:
    """Name, version and precision of an engine, for the report: results hang on all three a little."""
    return f"{name} {version(name)} {precision}"
