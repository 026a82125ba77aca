"""The points that ``over`` asks for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ahl_jax import Config, UserError, preset
from ahl_jax.sweeps.points import plan

PAPER = preset("paper", "elpv")


def test_choices_that_are_numbers_are_varied_as_numbers() -> None:
    points = plan(PAPER, ["views=1,8"])
    assert [p.config.features.views for p in points] == [1, 8]
    assert [p.number for p in points] == [1, 8]
    with pytest.raises(UserError, match=r"views has the value '3'; choose from 1, 2, 4, 8, 2\+8"):
        plan(PAPER, ["views=3"])


def test_each_setting_is_varied_alone_and_the_others_stay() -> None:
    over = ["T=1,12", "psi-lr=0.001", "gradient=exact", "share_anomalies=true"]
    points = plan(PAPER, over, Path("sweep"))
    assert [(p.name, p.folder) for p in points] == [
        ("subsets = 1", Path("sweep/subsets-1")),
        ("subsets = 12", Path("sweep/subsets-12")),
        ("psi-lr = 0.001", Path("sweep/psi-lr-0.001")),
        ("gradient = exact", Path("sweep/gradient-exact")),
        ("share-anomalies = true", Path("sweep/share-anomalies-true")),
    ]

    def flat(config: Config) -> dict[tuple[str, str], Any]:
        rooms = {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, dict)}
        return {(room, k): v for room, values in rooms.items() for k, v in values.items()}

    given = flat(PAPER)
    changes = [
        {key: value for key, value in flat(p.config).items() if value != given[key]} for p in points
    ]
    assert changes == [
        {("subsets", "subsets"): 1},
        {("subsets", "subsets"): 12},
        {("importance", "psi_lr"): 0.001},
        {("learning", "gradient"): "exact"},
        {("subsets", "share_anomalies"): True},
    ]
    assert [p.number for p in points] == [1, 12, 0.001, None, None]


def test_the_papers_symbols_name_their_settings() -> None:
    points = plan(PAPER, ["M=1", "C=2", "K=3"])
    configs = [p.config for p in points]
    assert [p.setting for p in points] == ["shots", "clusters", "history"]
    assert configs[0].data.shots == 1
    assert configs[1].subsets.clusters == 2
    assert configs[2].importance.history == 3


def test_sweeps_that_meet_in_the_given_settings_share_a_run() -> None:
    points = plan(PAPER, ["T=2,6", "K=3,5"])
    folders = [p.folder.name for p in points]
    assert folders == ["subsets-2", "subsets-6", "history-3", "subsets-6"]


def test_the_base_detector_comes_first_as_a_run_of_its_own() -> None:
    first, second = plan(PAPER, ["T=2"], base=True)
    assert (first.folder.name, first.config.learning.method) == ("method-base", "base")
    assert second.config.learning.method == "ahl"
    with pytest.raises(UserError, match='leave it out with `method="base"`'):
        plan(first.config, ["T=2"], base=True)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ([], "give `over` NAME=V1,V2"),
        (["T"], "it must be NAME=V1,V2"),
        (["subset=1"], "cannot vary 'subset'; choose from T, C, K, M, augment, batch"),
        (["=1"], "cannot vary ''"),
        (["seed=1,2"], "give `seeds`"),
        (["trunk=resnet18"], "cannot vary 'trunk'"),
        (["category=a"], "cannot vary 'category'"),
        (["T=1,2,2"], "`over` subsets has the value 2 twice"),
        (["lr=0.1,1e-1"], "`over` lr has the value 0.1 twice"),
        (["T=1", "subsets=2"], "`over` has subsets twice"),
        (["T=1,two"], "has the value 'two'; it must be a whole number"),
        (["T=1,2.5"], "has the value '2.5'; it must be a whole number"),
        (["T=1,"], "has the value ''; it must be a whole number"),
        (["lr=nan"], "has the value 'nan'; it must be a number"),
        (["gradient=exact,first"], "'first'; choose from first_order, exact"),
        (["detector=dr"], "'dr'; choose from density, devnet, dra"),
        (["holistic=yes"], "'yes'; choose from false, true"),
        (["T=1,0"], "subsets = 0: `subsets` is 0; it must be 1 or more"),
        (["updates-per-epoch=1,3"], "updates-per-epoch = 3: `updates_per_epoch` is 3; it must"),
        # psi sees nothing before as many epochs are over.
        (["K=29,30"], "history = 30: `history` is 30, so psi would wait for the end of all 30"),
    ],
)
def test_what_cannot_be_varied_is_refused(over: list[str], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        plan(PAPER, over)
    assert words in str(refusal.value)
