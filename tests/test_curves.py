"""Curves: a picture of a run, for any history."""

import numpy as np
import pytest
from PIL import Image

from mitosis.curves import draw_curves
from mitosis.errors import OutputError

HISTORY = [
    {"step": step, "loss": 1 / step, "precision": 0.1 * step, "recall": 0.9 - 0.1 * step, "f1": 0.05 * step}
    for step in range(1, 6)
]


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_picture_shows_loss_precision_recall_and_f1(tmp_path):
    draw_curves(tmp_path / "curves.png", HISTORY)
    picture = read(tmp_path / "curves.png")
    assert picture.shape == (396, 990, 3)
    for colour in ((0x44, 0x44, 0x44), (0x9E, 0xCA, 0xE1), (0xFD, 0xAE, 0x6B), (0xB3, 0, 0)):
        assert (abs(picture - colour).max(axis=2) < 24).sum() > 100


def test_the_same_history_gives_the_same_bytes_and_another_one_others(tmp_path):
    for name, history in (("a", HISTORY), ("b", HISTORY), ("c", HISTORY[:-1])):
        draw_curves(tmp_path / f"{name}.png", history)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("point", [HISTORY[0], dict.fromkeys(HISTORY[0], 0), {**HISTORY[0], "loss": -1.0}])
def test_a_single_point_or_a_dull_one_is_drawn_without_a_warning(tmp_path, point):
    draw_curves(tmp_path / "curves.png", [point])
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        draw_curves(tmp_path / "nowhere" / "curves.png", HISTORY)
