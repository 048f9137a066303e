r"""Which network finds the most for what it costs? Each is trained with the same steps and seeds, on cases left out.

Examples:
  python scripts/compare_networks.py --out networks                        (phantom tissue, few steps, minutes)
  python scripts/compare_networks.py SLIDES --annotations MARKS --mpp 0.2456 --case-pattern '^A(\d\d)' --out networks
      --folds 00,02 01,03,04 --seeds 3 --set train.steps=600 --set train.max_class_weight=10
  python scripts/compare_networks.py --manifest FIELDS.csv --config scripts/release.yaml --out networks
      --folds 00,03,10 01,05,11 --set train.steps=2500 --set train.validate_every=2500

SLIDES, MARKS and FIELDS.csv are what ``mitosis extract`` takes. The cases of a fold are left out of training and
predicted; a threshold is chosen on the predictions of the other folds. At another µm/px patches and crops have as many
more or fewer pixels, so that they show the same tissue. Every run is kept, so a command that was stopped goes on when
it is given again, and more seeds or networks can be added. Writes networks.csv, networks.md and networks.png: detection
F1 and AP against GFLOP a mm².
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from left_out import (
    PHANTOM,
    TITLES,
    Outcome,
    add_arguments,
    cell,
    choose_folds,
    cut_patches,
    outcome_of,
    phantom_slides,
    run_without,
    write_csv,
    write_table,
)
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox, BboxBase

from mitosis.cohort import SlideSource, find_sources, read_manifest
from mitosis.config import Config, load_config
from mitosis.cost import Cost, network_cost
from mitosis.files import atomic_write
from mitosis.patches import PatchIndex

PLAIN = ("network.stem=1", "network.block=plain", "network.classes=2")
"""What a network is that does not say otherwise, whatever the settings of the others are."""
DEFAULT = ("network.width=16", "network.depth=3")
NETWORKS: dict[str, tuple[str, ...]] = {
    "width 16, depth 3": DEFAULT,
    "width 16, depth 2": ("network.width=16", "network.depth=2"),
    "width 12, depth 3": ("network.width=12", "network.depth=3"),
    "width 8, depth 3": ("network.width=8", "network.depth=3"),
    "width 8, depth 4": ("network.width=8", "network.depth=4"),
    # Of about the cost and about as many parameters as a plain one of width 16, and of width 8.
    "separable, width 45": ("network.width=45", "network.depth=3", "network.block=separable"),
    "separable, width 22": ("network.width=22", "network.depth=3", "network.block=separable"),
    "inverted, width 17": ("network.width=17", "network.depth=3", "network.block=inverted"),
    "inverted, width 8": ("network.width=8", "network.depth=3", "network.block=inverted"),
    # The first level at half or a quarter of the resolution.
    "stem 2, width 16, depth 2": ("network.stem=2", "network.width=16", "network.depth=2"),
    "stem 2, width 24, depth 2": ("network.stem=2", "network.width=24", "network.depth=2"),
    "stem 2, width 16, depth 3": ("network.stem=2", "network.width=16", "network.depth=3"),
    "stem 4, width 16, depth 1": ("network.stem=4", "network.width=16", "network.depth=1"),
    "stem 4, width 32, depth 1": ("network.stem=4", "network.width=32", "network.depth=1"),
    "stem 4, width 32, depth 2": ("network.stem=4", "network.width=32", "network.depth=2"),
    "3 classes": (*DEFAULT, "network.classes=3"),
    "0.35 µm/px": (*DEFAULT, "extract.mpp=0.35"),
    "0.25 µm/px": (*DEFAULT, "extract.mpp=0.25"),
    "width 16, depth 4, 0.25 µm/px": ("network.width=16", "network.depth=4", "extract.mpp=0.25"),
    "stem 2, width 16, depth 3, 0.25 µm/px": (
        "network.stem=2",
        "network.width=16",
        "network.depth=3",
        "extract.mpp=0.25",
    ),
}
"""What differs from the other settings; "3 classes" has look-alikes as a class of their own."""

COLOURS = {"plain": "#0072B2", "separable": "#D55E00", "inverted": "#009E73"}
DRAWN = ("f1", "average_precision")
SHOWN = (*DRAWN, "recall_at_1_fp_mm2")
STEP = 16  # the stride of a network of depth 4


@dataclass(frozen=True)
class Row:
    """What a network with all its seeds gives, and what it costs."""

    config: Config
    cost: Cost
    outcomes: list[Outcome]

    @property
    def name(self) -> str:
        """As in `NETWORKS`."""
        return self.outcomes[0].name

    @property
    def mpp(self) -> float:
        """µm/px it sees."""
        return self.config.extract.mpp

    @property
    def gflop_per_mm2(self) -> float:
        """What it costs to run."""
        return self.cost.gflop_per_mm2(self.mpp)

    def mean(self, figure: str) -> float:
        """Of a figure of `Outcome` over seeds."""
        return statistics.mean(self.seeds(figure))

    def seeds(self, figure: str) -> list[float]:
        """A figure of `Outcome` for each seed."""
        return [getattr(outcome, figure) for outcome in self.outcomes]


def main() -> None:
    """Cut and train what is not there yet, score, write the table and the picture."""
    arguments = _arguments()
    patches = _Patches(arguments)
    rows = []
    for name in arguments.networks or NETWORKS:
        outcomes = []
        for seed in range(arguments.seeds):
            config = _config(name, arguments, seed)
            index = patches.at(config)
            folds = choose_folds(index, arguments.folds)
            runs = [run_without(fold, index, config, arguments.out / "runs", name) for fold in folds]
            outcomes.append(outcome_of(name, seed, runs))
            print(outcomes[-1], flush=True)
        rows.append(Row(config, cost_of(config), outcomes))
    _write(arguments.out, sorted(rows, key=lambda row: row.gflop_per_mm2))


class _Patches:
    """The same slides cut at any µm/px, each when it is first asked for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder = arguments.out / "patches"
        self.sources = _sources(arguments)
        self.cut: dict[float, PatchIndex] = {}

    def at(self, config: Config) -> PatchIndex:
        """The patches for these settings."""
        mpp = config.extract.mpp
        if mpp not in self.cut:
            self.cut[mpp] = cut_patches(self.sources, self.folder / f"{mpp:g}", config)
        return self.cut[mpp]


def _sources(arguments: argparse.Namespace) -> list[SlideSource]:
    if arguments.manifest:
        return read_manifest(arguments.manifest)
    if arguments.slides:
        given = {name: getattr(arguments, name) for name in ("annotations", "case_pattern", "mpp")}
        return find_sources(arguments.slides, **given)
    return phantom_slides(arguments.out / "phantom")


def _config(name: str, arguments: argparse.Namespace, seed: int) -> Config:
    """The settings of a network; at a finer µm/px than the others, patches and crops of more pixels."""
    phantom = () if arguments.slides or arguments.manifest else PHANTOM
    others = (*phantom, *arguments.set, f"train.seed={seed}")
    own = (*PLAIN, *NETWORKS[name])
    usual, config = (load_config(arguments.config, (*others, *some)) for some in (PLAIN, own))
    ratio = usual.extract.mpp / config.extract.mpp
    if ratio == 1:
        return config
    scaled = {"extract.size": config.extract.size, "train.crop": config.train.crop}
    lengths = [f"{key}={round(length * ratio / STEP) * STEP}" for key, length in scaled.items()]
    jitter = f"extract.jitter={round(config.extract.jitter * ratio)}"
    return load_config(arguments.config, (*others, *own, *lengths, jitter))


def cost_of(config: Config) -> Cost:
    """The cost of the network of these settings."""
    from mitosis.unet import UNet

    weights = UNet.from_config(config.network).state_dict()
    return network_cost({name: weight.shape for name, weight in weights.items()})


def _write(out: Path, rows: Sequence[Row]) -> None:
    write_csv(out / "networks.csv", [_line(row, outcome) for row in rows for outcome in row.outcomes])
    head = ("network", "seeds", "µm/px", "parameters", "GFLOP a mm²", *(TITLES[figure] for figure in SHOWN))
    write_table(out / "networks.md", head, map(_cells, rows))
    draw(out / "networks.png", rows)
    print(out / "networks.png")


def _line(row: Row, outcome: Outcome) -> dict[str, Any]:
    figures = asdict(outcome)
    cost = {"mpp": row.mpp, "n_parameters": row.cost.n_parameters, "gflop_per_mm2": round(row.gflop_per_mm2, 2)}
    return {"network": figures.pop("name"), "seed": figures.pop("seed"), **cost, **figures}


def _cells(row: Row) -> tuple[str, ...]:
    size = (f"{row.mpp:g}", f"{row.cost.n_parameters:,}", f"{row.gflop_per_mm2:.0f}")
    return (row.name, str(len(row.outcomes)), *size, *(cell(row.outcomes, figure) for figure in SHOWN))


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A panel for F1 and one for AP; a point a network, and a line from its lowest seed to its highest."""
    figure = Figure(figsize=(13, 6.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(DRAWN))
    for panel, attribute in zip(panels, DRAWN, strict=True):
        for row in rows:
            colour = COLOURS[row.config.network.block]
            seeds = row.seeds(attribute)
            panel.plot([row.gflop_per_mm2] * 2, [min(seeds), max(seeds)], color=colour, linewidth=3, alpha=0.25)
            panel.plot(row.gflop_per_mm2, row.mean(attribute), "o", color=colour, markersize=7)
        _best_for_the_cost(panel, [(row.gflop_per_mm2, row.mean(attribute)) for row in rows])
        panel.set(xscale="log", xlabel="GFLOP a mm²", title=TITLES[attribute])
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.margins(x=0.12, y=0.1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    for kind, colour in COLOURS.items():
        if any(row.config.network.block == kind for row in rows):
            panels[0].plot([], [], "o", color=colour, label=f"{kind} blocks")
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(lines[0]), frameon=False)
    figure.suptitle("Cases left out; dots are means over seeds, thick lines the range of the seeds", fontsize=11)
    figure.draw_without_rendering()  # settles the axes, so that names find their places
    for panel, attribute in zip(panels, DRAWN, strict=True):
        _label(panel, [(row.name, row.gflop_per_mm2, row.mean(attribute)) for row in rows])
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png")


def _best_for_the_cost(panel: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A step where a network is better than all that cost less."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    if len(best) > 1:
        panel.step(
            *zip(*best, strict=True), where="post", color="0.7", linewidth=1, zorder=0, label="best for the cost"
        )


def _label(panel: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """The name of each point, at the nearest place beside it where it covers no other name and no other point."""
    places = panel.transData.transform([(x, y) for _, x, y in points])
    dots = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in places]
    names: list[Bbox] = []
    for (name, x, y), dot in zip(points, dots, strict=True):
        at = (x, y)
        others = [*names, *(other for other in dots if other is not dot)]
        text = panel.annotate(name, at, textcoords="offset points", xytext=(7, 0), va="center", fontsize=8)
        text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5})  # over lines
        for side, offset in _places():
            text.set(ha=side, position=offset)
            box = text.get_window_extent().padded(1)
            if _holds(panel.bbox, box) and not any(map(box.overlaps, others)):
                break
        names.append(box)
        if abs(offset[1]) > 11:  # points away, so that a line must say whose name it is
            line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 2, "shrinkB": 5}
            panel.annotate("", at, offset, textcoords="offset points", arrowprops=line)


def _holds(room: BboxBase, box: BboxBase) -> bool:
    return bool(room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1)


def _places() -> Iterator[tuple[Literal["left", "right", "center"], tuple[float, float]]]:
    """Where a name may stand, points from its dot, the nearest first."""
    yield from (("left", (7, 0)), ("right", (-7, 0)), ("center", (0, 11)), ("center", (0, -11)))
    for far in range(14, 150, 7):
        for up in (far, -far):
            yield from (("left", (9, up)), ("right", (-9, up)), ("center", (0, up)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="*", help="marked slides; phantom tissue if left out")
    parser.add_argument("--manifest", type=Path, help="a CSV of slides, marks, cases and µm/px instead")
    parser.add_argument("--annotations", type=Path, help="their marks")
    parser.add_argument("--mpp", type=float, help="µm/px of the slides where they do not say")
    parser.add_argument("--case-pattern", metavar="REGEX")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), metavar="NAME")
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.slides and not arguments.annotations:
        parser.error("SLIDES need --annotations: without marks there is nothing to learn")
    return arguments


if __name__ == "__main__":
    main()
