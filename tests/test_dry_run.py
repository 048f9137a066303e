"""The dry run: what it tells is what an epoch of training draws."""

from collections import Counter

import pytest
from conftest import TINY
from scipy.stats import chisquare

from mitosis.dataset import PatchDataset
from mitosis.dry_run import Plan, PlanRow, plan_run
from mitosis.loading import load_batches
from mitosis.patches import MITOTIC
from mitosis.sampling import SAMPLERS, PatchPool, epochs
from mitosis.splits import TRAIN


def training(index):
    return index.where(lambda patch: patch.split == TRAIN)


def settings(**changes):
    return TINY.train.model_copy(update={"steps": 90, **changes})


def row(plan: Plan, kind: str) -> PlanRow:
    return next(row for row in plan.rows if (row.kind, row.domain) == (kind, "all"))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_it_matches_what_the_loader_of_a_later_epoch_delivers(index, name, monkeypatch):
    """Chi-square over the classes, of the patches that the dataset was really asked for."""
    index = training(index)
    config = settings(sampler=name)
    plan = plan_run(index, config)
    asked = Counter()
    make = PatchDataset.make

    def spy(self, draw):
        asked[self.index.patches[draw.row].kind] += 1
        return make(self, draw)

    monkeypatch.setattr(PatchDataset, "make", spy)
    later = SAMPLERS[name](PatchPool.of(index), config, 1)
    assert len(later) == plan.batches_an_epoch
    for _ in load_batches(PatchDataset(index, config, TINY.network), later, 0):
        pass
    kinds = sorted(set(PatchPool.of(index).kinds))
    expected = [row(plan, kind).per_batch * plan.batches_an_epoch for kind in kinds]
    assert sum(asked.values()) == pytest.approx(sum(expected), abs=0.1)
    scale = sum(asked.values()) / sum(expected)
    assert chisquare([asked[kind] for kind in kinds], [value * scale for value in expected]).pvalue > 1e-6


def test_shares_and_repeats_are_those_of_the_draws(index):
    index = training(index)
    config = settings(sampler="undersample-each-epoch", steps=30)
    plan = plan_run(index, config)
    run = [draw for batches in epochs(PatchPool.of(index), config) for batch in batches for draw in batch]
    others = [i for i, patch in enumerate(index.patches) if patch.kind != MITOTIC]
    everything = row(plan, "all")
    assert everything.seen_in_run == pytest.approx(len({draw.row for draw in run}) / len(index.patches), abs=1e-4)
    epoch = SAMPLERS[config.sampler](PatchPool.of(index), config, 0)
    shown = Counter(draw.row for batch in epoch for draw in batch)
    assert row(plan, MITOTIC).most_repeats == max(n for number, n in shown.items() if number not in others)
    assert plan.figure_repeats == {
        patch.patch_id: shown[i] for i, patch in enumerate(index.patches) if patch.kind == MITOTIC
    }
    assert 0 < everything.seen_in_epoch <= everything.seen_in_run <= 1
    assert plan.epochs == pytest.approx(30 / plan.batches_an_epoch, abs=0.01)


def test_it_says_when_all_others_have_been_shown_or_that_they_never_are(index):
    index = training(index)
    long = plan_run(index, settings(sampler="undersample-each-epoch", steps=3000))
    assert long.epochs_until_all_seen is not None
    assert row(long, "background").seen_in_run == 1
    short = plan_run(index, settings(sampler="undersample-each-epoch", steps=2))
    assert short.epochs_until_all_seen is None
    assert plan_run(index, settings(sampler="oversample", steps=3000)).epochs_until_all_seen == 1
