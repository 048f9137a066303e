"""SMOTE on features: classes become equal in number, within what was there, and the last layer profits."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mitosis.errors import ConfigError
from mitosis.rebalance import oversample_features, refit_head


def clouds(sizes, seed=0, apart=3.0):
    rng = np.random.default_rng(seed)
    features = [rng.normal(0, 1, (n, 4)) + apart * np.eye(4)[k] for k, n in enumerate(sizes)]
    return np.concatenate(features), np.repeat(np.arange(len(sizes)), sizes)


@settings(deadline=None, max_examples=20)  # the first call imports the library
@given(st.lists(st.integers(2, 30), min_size=2, max_size=3))
def test_every_class_grows_to_the_largest_and_stays_in_its_box(sizes):
    features, labels = clouds(sizes)
    more, names = oversample_features(features, labels, seed=1)
    assert np.bincount(names).tolist() == [max(sizes)] * len(sizes)
    np.testing.assert_array_equal(more[: len(features)], features.astype(np.float32))
    for k in range(len(sizes)):
        own = features[labels == k]
        assert (more[names == k] >= own.min(axis=0) - 1e-5).all()
        assert (more[names == k] <= own.max(axis=0) + 1e-5).all()


def test_the_same_seed_gives_the_same_points_and_another_does_not():
    features, labels = clouds([40, 5])
    first, again, other = (oversample_features(features, labels, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_has_as_many_neighbours_as_its_own_members_allow():
    """Six members on a circle: with five neighbours points lie between any two, with one only on its sides."""
    angle = np.arange(6) * np.pi / 3
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    features = np.concatenate([np.full((400, 2), 9.0) + np.arange(400)[:, None] / 400, circle, [[20, 20], [21, 20]]])
    more, names = oversample_features(features, np.repeat([0, 1, 2], [400, 6, 2]), seed=0)
    assert np.hypot(*more[names == 1].T).min() < 0.5  # the sides are 0.87 from the middle


def test_a_single_member_and_equal_classes_stay_as_they_are():
    for sizes in ([5, 1], [4, 4]):
        features, labels = clouds(sizes)
        more, names = oversample_features(features, labels, seed=1)
        assert (len(more), names.tolist()) == (len(features), labels.tolist())


def test_the_head_finds_the_rare_class_better():
    """400 against 8: without more of them, few of the rare ones are worth an error."""
    features, labels = clouds([400, 8], apart=1.5)
    unseen, truth = clouds([400, 400], seed=1, apart=1.5)
    torch.manual_seed(0)
    plain, filled = nn.Linear(4, 2), nn.Linear(4, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mitosis.rebalance.oversample_features", lambda x, y, _: (x.astype(np.float32), y))
        refit_head(plain, features, labels, seed=0)
    refit_head(filled, features, labels, seed=0)

    def recall(head):
        found = head(torch.from_numpy(unseen.astype(np.float32))).argmax(dim=1).numpy()
        return (found[truth == 1] == 1).mean()

    assert recall(filled) > recall(plain) + 0.2
    assert not any(parameter.requires_grad for parameter in filled.parameters())


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    with pytest.raises(ConfigError, match=r"mitosis-toolkit\[smote\]"):
        oversample_features(*clouds([3, 2]), seed=0)
