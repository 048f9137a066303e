"""The candidate gate: it sees the right squares, drops the same whatever it is given together, and can be left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import draw_field, random_places, save_slide, save_two_stages
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mitosis.config import CountConfig, VerifierConfig
from mitosis.crops import CLASSES, read_crops
from mitosis.gate import BATCH, Gate
from mitosis.inference import Model, count_slide
from mitosis.looks import crop_engine
from mitosis.slides import open_slide
from mitosis.verifier import Verifier, gate_settings

SIDE = 16


class MiddleIsDark(Verifier):
    """Takes a square whose middle is dark for a figure."""

    def __init__(self):
        super().__init__(members=0)
        self.weight = nn.Parameter(torch.zeros(1))  # of something `crop_engine` takes the device

    def forward(self, images):
        middle = images[:, 0, SIDE // 2, SIDE // 2]
        return torch.stack([torch.zeros_like(middle), 20 * middle - 10, torch.full_like(middle, -50)], dim=1)


@pytest.mark.parametrize("n", [0, 1, BATCH - 1, BATCH, BATCH + 1, 100])
def test_what_lies_in_the_middle_of_a_square_decides(n):
    rng, image = np.random.default_rng(n), np.full((90, 120, 3), 255, np.uint8)
    places = np.stack([rng.uniform(20, 100, n), rng.uniform(20, 70, n)], axis=1)
    dark = rng.random(n) < 0.5
    for (x, y), is_dark in zip(places.tolist(), dark, strict=True):
        image[int(y + 0.5), int(x + 0.5)] = 0 if is_dark else 255
    expected = [image[int(y + 0.5), int(x + 0.5), 0] == 0 for x, y in places.tolist()]
    np.testing.assert_array_equal(Gate(crop_engine(MiddleIsDark()), SIDE, 0.5).passes(image, places), expected)


def test_it_sees_what_would_be_read_of_the_slide(tmp_path):
    save_slide(tmp_path / "a.png", draw_field(random_places(5, 0), seed=0))
    xy, seen = np.array([[40.2, 50.7], [61.5, 33.5], [20.0, 99.99]]), []
    with open_slide(tmp_path / "a.png") as slide:
        expected = read_crops(slide, xy, slide.mpp, SIDE, None)
        image = read_crops(slide, np.array([[64.0, 64.0]]), slide.mpp, 128, None)[0]
    Gate(lambda crops: seen.append(crops) or np.zeros((len(crops), 1, 1), np.float32), SIDE, 0.5).passes(image, xy)
    np.testing.assert_array_equal(seen[0][: len(xy)], expected)
    assert len(seen[0]) == 8


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_the_least_probability_is_inclusive_whatever_its_last_bits(step):
    gate = Gate(crop_engine(MiddleIsDark()), SIDE, step / 10_000)
    near = np.array([step / 10_000 - 1e-7, step / 10_000, step / 10_000 + 1e-7, (step - 1) / 10_000])
    np.testing.assert_array_equal(gate.lets_through(near), [True, True, True, False])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A slide, and the folder of a model of two stages whose gate drops a part of what is found."""
    folder = tmp_path_factory.mktemp("gate")
    save_two_stages(folder / "model")
    field = draw_field(random_places(16, 0, 400, 300), random_places(6, 9, 400, 300), 400, 300, glass=40)
    save_slide(folder / "slide.png", field)
    return folder


def count(folder, model, **words):
    config = CountConfig.model_validate({"tile_size": 256, "score_floor": 0.0001, **words})
    with open_slide(folder / "slide.png") as slide:
        return count_slide(slide, "slide", model, config).candidates


@pytest.mark.parametrize("words", [{"tile_size": 140}, {"batch_size": 3}, {"workers": 0}, {"workers": 3}])
def test_the_same_is_dropped_for_any_tiles_batches_and_threads(made, words):
    model = Model.load(made / "model")
    expected, found = count(made, model), count(made, model, **words)
    for name in ("xy", "score", "area_um2"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_what_passes_has_the_scores_that_it_has_without_a_gate(made):
    model = Model.load(made / "model")
    few, everything = (count(made, model, gate=gate, merge_um=0.001) for gate in (True, False))
    assert 5 < len(few) < len(everything) - 5
    scores = {tuple(place): score for place, score in zip(everything.xy.tolist(), everything.score, strict=True)}
    assert all(scores[tuple(place)] == score for place, score in zip(few.xy.tolist(), few.score, strict=True))


def test_a_gate_is_none_of_the_first_stage_alone(made):
    model = Model.load(made / "model")
    alone = count(made, model, verify=False)
    assert len(alone) == len(count(made, replace(model, gate=None), verify=False)) > len(count(made, model))
    assert Model.load(made / "model", CountConfig(gate=False)).gate is None
    assert Model.load(made / "model", CountConfig(verify=False)).gate is None


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_drops_the_same(made, engine):
    for package in ("onnx", engine):
        pytest.importorskip(package, reason="engines are extras")
    expected, found = (count(made, Model.load(made / "model", CountConfig(engine=name))) for name in ("torch", engine))
    np.testing.assert_allclose(found.xy, expected.xy, atol=1e-3)
    np.testing.assert_allclose(found.score, expected.score, atol=2e-4)


def test_the_settings_of_a_gate_are_those_of_the_same_tissue_at_the_first_stages_resolution():
    of_second = {"width": 32, "mpp": 0.25, "crop": 64, "shift": 5, "members": 2, "symmetry": "p4m", "transformer": True}
    second = VerifierConfig.model_validate({**of_second, "gate_width": 12, "gate_symmetry": "p4"})
    gate = gate_settings(second, 0.5)
    assert (gate.width, gate.symmetry, gate.mpp, gate.crop, gate.shift, gate.members) == (12, "p4", 0.5, 32, 2, 1)
    assert (gate.transformer, gate.gate_width, gate.steps) == (False, 0, second.steps)
    assert gate_settings(second, 4.0).crop == 16
    assert len(CLASSES) == Verifier.from_config(gate)(torch.zeros(1, 3, 32, 32)).shape[1]
