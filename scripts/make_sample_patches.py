"""Draw ``sample_patches/`` from its seed, or prove that what lies there is what this draws: ``--check``.

Example: python scripts/make_sample_patches.py --check
"""

import argparse
import csv
import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitosis.annotations import Label
from mitosis.files import atomic_write, make_folder, write_text
from mitosis.synthetic import Drawing, draw_tissue, random_stain

SEED = 7
MPP = 0.25
SIDE = 352
N_CASES = 6
# Of each patch of a case: figures, annotated look-alikes, how much tumour (see draw_tissue).
CONTENTS = ((3, 3, 0.5), (4, 2, None), (3, 3, 0.0), (4, 3, 0.2), (0, 1, -0.5))
PHASES = ("metaphase", "prometaphase", "telophase", "prophase", "metaphase", "anaphase", "ring", "prometaphase")
PALETTE = {0: (0, 0, 0), 1: (220, 40, 40), 2: (60, 110, 230), 255: (150, 150, 150)}
COLUMNS = ("patch", "case", "mpp", "n_mitotic", "n_non_mitotic", "phases", "image", "mask", "sha256")

README = f"""# Sample patches

{N_CASES * len(CONTENTS)} patches of H&E-like tissue of {N_CASES} cases, {SIDE} x {SIDE} px at {MPP} µm/px, with a mask
each. **They are synthetic**: no patient's tissue is in them. `scripts/make_sample_patches.py` draws them with
`mitosis.synthetic` from seed {SEED}; with `--check` it proves that these are the ones. Every case has a stain and a
scanner's blur of its own. They show whether the toolkit works; how well a model does on real tissue they cannot show.

- `images/NAME.png`: RGB; the µm/px is in the file.
- `masks/NAME.png`: 0 (black) background, 1 (red) mitotic figure, 2 (blue) non-mitotic figure, that is a look-alike; 255
  (grey) would be ignored, but there is none.
- `index.csv`: a line a patch with case, µm/px, numbers of figures and look-alikes, the phase of each figure, files, and
  the SHA-256 of the image's RGB bytes.

A figure is one connected area of the mask, a pair in anaphase or telophase too. The masks are palette images: a viewer
shows colours, `numpy.asarray(PIL.Image.open(path))` gives the values. Lymphocytes, pigment and ink are background.

```sh
mitosis extract sample_patches/images --annotations sample_patches/masks --case-pattern '^case\\d+' --out patches
```

Licence: MIT, like the toolkit.
"""


class Sample(NamedTuple):
    """A patch: its name, its case and what was drawn."""

    name: str
    case: str
    drawing: Drawing


def main() -> int:
    """Write the folder, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "sample_patches")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the folder differs")
    arguments = parser.parse_args()
    if not arguments.check:
        write(arguments.out)
        return 0
    difference = find_difference(arguments.out)
    print(difference or f"{arguments.out}: as drawn from seed {SEED}.", file=sys.stderr if difference else sys.stdout)
    return 1 if difference else 0


def draw_samples() -> Iterator[Sample]:
    """Draw every patch, case by case."""
    turn = 0
    for case in range(1, N_CASES + 1):
        stain = random_stain(np.random.default_rng([SEED, case]))
        for number, (n_mitotic, n_lookalike, tumour) in enumerate(CONTENTS, start=1):
            rng = np.random.default_rng([SEED, case, number])
            phases = PHASES[turn % len(PHASES) :] + PHASES
            turn += n_mitotic
            drawing = draw_tissue(
                rng,
                (SIDE, SIDE),
                MPP,
                n_mitotic=n_mitotic,
                n_lookalike=n_lookalike,
                stain=stain,
                phases=phases,
                tumour=tumour,
            )
            yield Sample(f"case{case}_{number:02}", f"case{case}", drawing)


def write(folder: Path) -> None:
    """Draw and write everything."""
    for part in ("images", "masks"):
        make_folder(folder / part)
    rows = []
    for sample in draw_samples():
        image, mask = paths(folder, sample.name)
        with atomic_write(image) as stream:
            dpi = 25400 / MPP
            Image.fromarray(sample.drawing.image).save(stream, "PNG", dpi=(dpi, dpi), optimize=True)
        with atomic_write(mask) as stream:
            palette_image(sample.drawing.mask).save(stream, "PNG", optimize=True)
        rows.append(row(sample, sample.drawing.image))
    write_text(folder / "index.csv", table(rows))
    write_text(folder / "README.md", README)
    print(f"{folder}: {len(rows)} patches written.")


def paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Where an image and its mask lie."""
    return folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"


def palette_image(mask: NDArray[np.uint8]) -> Image.Image:
    """A mask that a person can look at."""
    image = Image.fromarray(mask)
    colours = [part for value in range(256) for part in PALETTE.get(value, (0, 0, 0))]
    image.putpalette(colours)
    return image


def row(sample: Sample, pixels: NDArray[np.uint8]) -> dict[str, str]:
    """Line of the index; the checksum is that of `pixels`."""
    labels = [mark.label for mark in sample.drawing.annotations]
    marks = zip(sample.drawing.kinds, labels, strict=True)
    return {
        "patch": sample.name,
        "case": sample.case,
        "mpp": str(MPP),
        "n_mitotic": str(labels.count(Label.MITOTIC_FIGURE)),
        "n_non_mitotic": str(labels.count(Label.NON_MITOTIC_FIGURE)),
        "phases": " ".join(kind for kind, label in marks if label == Label.MITOTIC_FIGURE),
        "image": f"images/{sample.name}.png",
        "mask": f"masks/{sample.name}.png",
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
    }


def table(rows: list[dict[str, str]]) -> str:
    """CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def find_difference(folder: Path) -> str | None:
    """A sentence about the first file that is not as drawn; None if all are.

    Another processor may round differently: a grey level may be off by one, and a few pixels of a mask.
    """
    rows = []
    for sample in draw_samples():
        image, mask = paths(folder, sample.name)
        pixels, values = load(image), load(mask)
        if pixels is None or not _alike(pixels, sample.drawing.image, 1):
            return _different(image)
        if values is None or not _alike(values, sample.drawing.mask, 0):
            return _different(mask)
        rows.append(row(sample, pixels))
    wanted = {folder / "index.csv": table(rows), folder / "README.md": README}
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            return _different(path)
    known = {path for line in rows for path in paths(folder, line["patch"])} | set(wanted)
    extra = sorted(path for path in folder.rglob("*") if path.is_file() and path not in known)
    return f"{extra[0]}: does not belong here. Delete it." if extra else None


def load(path: Path) -> NDArray[np.uint8] | None:
    """Pixels of an image; None if there is none."""
    try:
        with Image.open(path) as image:
            return np.array(image)
    except OSError:
        return None


def _alike(found: NDArray[np.uint8], drawn: NDArray[np.uint8], tolerance: int) -> bool:
    if found.shape != drawn.shape:
        return False
    wrong = np.abs(found.astype(int) - drawn) > tolerance
    return float(wrong.mean()) <= 1e-4


def _different(path: Path) -> str:
    return f"{path}: not as drawn from seed {SEED}. Run scripts/make_sample_patches.py to draw it again."


if __name__ == "__main__":
    sys.exit(main())
