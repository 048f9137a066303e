"""Find and count mitotic figures in histology images: extract patches, train a network, count on whole slides.

The rooms of the house are its modules; CONTRIBUTING.md has the plan. What most scripts need can be had from here:

>>> from mitosis import open_slide, load_model, count_slide

Names are loaded on first use: importing the package imports neither torch nor anything else that takes time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mitosis.annotations import Annotation, Label, load_annotations
    from mitosis.checkpoints import ModelCard, load_model
    from mitosis.cohort import SlideSource, find_sources
    from mitosis.config import Config, load_config
    from mitosis.counting import CountReport, Hotspot
    from mitosis.detections import Detections
    from mitosis.errors import MitosisError
    from mitosis.evaluation import choose_threshold, evaluate
    from mitosis.extraction import extract_patches
    from mitosis.inference import Model, count_slide
    from mitosis.matching import MatchResult, match
    from mitosis.patches import Patch, PatchIndex
    from mitosis.slides import Slide, open_slide, read_at_mpp
    from mitosis.tissue import TissueMask, find_tissue
    from mitosis.training import train
    from mitosis.unet import UNet

_ROOMS = {
    "Annotation": "annotations",
    "Config": "config",
    "CountReport": "counting",
    "Detections": "detections",
    "Hotspot": "counting",
    "Label": "annotations",
    "MatchResult": "matching",
    "MitosisError": "errors",
    "Model": "inference",
    "ModelCard": "checkpoints",
    "Patch": "patches",
    "PatchIndex": "patches",
    "Slide": "slides",
    "SlideSource": "cohort",
    "TissueMask": "tissue",
    "UNet": "unet",
    "choose_threshold": "evaluation",
    "count_slide": "inference",
    "evaluate": "evaluation",
    "extract_patches": "extraction",
    "find_sources": "cohort",
    "find_tissue": "tissue",
    "load_annotations": "annotations",
    "load_config": "config",
    "load_model": "checkpoints",
    "match": "matching",
    "open_slide": "slides",
    "read_at_mpp": "slides",
    "train": "training",
}

__all__ = [
    "Annotation",
    "Config",
    "CountReport",
    "Detections",
    "Hotspot",
    "Label",
    "MatchResult",
    "MitosisError",
    "Model",
    "ModelCard",
    "Patch",
    "PatchIndex",
    "Slide",
    "SlideSource",
    "TissueMask",
    "UNet",
    "choose_threshold",
    "count_slide",
    "evaluate",
    "extract_patches",
    "find_sources",
    "find_tissue",
    "load_annotations",
    "load_config",
    "load_model",
    "match",
    "open_slide",
    "read_at_mpp",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'mitosis' has no attribute {name!r}")
    return getattr(import_module(f"mitosis.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
