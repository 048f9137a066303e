"""Train the model that ships, and measure it on cases that it has not seen.

Example: python scripts/train_release.py DATA --out release

DATA holds `mitos12` (MITOS 2012, Aperio), `atypia14` (MITOS-ATYPIA-14, Hamamatsu) and `amibr` (AMi-Br, crops round
figures of four scanners). The settings are those of release.yaml beside this file. The cases are dealt into folds; for
each fold, and once for all cases together, a first stage is trained, its false positives are mined, it goes on learning
with them, and a second stage learns from its candidates. What is left out of a fold is then predicted, and all that is
reported, thresholds included, comes from such predictions. The model of all cases is the one that ships.

Every step that is done is kept, so the same command goes on where it was stopped; with ``--folds`` several commands can
share the work.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitosis.annotations import Label
from mitosis.candidates import collect_candidates
from mitosis.cohort import SlideSource, find_sources, read_manifest
from mitosis.config import Config, load_config
from mitosis.detections import Detections
from mitosis.extraction import extract_patches
from mitosis.files import write_json, write_text
from mitosis.inference import Model, count_slide
from mitosis.mining import mine, read_marks
from mitosis.patches import PatchIndex
from mitosis.ranking import SlideScores
from mitosis.second_stage import add_second_stage
from mitosis.slides import open_slide
from mitosis.training import train

RECIPE = Path(__file__).with_name("release.yaml")

FOLDS = {"a": ("00", "03", "10"), "b": ("01", "05", "11"), "c": ("02", "04", "12", "18"), "all": ()}
"""Cases that are left out together. 03 and 04 were scanned twice, so a case stands for its slides of both scanners."""

VALIDATION = ("MIDOG21_014", "MIDOG21_064", "MIDOG21_114", "TUPAC16_16")
"""Training wants to validate on something that nothing is chosen by; crops are the least loss."""

TUNE = (
    "train.steps=1500",
    "train.validate_every=1500",
    "train.learning_rate=0.001",
    "train.warmup_steps=30",
    "count.threshold=0.5",
)
"""How false positives are mined, and how the first stage goes on learning with them as look-alikes."""

MOSAIC_WIDTH, FADE, NEAR = 768, 8, 28
"""Width of a mosaic; over how many px neighbours are blended; how near to an edge of its part a figure may lie, px."""


def main() -> None:
    """Prepare the data, train each fold, predict what it left out."""
    arguments = _arguments()
    config = load_config(RECIPE, tuple(arguments.set))
    data = Data(arguments.data, arguments.out / "data", config)
    for name in arguments.folds:
        Fold(name, data, arguments.out / name, config, load_config(RECIPE, (*TUNE, *arguments.set))).run()


class Data:
    """Slides, marks and patches of the three collections."""

    def __init__(self, source: Path, out: Path, config: Config) -> None:
        self.source, self.out, self.config = source, out, config

    @cached_property
    def slides(self) -> dict[str, list[SlideSource]]:
        """The slides of each collection; the crops of AMi-Br as a mosaic a slide."""
        manifest = self.out / "mosaics" / "manifest.csv"
        if not manifest.exists():
            _write_mosaics(self.source / "amibr", manifest.parent)
        fields = {
            "mitos12": find_sources([self.source / "mitos12"], **_contest(self.source / "mitos12", "aperio", 0.2456)),
            "atypia14": find_sources(
                [self.source / "atypia14"], **_contest(self.source / "atypia14", "hamamatsu", 0.2273)
            ),
        }
        return {**fields, "amibr": read_manifest(manifest)}

    @cached_property
    def patches(self) -> PatchIndex:
        """Patches of all slides."""
        for name, slides in self.slides.items():
            for record in extract_patches(slides, self.out / name, self.config.extract):
                if record.error:
                    raise SystemExit(record.error)
        return PatchIndex.join([PatchIndex.read(self.out / name) for name in self.slides])

    def left_out(self, fold: str) -> set[str]:
        """The cases that the models of a fold do not see: its own, and a share of the slides of crops."""
        crops = [slide.case_id for slide in self.slides["amibr"] if slide.case_id not in VALIDATION]
        return {*FOLDS[fold], *(crops[list(FOLDS).index(fold) :: len(FOLDS) - 1] if FOLDS[fold] else ())}


def _contest(folder: Path, domain: str, mpp: float) -> dict[str, Any]:
    """A03_01 is a field of case 03, and so is H03_01."""
    return {"case_pattern": r"^[AH](\d\d)", "domain": domain, "mpp": mpp, "annotations": folder}


class Fold:
    """One set of cases left out: the models that did not see them, and what these say of them."""

    def __init__(self, name: str, data: Data, out: Path, config: Config, tune: Config) -> None:
        self.name, self.data, self.out, self.config, self.tune = name, data, out, config, tune
        self.cases = data.left_out(name)

    def run(self) -> None:
        """All stages, each only if it is not there yet."""
        slides = [slide for some in self.data.slides.values() for slide in some]
        seen = [slide for slide in slides if slide.case_id not in self.cases]
        fields = [slide for slide in seen if slide.domain in ("aperio", "hamamatsu")]
        patches = self.data.patches.where(lambda patch: patch.case_id not in self.cases)
        base = self._train("base", patches, self.config)
        mined = self.out / "mined"
        mine(fields, self._model(base), mined, self.tune)
        more = PatchIndex.join([patches, PatchIndex.read(mined)])
        tuned = self._train("tuned", more, self.tune, start=base)
        both = self.out / "both"
        if not (both / "model.json").exists():
            candidates = collect_candidates(seen, self._model(tuned), self.out / "candidates", self.config)
            add_second_stage(tuned, candidates, both, self.config, on_step=self._report)
        for model in (base, tuned, both):
            self._predict(model, [slide for slide in slides if slide.case_id in {*self.cases, *VALIDATION}])

    def _train(self, name: str, patches: PatchIndex, config: Config, start: Path | None = None) -> Path:
        out = self.out / name
        if not (out / "done").exists():
            index = patches.with_val_cases(list(VALIDATION))
            resume = (out / "settings.yaml").exists()
            train(index, out, config, resume=resume, start=start, on_step=lambda s, loss: self._report(name, s, loss))
            write_text(out / "done", "")
        return out

    def _model(self, folder: Path) -> Model:
        return Model.load(folder, self.config.count)

    def _report(self, name: str, step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"{self.name} {name}: step {step}, loss {loss:.3f}", flush=True)

    def _predict(self, model: Path, slides: Sequence[SlideSource]) -> None:
        """Candidates of slides that the models have not seen, and their marks."""
        path = self.out / f"{model.name}.json"
        if path.exists():
            return
        ready, rows = self._model(model), []
        for source in slides:
            with open_slide(source.path, source.mpp) as slide:
                counted = count_slide(slide, source.slide_id, ready, self.config.count)
                marks, _ = read_marks(source)
                rows.append(
                    {
                        "slide": source.slide_id,
                        "case": source.case_id,
                        "domain": source.domain,
                        "slide_mpp": slide.mpp,
                        "area_mm2": counted.tissue.area_mm2,
                        "figures": _places(marks, Label.MITOTIC_FIGURE),
                        "look_alikes": _places(marks, Label.NON_MITOTIC_FIGURE),
                        "xy": counted.candidates.xy.tolist(),
                        "score": counted.candidates.score.tolist(),
                    }
                )
        write_json(path, rows)


def _places(marks: Sequence[Any], label: Label) -> list[tuple[float, float]]:
    return [(mark.x, mark.y) for mark in marks if mark.label is label]


def read_predictions(path: Path) -> list[SlideScores]:
    """What `Fold` predicted for the slides that it left out."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        SlideScores(
            row["slide"],
            row["slide_mpp"],
            np.array(row["figures"]).reshape(-1, 2),
            Detections(np.array(row["xy"]).reshape(-1, 2), np.array(row["score"]), np.zeros(len(row["score"]))),
            np.array(row["look_alikes"]).reshape(-1, 2),
            row["case"],
            row["domain"],
            row["area_mm2"],
        )
        for row in rows
    ]


def _write_mosaics(source: Path, out: Path) -> None:
    """Crops of 128 px round figures become a picture a slide, its parts of all sizes and blended at their edges.

    Were they laid out in a grid, a network would learn that figures lie in the middle of its squares.
    """
    out.mkdir(parents=True, exist_ok=True)
    crops: dict[tuple[str, str], list[str]] = {}
    with (source / "crops.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            crops.setdefault((row["dataset"], row["slide"].partition(".")[0]), []).append(row["file"])
    lines = ["slide,case,domain,mpp,annotations"]
    for (dataset, slide), files in sorted(crops.items()):
        name = f"{dataset}_{slide}"
        images = [np.asarray(Image.open(source / file).convert("RGB")) for file in sorted(files)]
        mosaic, places = _mosaic(images, np.random.default_rng([*name.encode()]))
        Image.fromarray(mosaic).save(out / f"{name}.png")
        write_text(out / f"{name}.csv", "x,y,label\n" + "".join(f"{x},{y},mitotic figure\n" for x, y in places))
        case = name.partition("_stitched")[0]
        lines.append(f"{name}.png,{case},{_scanner(dataset, slide)},0.25,{name}.csv")
    write_text(out / "manifest.csv", "\n".join(lines) + "\n")


def _scanner(dataset: str, slide: str) -> str:
    """Slides 1 to 50 of MIDOG 2021 were scanned on a Hamamatsu XR, to 100 on an S360, to 150 on an Aperio CS2."""
    if dataset != "MIDOG21":
        return "tupac"
    return ("midog-xr", "midog-s360", "midog-cs2")[(int(slide) - 1) // 50]


def _mosaic(
    images: Sequence[NDArray[np.uint8]], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """The picture and the places of the figures; crops are shown again, turned, until the last row is full."""
    half = len(images[0]) // 2
    rows = list(_rows(len(images), rng))
    canvas = np.full((sum(height for height, _ in rows), MOSAIC_WIDTH, 3), 255.0)
    places, pending, y = [], list[int](), 0
    for height, widths in rows:
        x = 0
        for width in widths:
            pending = pending or rng.permutation(len(images)).tolist()
            image = np.rot90(images[pending.pop()], int(rng.integers(4)))
            left, top = (int(rng.integers(max(NEAR, n - half), min(half, n - NEAR) + 1)) for n in (width, height))
            _blend(canvas, image, (x, y), (half - left, half - top), (width, height))
            places.append((x + left, y + top))
            x += width
        y += height
    return np.rint(canvas).astype(np.uint8), places


def _rows(n: int, rng: np.random.Generator) -> Iterator[tuple[int, list[int]]]:
    """Height of each row of a mosaic and widths of its parts, for at least `n` parts."""
    done = 0
    while done < n:
        widths, left = list[int](), MOSAIC_WIDTH
        while left:
            width = int(rng.integers(64, 129))
            if left - width < 64:
                width = left if left <= 128 else left // 2
            widths.append(width)
            left -= width
        yield int(rng.integers(64, 113)), widths
        done += len(widths)


def _blend(
    canvas: NDArray[np.float64],
    image: NDArray[np.uint8],
    place: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Put the part of `image` that starts at `corner` on the canvas, fading in over what lies left of it and above."""
    (x, y), (column, row), (width, height) = place, corner, size
    before_x, before_y = (min(FADE, start, at) for start, at in zip(corner, place, strict=True))
    part = image[row - before_y : row + height, column - before_x : column + width].astype(np.float64)
    target = canvas[y - before_y : y + height, x - before_x : x + width]
    across, down = (
        np.minimum(1, np.arange(1, n + before + 1) / (before + 1))
        for n, before in ((width, before_x), (height, before_y))
    )
    weight = (down[:, None] * across)[..., None]
    target[:] = weight * part + (1 - weight) * target


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", nargs="+", choices=list(FOLDS), default=list(FOLDS), metavar="FOLD")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
