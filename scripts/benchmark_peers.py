"""The same work done by this toolkit and by others, each in a process of its own that says what it took.

`run_apart` starts this file with the interpreter of whoever is to work, so the toolkit needs nobody else's package and
theirs not this one's. Each of `WORKERS` imports what it needs, and is timed from then on.

TIAToolbox: Pocock et al., Commun Med 2022;2:120. It needs Pydantic, PyYAML and Safetensors beside it, for our network.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark_figure import peak_mb

__all__ = ["WORKERS", "Apart", "run_apart"]

Job = Mapping[str, Any]


@dataclass(frozen=True)
class Apart:
    """What a piece of work took in a process of its own, without the imports.

    Attributes
    ----------
    wall_s, cpu_s : float
        CPU seconds are those of all threads, and of processes that it started and saw end.
    peak_mb : float
        Most memory at once, MB of 10⁶ bytes, imports included.
    n : int
        What came out: patches, or figures.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    n: int


def run_apart(worker: str, job: Job, python: Path | str = sys.executable) -> Apart:
    """Let one of `WORKERS` do a job, a value of JSON, in a fresh process.

    Raises
    ------
    SystemExit
        It failed, with the last words that it said.
    """
    words = [str(python), __file__, worker, json.dumps(job)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise SystemExit(f"{python}: {worker} failed ({' '.join(last)}). Does this interpreter have what it needs?")
    return Apart(**json.loads(done.stdout.splitlines()[-1]))


def _mitosis_patches(job: Job) -> Callable[[], int]:
    from mitosis.cohort import find_sources
    from mitosis.config import ExtractConfig
    from mitosis.extraction import extract_patches

    def work() -> int:
        config = ExtractConfig.model_validate(job["config"])
        records = list(extract_patches(find_sources([Path(job["slide"])]), Path(job["out"]), config, job["workers"]))
        if records[0].error:
            raise SystemExit(records[0].error)
        return len(records[0].patches)

    return work


def _openslide_pillow(job: Job) -> Callable[[], int]:
    import openslide

    def work() -> int:
        size = (job["size"], job["size"])
        with openslide.OpenSlide(job["slide"]) as slide:
            for x, y in job["corners"]:
                slide.read_region((x, y), 0, size).convert("RGB").save(_patch_name(job, x, y))
        return len(job["corners"])

    return work


def _openslide_opencv(job: Job) -> Callable[[], int]:
    import cv2
    import numpy as np
    import openslide

    def work() -> int:
        size = (job["size"], job["size"])
        with openslide.OpenSlide(job["slide"]) as slide:
            for x, y in job["corners"]:
                pixels = cv2.cvtColor(np.asarray(slide.read_region((x, y), 0, size)), cv2.COLOR_RGBA2BGR)
                cv2.imwrite(_patch_name(job, x, y), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return len(job["corners"])

    return work


def _pyvips(job: Job) -> Callable[[], int]:
    import pyvips

    def work() -> int:
        image, size = pyvips.Image.tiffload(job["slide"]), job["size"]
        for x, y in job["corners"]:
            image.crop(x, y, size, size).pngsave(_patch_name(job, x, y), compression=1)
        return len(job["corners"])

    return work


def _pyvips_opencv(job: Job) -> Callable[[], int]:
    import cv2
    import numpy as np
    import pyvips

    def work() -> int:
        size = job["size"]
        region = pyvips.Region.new(pyvips.Image.tiffload(job["slide"]))
        for x, y in job["corners"]:
            pixels = np.frombuffer(region.fetch(x, y, size, size), np.uint8).reshape(size, size, -1)
            cv2.imwrite(
                _patch_name(job, x, y), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
            )
        return len(job["corners"])

    return work


def _tiatoolbox_patches(job: Job) -> Callable[[], int]:
    """Its sliding window over the cells of the grid that hold the patches."""
    import numpy as np
    from tiatoolbox.tools.patchextraction import SlidingWindowPatchExtractor
    from tiatoolbox.utils.misc import imwrite

    fine = 8  # px of the mask a patch, so that its edges do not matter

    def work() -> int:
        size, (width, height) = job["size"], job["dimensions"]
        cells = np.zeros((-(-height // size), -(-width // size)), np.uint8)
        for x, y in job["corners"]:
            cells[y // size, x // size] = 1
        mask = cells.repeat(fine, axis=0).repeat(fine, axis=1)[: -(-height * fine // size), : -(-width * fine // size)]
        settings = {"resolution": 0, "units": "level", "pad_constant_values": 255, "min_mask_ratio": 0.5}
        extractor = SlidingWindowPatchExtractor(Path(job["slide"]), size, mask, **settings)
        for number, pixels in enumerate(extractor):
            x, y = extractor.coordinate_list[number, :2]
            imwrite(_patch_name(job, x, y), pixels)
        return len(extractor)

    return work


def _patch_name(job: Job, x: int, y: int) -> str:
    return os.path.join(job["out"], f"{x}_{y}.png")  # noqa: PTH118 (a string is what most writers take)


def _mitosis_count(job: Job) -> Callable[[], int]:
    import numpy as np

    from mitosis.config import CountConfig
    from mitosis.inference import count_slide
    from mitosis.slides import open_slide
    from mitosis.tile_search import Model

    config = CountConfig.model_validate(job["config"])
    model = Model.load(Path(job["model"]), config)
    model.engine(np.full((config.batch_size, config.tile_size, config.tile_size, 3), 255, np.uint8))

    def work() -> int:
        with open_slide(job["slide"]) as slide:
            return count_slide(slide, "slide", model, config).report.mitotic_count

    return work


def _tiatoolbox_count(job: Job) -> Callable[[], int]:
    """Its engine gives a map of what is above the threshold, of which the connected parts are counted.

    It is spared what the toolkit does besides: bringing the slide to usual stain levels, scores, merging, hotspots.
    """
    import numpy as np
    import torch
    import zarr
    from safetensors.torch import load_file
    from scipy.ndimage import label
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
    from tiatoolbox.models.models_abc import ModelABC

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from mitosis.config import NetworkConfig
    from mitosis.unet import UNet

    margin = job["margin"]
    inner = slice(margin, -margin)

    class Wrapped(ModelABC):  # type: ignore[misc]  # untyped library
        """Our network as it wants them."""

        def __init__(self) -> None:
            super().__init__()
            self.network = UNet.from_config(NetworkConfig.model_validate(job["network"]))
            self.network.load_state_dict(load_file(job["weights"]))
            self.eval()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.network(images), dim=1)[..., inner, inner]

        @staticmethod
        def infer_batch(model: Any, batch_data: Any, *, device: str) -> Any:  # noqa: ARG004 (signature of ModelABC)
            with torch.inference_mode():
                darkness = 1 - batch_data.permute(0, 3, 1, 2).to(torch.float32) / 255
                return model(darkness.contiguous()).permute(0, 2, 3, 1).numpy()

        @staticmethod
        def postproc(image: Any) -> Any:
            return (image[..., 1] >= job["threshold"]).astype(np.uint8)

    segmentor = SemanticSegmentor(Wrapped(), batch_size=job["batch_size"], verbose=False)
    size, core = job["tile_size"], job["tile_size"] - 2 * margin
    resolution = [{"units": "mpp", "resolution": job["mpp"]}]
    shapes = {"patch_input_shape": [size] * 2, "patch_output_shape": [core] * 2, "stride_shape": [core] * 2}
    ioconfig = IOSegmentorConfig(input_resolutions=resolution, output_resolutions=resolution, **shapes)

    def work() -> int:
        place = {"save_dir": Path(job["out"]), "output_type": "zarr", "wsireader_kwargs": {"mpp": job["slide_mpp"]}}
        masks = [Path(job["mask"])]
        done = segmentor.run([Path(job["slide"])], masks=masks, patch_mode=False, ioconfig=ioconfig, **place)
        (written,) = done.values()
        return int(label(np.asarray(zarr.open(written, mode="r")["predictions"]))[1])

    return work


WORKERS: dict[str, Callable[[Job], Callable[[], int]]] = {
    "mitosis_count": _mitosis_count,
    "mitosis_patches": _mitosis_patches,
    "openslide_opencv": _openslide_opencv,
    "openslide_pillow": _openslide_pillow,
    "pyvips": _pyvips,
    "pyvips_opencv": _pyvips_opencv,
    "tiatoolbox_count": _tiatoolbox_count,
    "tiatoolbox_patches": _tiatoolbox_patches,
}
"""Who can be asked: a job, a value of JSON → the work that it asks for, which gives how much came out."""


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _main(worker: str, job: str) -> None:
    work = WORKERS[worker](json.loads(job))
    wall, cpu = time.perf_counter(), _cpu_s()
    n = work()
    print(json.dumps(asdict(Apart(time.perf_counter() - wall, _cpu_s() - cpu, peak_mb(), n))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
