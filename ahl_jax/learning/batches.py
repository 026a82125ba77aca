"""Balanced batches as index arrays: a third normals, a third anomalies, a third pseudo-anomalies.

Where there are only some of these kinds, a batch is in equal parts of what there is.

A pool with fewer images than its third gives each of them once, weighted by how often a balanced
batch would repeat it. So a repeated image is computed once, and batches have one static shape.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ahl_jax.detectors.protocol import ANOMALY, NORMAL, PSEUDO


class Pool(NamedTuple):
    """Images to draw from; several pools of different sizes are padded and stacked.

    They are made as NumPy's: JAX would compile a program for each operation on them.
    """

    members: Int[Array | np.ndarray, "*t n"]
    """Positions in the bank of images; what lies behind ``size`` is padding."""

    size: Int[Array | np.ndarray, "*t"]
    """How many of them are real."""


class PoolSet(NamedTuple):
    """The images of a support or query set."""

    normals: Pool
    anomalies: Pool
    pseudo: Pool


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["index", "weights", "labels", "reference", "reference_weights"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Batch:
    """A balanced batch, and the normals whose mean the residual compares with."""

    index: Int[Array, "*s b"]
    weights: Float[Array, "*s b"]
    """How often an image counts; 0 for padding."""

    labels: Int[Array, "*s b"]
    """NORMAL, ANOMALY or PSEUDO."""

    reference: Int[Array, "*s r"]
    reference_weights: Float[Array, "*s r"]


def pad_pools(members: Sequence[Sequence[int] | np.ndarray], width: int | None = None) -> Pool:
    """Stack one pool per subset, padded with each pool's first member.

    Args:
        members: each pool's positions in the bank.
        width: the size to pad to; by default the largest pool's. A program is compiled for it, so
            it should not depend on chance.

    Raises:
        ValueError: if a pool is empty and others are not, or one is larger than ``width``.
    """
    sizes = [len(m) for m in members]
    width = max(sizes) if width is None else width
    if min(sizes) == 0 < max(sizes):
        raise ValueError(f"pool {sizes.index(0)} is empty")
    if max(sizes) > width:
        raise ValueError(f"a pool of {max(sizes)} does not fit into a width of {width}")
    width = width if max(sizes) else 0
    index = np.array([[*m, *[*m[:1]] * (width - len(m))] for m in members], np.int32)
    return Pool(index, np.array(sizes, np.int32))


def equal_parts(batch: int, pools: PoolSet) -> list[int]:
    """Normals, anomalies and pseudo-anomalies in a batch; normals take what does not divide.

    Of what no pool has, there is none.
    """
    there = [pool.members.shape[-1] > 0 for pool in pools]
    part, rest = divmod(batch, sum(there))
    return [part * one + (rest if i == 0 else 0) for i, one in enumerate(there)]


def draw(
    key: Key[Array, ""], pool: Pool, size: int
) -> tuple[Int[Array, " slots"], Float[Array, " slots"]]:
    """Draw ``size`` images at random, none repeated before all are used.

    How far a pool is padded does not change what is drawn.

    Returns:
        min(size, n) positions in the bank, and how often each is drawn (sum ``size``).
    """
    n = pool.members.shape[-1]
    slots = min(size, n)
    noise = jax.random.uniform(key, (n,))
    valid = jnp.arange(n) < pool.size
    order = jax.lax.top_k(jnp.where(valid, noise, -1.0), slots)[1]
    times, rest = size // pool.size, size % pool.size
    rank = jnp.arange(slots)
    weights = jnp.where(rank < pool.size, times + (rank < rest), 0)
    return jnp.asarray(pool.members)[order], weights.astype(noise.dtype)


def draw_batches(
    key: Key[Array, ""], pools: PoolSet, *, steps: int, batch: int, references: int
) -> Batch:
    """``steps`` independent balanced batches from the pools of one subset.

    Args:
        key: a PRNG key.
        pools: pools with no leading axis (vmap over subsets); all but the normals may be empty.
        steps: number of batches.
        batch: images per batch, repeats counted.
        references: normals whose mean is the reference of the residual.
    """
    sizes = equal_parts(batch, pools)

    def one(key: Key[Array, ""]) -> Batch:
        keys = jax.random.split(key, len(sizes) + 1)
        kinds = zip(keys[:-1], pools, sizes, (NORMAL, ANOMALY, PSEUDO), strict=True)
        there = [(draw(k, pool, size), label) for k, pool, size, label in kinds if size]
        drawn = [one for one, _ in there]
        labels = [jnp.full(index.shape, label, jnp.int32) for (index, _), label in there]
        reference, reference_weights = draw(keys[-1], pools.normals, references)
        return Batch(
            index=jnp.concatenate([index for index, _ in drawn]),
            weights=jnp.concatenate([weights for _, weights in drawn]),
            labels=jnp.concatenate(labels),
            reference=reference,
            reference_weights=reference_weights,
        )

    return jax.vmap(one)(jax.random.split(key, steps))
