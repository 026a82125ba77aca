"""A detector of one's own: one class with the protocol, one line in the registry."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import ahl_jax
from ahl_jax.detectors import DETECTORS
from ahl_jax.detectors.protocol import Head
from tests.problems import make_config, make_setting


def _blocks():
    """The python blocks of docs/extending.md, in their order."""
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.M)


def _run(blocks):
    """The names that a reader has who pastes the blocks as they are printed."""
    names = {"__name__": "pasted"}
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec"), names)
    return names


Pooled = _run(_blocks()[:1])["Pooled"]


@pytest.mark.parametrize(
    "trains", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["stubbed", "trained"]
)
def test_the_page_runs_as_printed(monkeypatch, tmp_path, trains):
    monkeypatch.setitem(DETECTORS, "pooled", None)  # is gone again after the test
    monkeypatch.chdir(tmp_path)
    started = []
    if not trains:
        monkeypatch.setattr(ahl_jax, "train", lambda *arguments: started.append(arguments))
    names = _run(_blocks())
    assert DETECTORS["pooled"] is names["Pooled"]
    if trains:
        assert (tmp_path / "runs/pooled/metrics.json").is_file()
    else:
        ((config, workdir),) = started
        assert (config.detector.detector, workdir) == ("pooled", "runs/pooled")


def test_the_lines_to_add_have_their_places():
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text("utf-8")
    (changed,) = re.findall(r"^```diff\n(.*?)^```", page, re.DOTALL | re.M)
    (path,) = re.findall(r"`(ahl_jax/detectors/__init__\.py)`:$", page, re.M)
    lines = iter((Path(__file__).parents[2] / path).read_text("utf-8").splitlines())
    kept = [line[1:] for line in changed.splitlines() if line.startswith(" ") and line.strip()]
    assert [line for line in kept if line not in lines] == []  # Each after the one before.
    added = [line[1:].strip() for line in changed.splitlines() if line.startswith("+")]
    assert added == [f"from ahl_jax.detectors.pooled import {Pooled.__name__}", '"pooled": Pooled,']


@pytest.mark.parametrize("method", ["ahl", "base"])
def test_a_detector_added_with_one_line_trains(monkeypatch, method):
    monkeypatch.setitem(DETECTORS, "pooled", Pooled)
    problem = make_setting(
        make_config(
            detector="pooled",
            method=method,
            importance="uniform",
            subsets=6,
            steps=4,
            batch=12,
            lr=0.2,
            lr_base=0.05,
            decay_every=100,
        )
    )
    learner, data = problem.learner, problem.data
    assert isinstance(learner.functional.merge(problem.model), Pooled)
    state = learner.init(problem.model, data, problem.key)
    epoch = jax.jit(learner.epoch)
    losses = []
    for number in range(20):
        state, log = epoch(state, data, jnp.int32(number))
        losses.append(float(log.support_losses.sum()))
    model = learner.model(state)
    assert not np.allclose(ravel_pytree(model.params)[0], ravel_pytree(problem.model.params)[0])
    assert losses[-1] < 0.5 * losses[0]
    images = data.inputs.take(jnp.arange(20))
    score = learner.functional.score(model, images, data.inference_reference())
    assert score[:15].max() < score[15:].min()


def test_scores_on_the_scale_of_the_labels():
    class Two(Pooled):
        table = (Head("a", targets=(0, 1, 1)), Head("b", targets=(1, 0, 0), factor=-1))

    detector = Two(4, make_config().detector, rngs=nnx.Rngs(0))
    ideal = 5.0 * jnp.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(detector.label_score(ideal), [0, 1, 0.5], atol=1e-6)
    dra = DETECTORS["dra"](4, make_config().detector, rngs=nnx.Rngs(0))
    ideal = 5.0 * jnp.array([[0.0, 0, 0, 1], [1.0, 0, 1, 0]])
    np.testing.assert_allclose(dra.label_score(ideal), [0, 1], atol=1e-6)
    np.testing.assert_allclose(dra.total_score(ideal), [-5, 10], atol=1e-6)
