"""The worst mistakes, with their crops."""

import base64
import io

import numpy as np
from PIL import Image

from mitosis.cohort import find_sources
from mitosis.detections import Detections
from mitosis.gallery import crop, worst_mistakes
from mitosis.ranking import SlideScores


def slide(name, figures, found, look_alikes=()):
    rows = np.array(found, dtype=float).reshape(-1, 3)
    return SlideScores(name, 0.5, figures, Detections(rows[:, :2], rows[:, 2], rows[:, 2] * 0), look_alikes)


SLIDES = [
    slide("a", [(100, 100), (200, 100)], [(100, 100, 0.9), (201, 100, 0.3), (50, 50, 0.8)], [(51, 50)]),
    slide("b", [(30, 30)], [(150, 150, 0.95), (160, 60, 0.2)]),
]
THRESHOLDS = {"a": 0.5, "b": 0.5}


def test_misses_begin_with_the_lowest_score_and_false_alarms_with_the_highest():
    misses, alarms = worst_mistakes(SLIDES, THRESHOLDS)
    assert [(one.slide, one.x, one.score) for one in misses] == [("b", 30, 0.0), ("a", 200, 0.3)]
    assert [(one.slide, one.x, one.score, one.on_look_alike) for one in alarms] == [
        ("b", 150, 0.95, False),
        ("a", 50, 0.8, True),
    ]
    assert [len(some) for some in worst_mistakes(SLIDES, THRESHOLDS, n=1)] == [1, 1]


def test_no_slides_have_no_mistakes():
    assert worst_mistakes([], {}) == ([], [])
    assert worst_mistakes([slide("a", [], [])], {"a": 0.5}) == ([], [])


def test_crops_show_the_place_and_slides_not_at_hand_none(tmp_path):
    pixels = np.full((300, 300, 3), 230, np.uint8)
    pixels[140:160, 140:160] = (60, 20, 100)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    sources = {source.slide_id: source for source in find_sources([tmp_path], mpp=0.5)}
    _, alarms = worst_mistakes(SLIDES, THRESHOLDS)
    first, second = crop(alarms, sources)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(first.image.partition(",")[2]))))
    assert image.shape == (64, 64, 3)  # 32 µm at 0.5 µm/px
    assert image[32, 32].tolist() == [60, 20, 100]
    assert image[2, 2].tolist() == [230, 230, 230]
    assert second.image == ""
    assert crop(alarms, sources) == [first, second]
