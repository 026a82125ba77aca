"""Settings: their ranges, and a config as JSON."""

import dataclasses
import math

import pytest

from ahl_jax import Config, DataConfig, RunOptions, UserError, preset
from ahl_jax.config.checks import AtLeast, Between, NameIn, settings_of
from ahl_jax.config.presets import PRESETS, differing_settings
from ahl_jax.run.checks import REGISTRIES, check_settings


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name: str) -> None:
    config = preset(name, "elpv", shots=3, trunk_weights=None, seed=4)
    assert Config.from_dict(config.to_dict()) == config


def test_the_paper_presets_are_the_two_published_variants() -> None:
    paper, appendix = preset("paper", "elpv"), preset("paper-appendix", "elpv")
    assert paper == Config(DataConfig("elpv"))
    published = {"subsets": 6, "clusters": 3, "holistic": False, "share_anomalies": False}
    assert dataclasses.asdict(paper.subsets).items() >= published.items()
    rates = (paper.learning.lr_base, paper.learning.lr, paper.importance.psi_lr)
    assert rates == (0.0002, 0.002, 0.002)
    # T = 7 is the six subsets of the pairs of clusters and the holistic one.
    assert differing_settings(paper, appendix) == {"holistic": True, "lr": 0.005, "psi_lr": 0.02}


def test_settings_that_an_earlier_version_did_not_know_are_at_their_defaults() -> None:
    values = Config(DataConfig("elpv")).to_dict()
    del values["detector"]["groups"], values["stage_one"]
    assert Config.from_dict(values) == Config(DataConfig("elpv"))


def test_settings_that_are_retired_are_read_where_they_change_nothing() -> None:
    values = Config(DataConfig("elpv")).to_dict()
    values["importance"] |= {"psi_passes": 1, "psi_batch": 48}
    values["source"] = values.pop("start")
    assert Config.from_dict(values) == Config(DataConfig("elpv"))
    values["importance"]["psi_passes"] = 3
    with pytest.raises(UserError, match="psi_passes = 3, which is always 1 in this version"):
        Config.from_dict(values)


def test_settings_of_another_version_are_refused() -> None:
    values = Config(DataConfig("elpv")).to_dict()
    values["learning"]["warp"] = 9
    with pytest.raises(UserError, match="do not fit this version"):
        Config.from_dict(values)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("shots", -1, "`shots` is -1; it must be 0 or more"),
        ("limit", 2, "`limit` is 2; it must be 3 or more"),
        ("held_out", 0.6, "`held_out` is 0.6; it must be from 0 to 0.5"),
        ("image_size", 200, "`image_size` is 200; it must be a multiple of 64"),
        ("image_size", 128, "`image_size` is 128; it must be 192 or more"),
        ("top_k", 1.5, "`top_k` is 1.5; it must be above 0 and at most 1"),
        ("lr", math.nan, "`lr` is nan; it must be above 0"),
        ("seed", 2**31, f"`seed` is {2**31}; it must be from 0 to {2**31 - 1}"),
        ("epochs", 2.0, "`epochs` is 2.0; it must be an int"),
        ("whiten", 1, "`whiten` is 1; it must be a bool"),
        ("method", "magic", "`method` is 'magic'; choose from ahl, base, ensemble, fit"),
        ("views", True, "`views` is True; choose from 1, 2, 4, 8, 2+8"),
        ("views", 8.0, "`views` is 8.0; choose from 1, 2, 4, 8, 2+8"),
        ("generators", ["cutmix"], "`generators` is ['cutmix']; it must be a tuple of str"),
        ("generators", ("cutmix",), "`generators` needs two or more different generators"),
        ("updates_per_epoch", 3, "`updates_per_epoch` is 3; it must divide `steps` (20)"),
        ("seen_class", "hole", '`seen_class` belongs to the hard setting; add `setting="hard"`'),
    ],
)
def test_a_value_out_of_range_is_named(setting: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        preset("paper", "elpv", **{setting: value})
    assert str(error.value).startswith(message)


def test_every_number_has_a_range_that_its_default_is_in() -> None:
    for setting in settings_of(preset("paper", "elpv")):
        if isinstance(setting.value, int | float) and not isinstance(setting.value, bool):
            choices = any("Literal" in str(kind) for kind in setting.kinds)
            ranges = [mark for mark in setting.marks if hasattr(mark, "allows")]
            assert ranges or choices, setting.name
            assert all(mark.allows(setting.value) for mark in ranges)


def test_names_are_looked_up_in_their_registries() -> None:
    marked = {
        setting.name: mark.registry
        for setting in settings_of(preset("paper", "elpv"))
        for mark in setting.marks
        if isinstance(mark, NameIn)
    }
    assert marked == {
        "detector": "detectors",
        "stage_one_detector": "detectors",
        "trunk": "trunks",
        "generators": "generators",
    }
    assert set(marked.values()) == REGISTRIES.keys()
    with pytest.raises(UserError, match="`trunk` has no 'vgg'; choose from convnext_tiny, dinov2"):
        check_settings(preset("paper", "elpv", trunk="vgg"))
    with pytest.raises(UserError, match=r"`stage_one_detector` has no 'density'; .* dra, flos"):
        check_settings(preset("paper", "elpv", stage_one=True, stage_one_detector="density"))


def test_options_of_a_run_have_ranges_too() -> None:
    assert RunOptions(data_shards=2).data_shards == 2
    with pytest.raises(UserError, match="`feature_memory` is -1; it must be above 0"):
        RunOptions(feature_memory=-1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunOptions().overwrite = True  # type: ignore[misc]


def test_marks_say_their_range_in_words() -> None:
    assert str(AtLeast(1)) == "1 or more"
    assert str(Between(0, 0.5)) == "from 0 to 0.5"
    assert Between(0, 0.5).allows(0.5)
    assert not Between(0, 0.5).allows(0.51)
