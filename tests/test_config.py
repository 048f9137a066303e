"""Settings: round trip, unknown keys, ranges."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.config import Config, ExtractConfig, TrainConfig, load_config, save_config
from mitosis.errors import ConfigError


@given(
    st.builds(TrainConfig, steps=st.integers(200, 10**6), seed=st.integers(0, 2**63 - 1), figure_share=st.floats(0, 1))
)
def test_saved_settings_load_as_an_equal_object(tmp_path_factory: pytest.TempPathFactory, train: TrainConfig) -> None:
    path = tmp_path_factory.mktemp("config") / "settings.yaml"
    config = Config(train=train, extract=ExtractConfig(mpp=0.25))
    save_config(path, config)
    assert load_config(path) == config


@pytest.mark.parametrize("section", ["extract", "train", "verifier"])
@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(section: str, seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"{section}.seed"):
        load_config(None, (f"{section}.seed={seed}",))


def test_assignments_win_over_the_file_and_later_over_earlier(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("train:\n  steps: 700\n  seed: 3\n")
    config = load_config(path, ("train.steps=800", "train.steps=900"))
    assert (config.train.steps, config.train.seed) == (900, 3)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.stepz=5", "Did you mean 'steps'"),
        ("trian.steps=5", "Did you mean 'train'"),
        ("extract.mpp=40", "extract.mpp = 40"),
        ("train.crop=100", "multiple of network.stem * 2 ** network.depth"),
        ("train.steps=50", "fewer than steps"),
        ("train.steps", "section.key=value"),
        ("train.steps=[", "is not a value"),
    ],
)
def test_a_wrong_assignment_is_named(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, (assignment,))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "train: 3\n", "\x00"])
def test_a_file_that_is_no_settings_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such settings file"):
        load_config(tmp_path / "none.yaml")


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.touch()
    assert load_config(path) == Config()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("verifier.batch_size=2", "verifier.figure_share=0.1"), "no room for figures and others with a figure_share"),
        (("verifier.auxiliary_domains=[a]", "verifier.auxiliary_share=0.01"), "and an auxiliary_share of 0.01"),
        (("verifier.auxiliary_domains=[a]", "verifier.auxiliary_share=0.99"), "and an auxiliary_share of 0.99"),
    ],
)
def test_a_batch_of_candidates_has_room_for_each_class_of_each_sort(settings: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(None, settings)


def test_auxiliary_domains_take_their_share_of_a_batch() -> None:
    assert load_config(None, ("verifier.auxiliary_domains=[a, b]",)).verifier.batch_parts == (43, 21)
    assert load_config(None).verifier.batch_parts == (64,)
