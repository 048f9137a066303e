"""From nothing to a mitotic count: ``python scripts/demo.py``. Sets itself up; takes some minutes.

Cuts patches from ``sample_patches/``, trains a small network on them, draws a phantom slide that the network has not
seen, counts its mitotic figures and compares them with the truth. All of it is synthetic.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import environment

SEED = 2026
SIZE = (4608, 3584)  # px at 0.25 µm/px: 1.03 mm²
SETTINGS = (
    "train.steps=600",
    "train.warmup_steps=20",
    "train.validate_every=150",
    "train.batch_size=12",
    "train.crop=96",
    "extract.size=176",
    "extract.jitter=16",
    "network.width=8",
    "network.normalise_stain=false",  # the samples are too small to measure a stain on
    "train.augment_figure=0.6",  # drawn figures are too much alike: this makes them less so
    "train.augment_per_repeat=0.1",
    "train.learning_rate=0.004",
    "train.precision=float32",  # the same on every processor, as far as may be
    "train.ema_decay=0.98",
)


def main() -> None:
    """Run the four verbs one after the other and say where to look."""
    environment.run_inside()
    out = _fresh_folder(Path(sys.argv[1] if len(sys.argv) > 1 else environment.ROOT / "demo"))
    samples = environment.ROOT / "sample_patches"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]

    _say("1. extract: patches and masks from sample_patches/")
    pattern = r"^case\d+"
    _mitosis(
        "extract",
        samples / "images",
        "--annotations",
        samples / "masks",
        "--case-pattern",
        pattern,
        "--out",
        out / "patches",
        *settings,
    )

    _say("2. train: a small U-Net")
    _mitosis("train", out / "patches", "--out", out / "run", "--val-cases", "case2", *settings)

    _say("3. count: a phantom slide drawn from another seed")
    _draw_phantom(out / "slides")
    _mitosis("count", out / "slides", "--model", out / "run", "--out", out / "results")

    _say("4. evaluate: against the truth")
    _mitosis("evaluate", out / "results", out / "truth")

    overlay = next((out / "results").glob("*/overlay.png"))
    print(f"\nLook at {overlay}")
    print(f"The report is in {overlay.parent}, the table of all slides in {out / 'results' / 'summary.csv'}")


def _fresh_folder(out: Path) -> Path:
    """An empty folder; what an earlier demonstration left is cleared, anything else is refused."""
    marker = out / "demo.txt"
    if marker.exists():
        shutil.rmtree(out)
    elif out.exists():
        sys.exit(f"{out}: exists and is not from an earlier demonstration. Name another folder.")
    out.mkdir(parents=True)
    marker.write_text("Made by scripts/demo.py, which clears this folder when it runs again.\n")
    return out


def _draw_phantom(folder: Path) -> None:
    from mitosis.synthetic import write_phantom, write_truth

    truth = folder.parent / "truth"
    for path in (folder, truth):
        path.mkdir()
    marks = write_phantom(folder / "phantom.tif", SEED, SIZE, density_per_mm2=50)
    write_truth(truth / "phantom.csv", marks)


def _say(text: str) -> None:
    print(f"\n── {text}", flush=True)


def _mitosis(*words: str | Path) -> None:
    code = subprocess.run([sys.executable, "-m", "mitosis", *map(str, words)], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
