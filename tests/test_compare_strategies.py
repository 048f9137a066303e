"""The comparison of strategies: a small one from nothing to the table, and what its rows say."""

import csv
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mitosis.config import load_config
from mitosis.losses import LOSSES
from mitosis.sampling import SAMPLERS

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_strategies.py"
TWO = ["nothing", "mix figure / look-alike / random"]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def run(script: dict[str, Any]) -> Any:
    """Call main with these words, on phantoms of a few tiles."""

    def call(*words: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("left_out.PHANTOM_SIZE", (1280, 1024))
            patch.setattr("left_out.PHANTOM_CASES", 2)
            patch.setattr(sys, "argv", ["compare_strategies.py", *words])
            script["main"]()

    return call


@pytest.fixture(scope="module")
def compared(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "out"
    run("--out", str(out), "--seeds", "2", "--strategies", *TWO, "--set", "train.steps=6")
    return out


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "comparison.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_there_is_a_row_for_each_strategy_and_seed_and_one_for_a_network_that_never_fires(compared: Path) -> None:
    found = [(row["strategy"], row["seed"]) for row in rows(compared)]
    assert found == [("all background", "0"), *((name, seed) for name in TWO for seed in "01")]


@pytest.mark.slow
def test_accuracy_is_blind_and_the_other_figures_are_not(compared: Path) -> None:
    blind = rows(compared)[0]
    assert float(blind["pixel_accuracy"]) > 0.99
    assert {float(blind[name]) for name in ("dice", "f1", "average_precision", "recall_at_1_fp_mm2")} == {0.0}
    for row in rows(compared):
        assert all(0 <= float(value) <= 1 for name, value in row.items() if name not in ("strategy", "seed"))


@pytest.mark.slow
def test_the_table_and_the_picture_are_there(compared: Path) -> None:
    table = (compared / "comparison.md").read_text().splitlines()
    assert len(table) == 2 + 3
    assert table[0].count("|") == table[2].count("|") == 8
    with Image.open(compared / "comparison.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_says_the_same(
    compared: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (compared / "comparison.csv").read_bytes()

    def refuse(*_words: Any, **_settings: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("mitosis.training.train", refuse)
    run("--out", str(compared), "--seeds", "2", "--strategies", *TWO, "--set", "train.steps=6")
    assert (compared / "comparison.csv").read_bytes() == before
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        run("--out", str(compared), "--strategies", "nothing", "--set", "train.steps=7")


def test_every_strategy_has_known_settings_and_every_sampler_is_compared(script: dict[str, Any]) -> None:
    configs = {name: load_config(None, settings).train for name, settings in script["STRATEGIES"].items()}
    assert {config.sampler for config in configs.values()} == set(SAMPLERS)
    assert {config.loss for config in configs.values()} <= set(LOSSES)
    assert len({config.model_dump_json() for config in configs.values()}) == len(configs)


@pytest.mark.slow
def test_with_settings_the_rows_differ_from_them_in_one_thing_each(run: Any, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("train: {sampler: balanced}\n")
    names = ("as given", "sampler: uniform")
    run("--out", str(tmp_path / "out"), "--config", str(settings), "--strategies", *names, "--set", "train.steps=6")
    kept = {path.parent.name: path.read_text() for path in (tmp_path / "out" / "runs").glob("*/result.json")}
    samplers = {name.partition("_without")[0]: json.loads(text)["settings"]["train"] for name, text in kept.items()}
    given, uniform = samplers["as_given"], samplers["sampler:_uniform"]
    assert (given["sampler"], uniform["sampler"]) == ("balanced", "uniform")
    assert {key for key in given if given[key] != uniform[key]} == {"sampler"}


def test_a_strategy_of_the_other_list_is_refused(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--out", str(tmp_path / "out"), "--strategies", "as given")
    assert "as given: unknown here. Choose from: nothing" in capsys.readouterr().err
