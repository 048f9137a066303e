"""Training: it learns, it can be stopped anywhere and goes on with the same bits, and it stops when all goes wrong."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, contents
from PIL import Image

from mitosis.checkpoints import load_model, load_state, save_model
from mitosis.config import Config, load_config
from mitosis.descent import learning_rate
from mitosis.errors import ConfigError, LeakageError, ModelError, OutputError, PatchIndexError
from mitosis.evaluation import choose_threshold, evaluate
from mitosis.files import sole_writer
from mitosis.losses import LOSSES
from mitosis.matching import MatchResult
from mitosis.patches import PatchIndex
from mitosis.quantization import quantize
from mitosis.training import train
from mitosis.unet import UNet
from mitosis.validation import score_patches

RESULTS = ("model.safetensors", "model.json", "metrics.jsonl")


def with_train(**settings):
    return Config.model_validate({**TINY.model_dump(), "train": {**TINY.train.model_dump(), **settings}})


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class KilledError(Exception):
    pass


def killed_after(last):
    def on_step(step, _loss):
        if step == last:
            raise KilledError

    return on_step


@pytest.fixture(scope="module")
def finished(patches_folder, tmp_path_factory):
    """An uninterrupted run of `TINY`; read-only by agreement."""
    out = tmp_path_factory.mktemp("finished") / "run"
    card = train(PatchIndex.read(patches_folder), out, TINY)
    return out, card


def test_the_rate_warms_up_and_ends_at_0():
    config = with_train(steps=100, warmup_steps=10, learning_rate=0.5).train
    rates = [learning_rate(step, config, config.warmup_steps) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert all(later < earlier for earlier, later in pairwise(rates[9:]))
    assert rates[54] == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_rate_without_warm_up_starts_near_the_top():
    config = with_train(steps=100, warmup_steps=0, learning_rate=0.5).train
    assert 0.49 < learning_rate(1, config, 0) < 0.5
    assert learning_rate(100, config, 0) == pytest.approx(0, abs=1e-12)


def test_a_toy_task_is_learned(index, tmp_path):
    """Dark discs are figures, red ones are not; the network sees one case and is judged by the other."""
    config = with_train(steps=60, batch_size=8, validate_every=20, warmup_steps=5, learning_rate=0.03, ema_decay=0.9)
    config = config.model_copy(update={"network": config.network.model_copy(update={"width": 4})})
    val = index.where(lambda patch: patch.split == "val")
    torch.manual_seed(0)
    untaught = score_patches(UNet.from_config(config.network), val, 0.05, 7.5, True)
    assert evaluate(untaught, choose_threshold(untaught)).pooled.f1 < 0.5
    told = []
    card = train(index, tmp_path / "run", config, on_metrics=told.append)
    assert card.validation["f1"] >= 0.8
    assert told[-1].f1 >= 0.8
    assert told[-1].loss < 0.5 * told[0].loss
    network, _ = load_model(tmp_path / "run")
    result = evaluate(score_patches(network, val, 0.05, 7.5, True), card.threshold).pooled
    assert (round(result.f1, 4), round(result.recall, 4)) == (card.validation["f1"], card.validation["recall"])


def test_a_run_folder_holds_what_it_should(finished, index):
    out, card = finished
    assert sorted(path.name for path in out.iterdir()) == [
        *("curves.png", "metrics.jsonl", "model.json", "model.safetensors"),
        *("settings.yaml", "state.previous.pt", "state.pt"),
    ]
    assert load_config(out / "settings.yaml") == TINY
    assert [line["step"] for line in metrics_of(out)] == [2, 4]
    assert load_model(out)[1] == card
    assert load_state(out)["step"] == 4
    sides = {patch.case_id: patch.split for patch in index.patches}
    assert card.training["cases"] == [case for case, side in sides.items() if side == "train"]
    assert card.validation["cases"] == [case for case, side in sides.items() if side == "val"]
    assert card.training["settings"] == TINY.model_dump(mode="json")
    assert card.mpp == 0.5
    assert quantize(load_model(out)[0], card.int8_ranges).classes == 1  # ready for a count in int8
    with Image.open(out / "curves.png") as picture:
        assert picture.size == (990, 396)


def test_the_card_is_that_of_the_best_look_and_the_later_of_equals(finished):
    out, card = finished
    best = max(metrics_of(out), key=lambda line: (line["f1"], line["step"]))
    assert {name: card.validation[name] for name in best} == best
    assert (card.threshold, card.count_threshold) == (best["threshold"], best["count_threshold"])


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_a_run_stopped_anywhere_and_resumed_gives_the_same_bytes(index, finished, tmp_path, last):
    """Stopped before the first saved state, at it, after it, and before the last."""
    out = tmp_path / "run"
    with pytest.raises(KilledError):
        train(index, out, TINY, on_step=killed_after(last))
    steps = []
    train(index, out, TINY, resume=True, on_step=lambda step, _loss: steps.append(step))
    assert steps == list(range(1 if last <= 2 else 3, 5))
    for name in RESULTS:
        assert (out / name).read_bytes() == (finished[0] / name).read_bytes(), name


@pytest.mark.parametrize("last", [2, 3, 4])
def test_saved_between_looks_a_stop_costs_fewer_steps_and_no_bytes(index, tmp_path, last):
    often = with_train(save_every=1, validate_every=4)
    train(index, tmp_path / "whole", often)
    out, steps = tmp_path / "run", []
    with pytest.raises(KilledError):
        train(index, out, often, on_step=killed_after(last))
    train(index, out, often, resume=True, on_step=lambda step, _loss: steps.append(step))
    assert steps == list(range(last, 5))
    for name in RESULTS:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_best_look_of_before_a_stop_is_kept(index, tmp_path, monkeypatch):
    looks = iter([MatchResult(tp=3), MatchResult(tp=1, fp=5)])
    monkeypatch.setattr("mitosis.training.evaluate", lambda *_: SimpleNamespace(pooled=next(looks)))
    out = tmp_path / "run"
    with pytest.raises(KilledError):
        train(index, out, TINY, on_step=killed_after(3))
    best = (out / "model.safetensors").read_bytes()
    card = train(index, out, TINY, resume=True)
    assert [line["f1"] for line in metrics_of(out)] == [1.0, pytest.approx(2 / 7, abs=1e-4)]
    assert card.validation["step"] == 2
    assert (out / "model.safetensors").read_bytes() == best


def test_a_resumed_run_is_the_same_with_a_damaged_newest_state(index, finished, tmp_path):
    out = tmp_path / "run"
    train(index, out, TINY)
    (out / "state.pt").write_bytes(b"half of it")
    train(index, out, TINY, resume=True)
    for name in RESULTS:
        assert (out / name).read_bytes() == (finished[0] / name).read_bytes(), name


def test_a_finished_run_that_is_resumed_changes_nothing(index, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    train(index, out, TINY, resume=True, on_step=killed_after(5))
    assert contents(out) == contents(finished[0])


def test_a_run_of_an_earlier_version_gets_its_ranges_for_int8_when_it_is_resumed(index, finished, tmp_path):
    out, card = shutil.copytree(finished[0], tmp_path / "run"), finished[1]
    save_model(out, load_model(out)[0].state_dict(), card.model_copy(update={"int8_ranges": {}}))
    assert train(index, out, TINY, resume=True) == card
    assert card.int8_ranges


def test_a_run_can_begin_with_the_weights_of_another(index, finished, tmp_path):
    """With a learning rate of next to nothing the weights stay what they were; the card says whose they are."""
    still = TINY.model_copy(update={"train": TINY.train.model_copy(update={"learning_rate": 1e-12})})
    card = train(index, tmp_path / "run", still, start=finished[0])
    before, after = (load_model(folder)[0].state_dict() for folder in (finished[0], tmp_path / "run"))
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)
    assert card.training["start_sha256"] == load_model(finished[0])[1].weights_sha256


def test_what_the_first_model_has_seen_the_second_has_too(index, finished, tmp_path):
    seen = load_model(finished[0])[1].training["cases"]
    others = index.where(lambda patch: patch.case_id not in seen).with_val_cases([])
    assert set(others.cases).isdisjoint(seen)
    card = train(others, tmp_path / "run", TINY, start=finished[0])
    assert card.training["cases"] == sorted({*seen, *others.cases})
    files = {patch.source_sha256 for patch in index.patches if patch.case_id in (*seen, *others.cases)}
    assert card.training["source_sha256"] == sorted(files)


def test_a_start_that_has_learned_from_a_validation_case_is_refused(index, finished, tmp_path):
    seen = load_model(finished[0])[1].training["cases"]
    with pytest.raises(LeakageError, match=f"has learned from the validation cases {seen[0]}"):
        train(index.with_val_cases(seen[:1]), tmp_path / "run", TINY, start=finished[0])
    assert not (tmp_path / "run").exists()


def test_a_start_that_has_learned_from_a_validation_slide_under_another_case_is_refused(index, finished, tmp_path):
    patches = tuple(replace(patch, case_id=f"{patch.case_id} anew") for patch in index.patches)
    renamed = PatchIndex(index.folder, patches)
    seen = load_model(finished[0])[1].training["cases"][0]
    with pytest.raises(LeakageError, match=f"has learned from the validation cases {seen} anew"):
        train(renamed.with_val_cases([f"{seen} anew"]), tmp_path / "run", TINY, start=finished[0])


def test_a_run_that_began_with_another_model_goes_on_with_it(index, finished, tmp_path):
    """Also if it was stopped before its first validation, and whether or not the model is named again."""
    seen = load_model(finished[0])[1].training["cases"]
    others = index.where(lambda patch: patch.case_id not in seen).with_val_cases([])
    card = train(others, tmp_path / "whole", TINY, start=finished[0])
    for number, again in enumerate((None, finished[0])):
        out = tmp_path / f"run-{number}"
        with pytest.raises(KilledError):
            train(others, out, TINY, start=finished[0], on_step=killed_after(1))
        assert train(others, out, TINY, resume=True, start=again) == card
    plain = tmp_path / "plain"
    train(others, plain, TINY)
    with pytest.raises(ConfigError, match="its run began with another model"):
        train(others, plain, TINY, resume=True, start=finished[0])


def test_a_start_of_another_shape_is_refused(index, finished, tmp_path):
    wider = TINY.model_copy(update={"network": TINY.network.model_copy(update={"width": 3})})
    with pytest.raises(ModelError, match=r"its network .* is not that of the settings"):
        train(index, tmp_path / "run", wider, start=finished[0])


def test_a_run_can_be_resumed_with_other_loader_processes_but_no_other_setting(index, tmp_path):
    def changed(**settings):
        return TINY.model_copy(update={"train": TINY.train.model_copy(update=settings)})

    out = tmp_path / "run"
    with pytest.raises(KilledError):
        train(index, out, changed(workers=1, save_every=2), on_step=killed_after(3))
    with pytest.raises(ConfigError, match="other settings"):
        train(index, out, changed(learning_rate=0.5), resume=True)
    assert train(index, out, TINY, resume=True).validation["step"] in (2, 4)


@pytest.mark.slow
def test_loader_processes_change_no_bit(index, finished, tmp_path):
    """The one difference is the number of them in the card."""
    out = tmp_path / "run"
    train(index, out, with_train(workers=2))
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (finished[0] / name).read_bytes(), name
    text = (out / "model.json").read_text().replace('"workers": 2', '"workers": 0')
    assert text == (finished[0] / "model.json").read_text()


def test_another_seed_is_another_run(index, finished, tmp_path):
    train(index, tmp_path / "run", with_train(seed=1))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != (finished[0] / "model.safetensors").read_bytes()


def test_a_run_that_is_there_is_not_overwritten(index, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    with pytest.raises(ConfigError, match=r"run: holds a training run already\. Add --resume"):
        train(index, out, TINY)
    assert contents(out) == contents(finished[0])


def test_there_must_be_a_run_to_resume(index, tmp_path):
    with pytest.raises(ConfigError, match="no run to resume"):
        train(index, tmp_path / "run", TINY, resume=True)
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_settings_is_refused(index, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    with pytest.raises(ConfigError, match="has other settings"):
        train(index, out, with_train(steps=6), resume=True)
    assert contents(out) == contents(finished[0])


@pytest.mark.parametrize("how", ["one patch less", "other validation cases", "none of them"])
def test_resuming_with_other_patches_is_refused(index, finished, tmp_path, how):
    """Otherwise a case that was learned from could become one to validate on."""
    swapped = sorted({patch.case_id for patch in index.patches if patch.split == "train"})
    other = {
        "one patch less": PatchIndex(index.folder, index.patches[:-1]),
        "other validation cases": index.with_val_cases(swapped),
        "none of them": index.with_val_cases([]),
    }[how]
    out = shutil.copytree(finished[0], tmp_path / "run")
    with pytest.raises(PatchIndexError, match=r"not those that the run in .* began with"):
        train(other, out, TINY, resume=True)
    assert contents(out) == contents(finished[0])


def test_a_run_whose_states_are_all_damaged_is_not_resumed(index, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    for name in ("state.pt", "state.previous.pt"):
        (out / name).write_bytes(b"half of it")
    with pytest.raises(ModelError, match="damaged"):
        train(index, out, TINY, resume=True)


@pytest.mark.parametrize("change", ["no masks", "unknown loss"])
def test_what_cannot_be_learned_from_leaves_no_folder(index, tmp_path, change):
    config = with_train(loss="focus") if change == "unknown loss" else TINY
    if change == "no masks":
        index = PatchIndex(index.folder, tuple(replace(patch, mask="") for patch in index.patches))
    with pytest.raises((PatchIndexError, ConfigError)):
        train(index, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_to_is_named(index, tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(OutputError, match="run"):
        train(index, tmp_path / "run", TINY)


def test_without_validation_cases_the_training_cases_are_judged(index, tmp_path):
    card = train(index.with_val_cases([]), tmp_path / "run", TINY)
    assert card.validation["cases"] == card.training["cases"] == ["A", "B"]


def test_three_classes_can_be_trained(index, tmp_path):
    config = Config.model_validate({**TINY.model_dump(), "network": {"width": 2, "depth": 1, "classes": 3}})
    card = train(index, tmp_path / "run", config)
    assert card.classes == ("background", "mitotic figure", "non-mitotic figure")
    assert load_model(tmp_path / "run")[0].classes == 3


@pytest.fixture
def failing_loss(monkeypatch):
    """Make the loss of certain steps (counted from 1) not finite: by its value, or by its gradient alone."""

    def install(steps, by="value"):
        calls = iter(range(1, 10_000))

        def loss(logits, mask, weights):
            plain = LOSSES["ce"](logits, mask, weights)
            if next(calls) not in steps:
                return plain
            if by == "value":
                return plain * math.nan
            return plain + torch.sqrt((logits * 0).sum())  # 0, with the gradient 0 * inf

        monkeypatch.setitem(LOSSES, "failing", loss)

    return install


@pytest.mark.parametrize("by", ["value", "gradient"])
def test_steps_that_are_not_finite_are_left_out_and_counted(index, tmp_path, failing_loss, by):
    failing_loss({2, 3}, by)
    seen = []
    train(index, tmp_path / "run", with_train(loss="failing", steps=5), on_step=lambda _, loss: seen.append(loss))
    assert [math.isfinite(loss) for loss in seen] == [True, False, False, True, True]
    assert metrics_of(tmp_path / "run")[-1]["skipped"] == 2
    state = load_state(tmp_path / "run")
    assert all(np.isfinite(value.numpy()).all() for value in state["network"].values())
    moments = [value for group in state["optimizer"]["state"].values() for value in group.values()]
    assert moments
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in moments)


@pytest.mark.parametrize("validate_every", [3, 100])
def test_ten_in_a_row_end_the_run_with_a_word_on_what_to_do(index, tmp_path, failing_loss, validate_every):
    failing_loss({2, *range(5, 100)})
    config = with_train(loss="failing", steps=20, validate_every=validate_every, batch_size=2)
    steps = []
    with pytest.raises(ModelError, match=r"ten steps in a row, the last being step 14\. .*learning_rate"):
        train(index, tmp_path / "run", config, on_step=lambda step, _: steps.append(step))
    assert steps[-1] == 13


def test_two_commands_that_train_in_one_folder_are_refused(index, tmp_path):
    with sole_writer(tmp_path / "run"), pytest.raises(OutputError, match="run: another command is writing there"):
        train(index, tmp_path / "run", TINY)
    assert list((tmp_path / "run").iterdir()) == []
