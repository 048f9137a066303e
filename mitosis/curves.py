"""The course of a training run as a picture."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mitosis.files import atomic_write

__all__ = ["draw_curves"]


def draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write a PNG with the loss on the left and precision, recall and F1 on the right.

    Parameters
    ----------
    history : sequence of mappings
        Each with `step`, `loss`, `precision`, `recall` and `f1`.
    """
    steps = [point["step"] for point in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [point["loss"] for point in history], color="#444444", marker=".")
    left.set(title="Training loss", ylabel="loss", ylim=(0, None))
    best = max(history, key=lambda point: (point["f1"], point["step"]))
    for name, colour in (("precision", "#9ecae1"), ("recall", "#fdae6b"), ("f1", "#b30000")):
        label = "F1" if name == "f1" else name
        right.plot(steps, [point[name] for point in history], color=colour, marker=".", label=label)
    right.axvline(best["step"], color="#b30000", linewidth=0.8, linestyle=":")
    right.set(title=f"Detection on the validation cases: best F1 {best['f1']:.3f}", ylim=(0, 1.02))
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    with atomic_write(path) as stream:
        stream.write(buffer.getvalue())
