"""What several test files share: tiny slides with dark figures on pink tissue, patches of them, small networks."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import settings
from PIL import Image

from mitosis import crops
from mitosis.cohort import find_sources
from mitosis.config import Config, ExtractConfig, NetworkConfig, VerifierConfig
from mitosis.detections import Detections
from mitosis.extraction import extract_patches
from mitosis.files import make_folder
from mitosis.geometry import Box
from mitosis.patches import PatchIndex
from mitosis.slides import Slide, paste

# Networks this small are slower on several threads, and ten times so on a busy machine. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test may fail because the machine is busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

MPP = 0.5
GATE_FROM = 0.165
SIDE = 256
EXTRACT = ExtractConfig(mpp=MPP, size=64, jitter=12, val_fraction=0.34)
TINY = Config.model_validate(
    {
        "extract": EXTRACT,
        "network": {"width": 2, "depth": 1},
        "train": {"steps": 4, "batch_size": 4, "crop": 32, "validate_every": 2, "warmup_steps": 1},
    }
)
TISSUE, FIGURE, LOOK_ALIKE = (226, 160, 196), (62, 30, 104), (150, 60, 70)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real annotated H&E; its terms keep it out of the repository."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MITOSIS_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MITOSIS_DATA")
    return folder


class ArraySlide(Slide):
    """An image in memory as a slide; `bad_tiles` are given, not found."""

    def __init__(self, pixels, mpp=MPP, bad_tiles=(), path="memory.png"):
        self.path, self.mpp, self.properties = Path(path), mpp, {}
        self.pixels, self.bad = pixels, tuple(bad_tiles)
        self.dimensions = (pixels.shape[1], pixels.shape[0])
        self.level_dimensions, self.level_downsamples = (self.dimensions,), (1.0,)

    @property
    def bad_tiles(self):
        return self.bad

    def read_region(self, location, level, size):
        region = self.level_box(location, level, size)
        canvas = np.full((size[1], size[0], 3), 255, np.uint8)
        paste(canvas, region, self.pixels, Box(0, 0, *self.dimensions))
        return canvas

    def close(self):
        pass


def draw_field(figures, look_alikes=(), width=SIDE, height=SIDE, glass=0, seed=0, radius=5.0):
    """Noisy tissue with round figures, uint8 [height, width, 3]; the `glass` columns on the left are empty."""
    noise = np.random.default_rng(seed).integers(-10, 11, (height, width, 3))
    image = np.clip(np.array(TISSUE) + noise, 0, 255)
    rows, columns = np.mgrid[:height, :width] + 0.5
    for places, colour in ((figures, FIGURE), (look_alikes, LOOK_ALIKE)):
        for x, y in places:
            image[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = colour
    image[:, :glass] = 246
    return image.astype(np.uint8)


def random_places(n, seed, width=SIDE, height=SIDE, border=8, apart=30):
    """`n` points with space between them."""
    rng = np.random.default_rng(seed)
    places = []
    for _ in range(20_000):
        if len(places) == n:
            return [tuple(place.tolist()) for place in places]
        place = rng.uniform((border, border), (width - border, height - border)).round(1)
        if all(np.hypot(*(place - other)) >= apart for other in places):
            places.append(place)
    raise ValueError(f"{n} points {apart} px apart do not fit into {width} x {height} px")


def save_slide(path, image, mpp=MPP):
    """PNG that knows its µm/px, or does not if `mpp` is None."""
    Image.fromarray(image).save(path, **({"dpi": (25400 / mpp, 25400 / mpp)} if mpp else {}))
    return path


def save_tiff(path, image, mpp=MPP, tile=64):
    """Tiled JPEG TIFF of one level."""
    per_cm = (1e4 / mpp, 1e4 / mpp)
    options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}, "metadata": None}
    tifffile.imwrite(path, image, tile=(tile, tile), resolution=per_cm, resolutionunit="CENTIMETER", **options)
    return path


def damage_tiles(path, *indices):
    """Zero the bytes of tiles of a TIFF, numbered row by row."""
    with tifffile.TiffFile(path) as file:
        spans = [(file.pages[0].dataoffsets[i], file.pages[0].databytecounts[i]) for i in indices]
    content = bytearray(path.read_bytes())
    for start, length in spans:
        content[start : start + length] = bytes(length)
    path.write_bytes(content)


def save_marks(path, figures, look_alikes=()):
    lines = [f"{x},{y},mitotic figure" for x, y in figures] + [f"{x},{y},non-mitotic figure" for x, y in look_alikes]
    path.write_text("\n".join(["x,y,label", *lines, ""]))
    return path


def add_slide(folder, name, seed, n_figures=6, n_look_alikes=3):
    """``NAME.png`` and ``NAME.csv`` in `folder`; gives the places of the figures."""
    places = random_places(n_figures + n_look_alikes, seed)
    figures, look_alikes = places[:n_figures], places[n_figures:]
    save_slide(folder / f"{name}.png", draw_field(figures, look_alikes, seed=seed))
    save_marks(folder / f"{name}.csv", figures, look_alikes)
    return figures


def extract(slides, out, config=EXTRACT, workers=1, **options):
    """Records of an extraction by slide."""
    options = {"annotations": slides, **options}
    records = list(extract_patches(find_sources([slides], **options), out, config, workers))
    return {record.slide_id: record for record in records}


def contents(folder):
    """Bytes of every file below a folder by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def slides_folder(tmp_path_factory):
    """Three marked slides of two cases (A01, A02 of A; B01 of B); read-only by agreement."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(("A01", "A02", "B01"), start=1):
        add_slide(folder, name, seed)
    return folder


@pytest.fixture(scope="session")
def patches_folder(slides_folder, tmp_path_factory):
    """The patches of `slides_folder`, cases A and B; read-only by agreement."""
    out = tmp_path_factory.mktemp("extracted") / "patches"
    extract(slides_folder, out, case_pattern="^[AB]")
    return out


@pytest.fixture
def slides_copy(slides_folder, tmp_path):
    """`slides_folder` to be spoiled."""
    return Path(shutil.copytree(slides_folder, tmp_path / "slides"))


@pytest.fixture
def patches_copy(patches_folder, tmp_path):
    """`patches_folder` to be spoiled."""
    return Path(shutil.copytree(patches_folder, tmp_path / "patches"))


@pytest.fixture
def index(patches_folder):
    return PatchIndex.read(patches_folder)


def busy_network(depth=2, width=4, seed=0, classes=2, block="plain", stem=1):
    """A network with random weights whose output varies a lot and hangs on everything within its margin."""
    import torch

    from mitosis.engines import to_input
    from mitosis.unet import UNet

    torch.manual_seed(seed)
    network = UNet(width, depth, classes, block, stem=stem)
    places = random_places(6, seed, 128, 128)
    field = to_input(torch.from_numpy(draw_field(places[:4], places[4:], 128, 128)[np.newaxis]))
    with torch.no_grad():
        for _ in range(20):  # the running statistics of batch normalisation come near those of the field
            network(field)
        network.eval()
        logits = network(field)
        spread, mean = torch.std_mean(logits[:, 1] - logits[:, 0])
        network.head.weight.mul_(2.0 / spread)
        network.head.bias.mul_(2.0 / spread)
        network.head.bias[: stem**2] += 2.0 * mean / spread + 2.0
    return network


def save_network(network, folder, threshold=0.5):
    """A model folder; gives its card."""
    from mitosis.checkpoints import ModelCard, save_model

    names = ("width", "depth", "classes", "block", "expansion", "stem")
    shape = NetworkConfig(normalise_stain=False, **{name: getattr(network, name) for name in names})
    card = ModelCard(network=shape, classes=("background", "mitotic figure"), mpp=MPP, threshold=threshold)
    folder.mkdir(exist_ok=True)
    return save_model(folder, network.state_dict(), card)


def save_two_stages(folder):
    """A model of both stages with random weights, at the usual stain: each of their parts has a say in the result."""
    import torch

    from mitosis.checkpoints import VerifierCard, save_model, save_verifier
    from mitosis.verifier import Verifier, gate_settings

    network = busy_network()
    card = save_network(network, folder, threshold=0.3)
    torch.manual_seed(1)
    settings = VerifierConfig(width=2, crop=32, mpp=MPP, score_floor=0.02, gate_width=2, gate_from=GATE_FROM)
    second = VerifierCard(settings=settings, classes=("mitotic figure", "other"), threshold=0.3, count_threshold=0.3)
    network_of_second = Verifier.from_config(settings).eval()
    gate = Verifier.from_config(gate_settings(settings, MPP)).eval()
    for layer in gate.modules():
        if isinstance(layer, torch.nn.Conv2d):  # as they come, hardly anything of the picture is left at the end
            torch.nn.init.kaiming_normal_(layer.weight)
    gate.members[0].last.weight.data *= 100
    second = save_verifier(folder, network_of_second, second, gate=gate)
    shape = card.network.model_copy(update={"normalise_stain": True})
    save_model(folder, network.state_dict(), card.model_copy(update={"network": shape, "verifier": second}))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model that finds figures and nothing else; read-only by agreement."""
    folder = tmp_path_factory.mktemp("model") / "run"
    save_network(_darkness_network(), folder)
    return folder


def _darkness_network():
    """A U-Net set by hand: its logit is how dark a pixel's red is, which tells figures from all else."""
    import torch

    from mitosis.unet import UNet

    network = UNet(width=2, depth=1).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for layers, channel in ((network.down[0], 0), (network.up[0], 4)):
            layers[0].weight[0, channel, 1, 1] = 1.0
            layers[3].weight[0, 0, 1, 1] = 1.0
            for norm in (layers[1], layers[4]):
                norm.weight.fill_(1.0)
        network.head.weight[1, 0] = 20.0
        network.head.bias[0] = 12.0
    return network


QUICK_VERIFIER = VerifierConfig(
    width=4, crop=32, mpp=MPP, steps=40, batch_size=16, augment=0.2, shift=2, learning_rate=0.01
)


def verifier_settings(**changes):
    return VerifierConfig.model_validate(QUICK_VERIFIER.model_dump() | changes)


def draw_round_and_square(round_places, square_places, seed=0):
    """Dark spots of one area and colour that differ in shape alone."""
    image = draw_field(round_places, seed=seed, radius=9.0)
    for x, y in square_places:
        image[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8] = FIGURE
    return image


def spots_slide(seed, n=8):
    places = np.array(random_places(2 * n, seed, border=24, apart=40))
    return ArraySlide(draw_round_and_square(places[:n], places[n:], seed)), places


def candidate_set(folder, labels=(crops.FIGURE, crops.OTHER), seeds=(1, 2, 3)):
    """Round spots under the first label and square ones under the second."""
    make_folder(folder / "crops")
    candidates, slides = [], {}
    for seed in seeds:
        slide, places = spots_slide(seed)
        crops.save_crops(
            folder, f"S{seed}", crops.read_crops(slide, places, MPP, crops.crop_side(QUICK_VERIFIER.crop), None)
        )
        slides[f"S{seed}"] = crops.CandidateSlide(f"S{seed}", "train", "", MPP, places[:8].tolist(), len(places), 1.0)
        for row, (x, y) in enumerate(places.tolist()):
            candidates.append(
                crops.Candidate(f"S{seed}", f"S{seed}", "", "", row, x, y, 0.5, labels[row >= 8], True),
            )
    crops.save_table(folder, candidates, slides, {})
    return crops.CandidateSet.read(folder)


@pytest.fixture(scope="session")
def learned(tmp_path_factory):
    """A second stage that has seen three slides of round and square spots; read-only by agreement."""
    from mitosis.verification import train_verifier

    return train_verifier(candidate_set(tmp_path_factory.mktemp("toy")), QUICK_VERIFIER)


def detections(places, score=0.5):
    """Detections of one score."""
    return Detections(places, np.full(len(places), score), np.ones(len(places)))


def by_place(found):
    """Scores by (x, y)."""
    return {tuple(place): score for place, score in zip(found.xy.tolist(), found.score.tolist(), strict=True)}
