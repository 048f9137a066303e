"""Device, precision, versions: what a run stands on."""

import platform
from importlib.metadata import version
from typing import Any, Literal

import torch

__all__ = ["choose_device", "choose_dtype", "versions"]


def choose_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that can change a result."""
    packages = ("mitosis-toolkit", "torch", "numpy", "scipy", "scikit-image", "albumentations", "tifffile")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
