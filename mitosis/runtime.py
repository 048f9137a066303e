"""Device, precision, versions: what a run stands on, and how work is done there."""

import platform
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mitosis.errors import ConfigError

__all__ = ["choose_device", "choose_dtype", "import_extra", "on_device", "pinned", "versions", "without_tf32"]


def choose_device(number: int | None = None) -> torch.device:
    """The GPU of this process if there is one, else the CPU.

    Parameters
    ----------
    number : int or None
        Of this process among those of the machine, which share its GPUs out in turn; None takes the current GPU.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda") if number is None else torch.device("cuda", number % torch.cuda.device_count())


def choose_dtype(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """What the network multiplies in.

    `auto` is bfloat16 where the processor does so in hardware (there it trains up to 3.8 times faster), else float32:
    emulated, bfloat16 takes three times as long as float32.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def pinned(batch: Tensor) -> Tensor:
    """The tensor in pinned memory where there is a GPU, to be sent there while it works; else as it is."""
    return batch.pin_memory() if torch.cuda.is_available() else batch


def on_device(
    work: Callable[[Tensor], Tensor], device: torch.device, *, exact: bool = False
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Let arrays go through `work` on a device, without gradients.

    On a GPU several threads may call it at once. Each call has a stream for itself and waits for nothing else; while it
    waits, the interpreter and the core are free for other threads. Pixels go there, and results come back, through
    pinned memory.

    Parameters
    ----------
    exact : bool
        Let no convolution of float32 round to the 10 bits of TF32 on the way, as PyTorch does on a GPU by default
        (probabilities move by 1e-3); settings of PyTorch stay as they are.
    """
    if device.type != "cuda":

        @torch.inference_mode()
        def run_here(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            result: NDArray[np.float32] = work(torch.from_numpy(images).to(device)).cpu().numpy()
            return result

        return run_here
    # Without a number it would be another GPU in another thread.
    gpu = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
    exact = exact and torch.version.cuda is not None

    @torch.inference_mode()
    def run_there(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        stream = _take_stream(gpu)
        try:
            stream.wait_stream(torch.cuda.current_stream(gpu))  # weights may still be on their way
            with torch.cuda.stream(stream):
                there = torch.from_numpy(images).pin_memory().to(gpu, non_blocking=True)
                result = (without_tf32(work, there) if exact else work(there)).contiguous()
                back = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                back.copy_(result, non_blocking=True)
                # Others wait in a loop that takes a core.
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # untyped library
                done.record(stream)
            done.synchronize()
        finally:
            _FREE_STREAMS[gpu].append(stream)
        array: NDArray[np.float32] = back.numpy()
        return array

    return run_there


_FREE_STREAMS: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
"""Streams that no call is using. PyTorch keeps memory for each that ever was, so they are used again."""


def _take_stream(gpu: torch.device) -> torch.cuda.Stream:
    try:
        return _FREE_STREAMS[gpu].pop()
    except IndexError:
        return torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]  # untyped library


def without_tf32(work: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What `work` makes of images on a GPU, where no convolution of float32 rounds to the 10 bits of TF32."""
    with _Exact():
        return work(images)


class _Exact(TorchFunctionMode):
    """Convolutions of this thread without TF32; the flag of PyTorch is one for all threads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is not functional.conv2d:
            return func(*args, **(kwargs or {}))
        images, weight, bias, stride, padding, dilation, groups = args
        result = torch.cudnn_convolution(images, weight, padding, stride, dilation, groups, False, False, False)
        return result if bias is None else result.add_(bias[:, None, None])


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that can change a result."""
    packages = ("mitosis-toolkit", "torch", "numpy", "scipy", "scikit-image", "albumentations", "tifffile")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def import_extra(package: str, needed: str) -> Any:
    """Import a package of an extra.

    Raises
    ------
    ConfigError
        It is not installed; says to install `needed`.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"The package {package} is not installed. Run: pip install {needed} "
            "(or choose --engine torch, which does not run in int8)."
        ) from error
