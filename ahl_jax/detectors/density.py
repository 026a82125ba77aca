"""Density: distances to the normal images, with a head for what labelled anomalies have in common.

It starts from closed forms, which training sharpens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ahl_jax.config.settings import SCALES, DetectorConfig
from ahl_jax.detectors.heads import top_mean
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.protocol import DeviationDetector, Head
from ahl_jax.detectors.ridge import Ridge, fit_ridge

_TINY = 1e-6
"""Keeps the gradients of lengths finite at 0."""

_SHRINK = 160
"""How many images the moments over all normals count as among those of a group."""

_LEAST = 1e-3
"""Smallest 1 - leverage. Of 20 normals with 1328 features most have 0.01 and all below 0.05."""

_FLAT = 0.02
"""Smallest deviation of a score, as a share of its mean: of lengths it is a tenth or more."""

_SPREAD = 1.5
"""Standard deviation of the priors of the logarithms of the factors."""

_EACH = 5.0
"""How much the share of normals that each labelled anomaly passes counts against the prior."""

_GRID = 2 * _SPREAD * np.linspace(-1, 1, 17)
"""Logarithms of the factors that are tried, as shares of the priors'."""


class Density(DeviationDetector):
    """Distances on whitened features, in standard deviations of similar normals.

    With z the whitened global averages of all scales, beside other ``POOLINGS`` of them, and x_l
    the whitened features of a location,

    - density: the length of A z, at first a Mahalanobis distance to the normal images;
    - local: the mean length of the ``top_k`` longest x_l, averaged over the scales;
    - seen: the mean cosine between z and the z of each labelled anomaly, and, each by a share, that
      with the z of each pseudo-anomaly and a score that is linear in z, see ``ridge.py``.

    Each is standardised by its mean and standard deviation over the normals of the image's group,
    so that all are on the scale of the deviation loss, and score = density + factor x seen. The
    local head is what heat maps show without a ``Localizer``; a ``LocalHead``, if there is one,
    adds to the score in its place. The groups are k-means clusters of normals; an image belongs
    to the one whose mean z is nearest.
    Trained are the metric A, at first the identity, of a block for each pooling, and a gain for
    every channel of x_l. What the seen head reads stays as it is: so few anomalies that are
    labelled do not tell any better.

    Training normals lie closer than others do, because they took part in the covariance that z is
    whitened by. So there are two sets of moments: those of the training normals as they are, for
    training, and those that they would have had without their own part, for any other image.

    The factor of the seen head and both shares are fitted: how far each is to be trusted differs
    from data to data. Each labelled anomaly is compared with the normals by what the others tell;
    see ``_fitted_factors``.
    """

    whitened = True
    by_pooled = True
    by_pseudo = True
    takes_local = True
    added = ("metric",)
    table = (
        Head("density", targets=(0, 1, 1)),
        Head("local", targets=(0, 1, 1)),
        Head("seen", targets=(0, 1, None)),
    )

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        del rngs
        assert config.poolings != "auto"
        block, moments = SCALES * channels, (2, config.groups, SCALES + 2)
        width = config.poolings * block
        self.metric = nnx.Param(jnp.zeros((width, block)))
        self.local_gain = nnx.Param(jnp.zeros(channels))
        # Earlier versions, whose checkpoints have none, had these.
        self.factors = nnx.BatchStat(jnp.array([1, 0.2, 0.2]))
        # AUC-ROC of labelled anomalies that are left out, against the training normals; without
        # any it is that of chance.
        self.left_out_auc = nnx.BatchStat(jnp.array(0.5))
        # Standard deviation of the scores of the normals, without their own part.
        self.spread = nnx.BatchStat(jnp.array(1.0))
        self.direction = nnx.BatchStat(jnp.zeros(width))
        self.linear = nnx.BatchStat(jnp.zeros(block))
        self.centres = nnx.BatchStat(jnp.zeros((config.groups, width)))
        self.mean = nnx.BatchStat(jnp.zeros(moments))
        self.deviation = nnx.BatchStat(jnp.ones(moments))
        self.top_k = config.top_k
        self.margin = config.margin

    def measure(self, inputs: Inputs) -> Float[Array, "b r"]:
        """Z, then the scores that do not depend on the direction of the labelled anomalies."""
        local = [
            top_mean(lengths, self.top_k) for lengths in inputs.at_locations(self._at_location)
        ]
        return self._rows(_flat(inputs), jnp.stack(local, axis=1))

    def measure_pooled(self, z: Float[Array, "b d"]) -> Float[Array, "b r"]:
        """The same by z alone: the local scores, whose factor is 0, are 0."""
        return self._rows(z, jnp.zeros((z.shape[0], SCALES), z.dtype))

    def prepare(
        self,
        normals: Float[Array, "n r"],
        anomalies: Float[Array, "m r"],
        pseudo: Float[Array, "p r"],
        groups: Int[Array, " n"],
        colouring: Float[Array, "d d"] | None = None,
    ) -> None:
        """The directions of the anomalies, the moments of all scores over normals, factors.

        Without any anomalies the directions and their factor stay as they are: fine-tuning keeps
        those of the run it starts from, in whitened channels.
        """
        width, n, m = len(self.direction[...]), len(normals), len(anomalies)
        directions = _unit(jnp.vstack([anomalies, pseudo])[:, :width])
        labelled, made = directions[:m], directions[m:]
        if not len(directions):
            made = self.direction[...][None]
        # Leaving an image out of mean and covariance makes it n / (n - 1) times as long, divides
        # its squared length by 1 - leverage, and its product with any other image by as much
        # (Sherman and Morrison). The factor counts where leverages are near 1: with few images.
        without = n / max(n - 1, 1)
        # Pooling by pooling, as of 100,000 normals a copy of z takes gigabytes.
        side = self.metric.shape[1]
        towards = jnp.vstack([made.sum(0) / max(len(made), 1), labelled])

        def of_pooling(start: Array) -> tuple[Array, Array, Array]:
            block, other = (
                jax.lax.dynamic_slice_in_dim(x, start, side, 1) for x in (normals, towards)
            )
            return jnp.square(block).sum(-1), block @ other.T, _largest_eigenvalue(block)

        squares, products, largest = jax.lax.map(of_pooling, jnp.arange(0, width, side))
        apart = jnp.maximum(1 - without * squares / largest[:, None], _LEAST)
        short, longer = _length(squares.sum(0)), _length((squares / apart).sum(0))
        cosines = products.sum(0) / short[:, None]
        unseen = (products / apart[..., None]).sum(0) / longer[:, None]
        member = jax.nn.one_hot(groups, len(self.centres[...]), axis=0)
        count = member.sum(1, keepdims=True)
        # A group with no members is far away from every image.
        sums = (member @ normals)[:, :width]
        self.centres[...] = jnp.where(count > 0, sums / jnp.maximum(count, 1), jnp.inf)
        rest = normals[:, width:]
        rest_unseen = rest.at[:, 0].multiply(without * longer / short)
        self._set_moments(member, slice(-1), rest, rest_unseen)
        colouring = jnp.eye(side) if colouring is None else colouring
        z, of_labelled, of_made = (x[:, :side] for x in (normals, anomalies, pseudo))
        ridge = fit_ridge(z, of_labelled, of_made, colouring)
        # How much the mean cosine with pseudo-anomalies, those with labelled ones and the linear
        # score count.
        shares = jnp.array([1.0, 0.0, 0.0])
        if m:
            mean, deviation = self.mean[...][1, groups, 0], self.deviation[...][1, groups, 0]
            of_normals = (rest_unseen[:, 0] - mean) / deviation
            mean, deviation = self._moments(anomalies[:, :width], training=False)
            of_anomalies = (anomalies[:, width] - mean[:, 0]) / deviation[:, 0]
            factor, shares, auc = _fitted_factors(
                of_normals, of_anomalies, unseen[:, 1:], labelled @ labelled.T,
                unseen[:, 0], labelled @ towards[0], ridge,
            )  # fmt: skip
            self.factors[...] = self.factors[...].at[2].set(factor)
            self.left_out_auc[...] = auc
        elif len(pseudo):
            self.factors[...] = self.factors[...].at[2].set(_share(0))
        if len(directions):
            self.linear[...] = shares[2] * ridge.direction
        mix = jnp.concatenate([shares[:1], jnp.full(m, shares[1] / max(m, 1))])
        self.direction[...] = mix @ towards
        linear = z @ self.linear[...]
        unseen_linear = linear + shares[2] * (ridge.unseen - ridge.of_normals)
        both = cosines @ mix + linear, unseen @ mix + unseen_linear
        self._set_moments(member, slice(-1, None), *(x[:, None] for x in both))
        self.factors[...] = self.factors[...].at[1].set(0)
        of_heads = jnp.stack([rest_unseen[:, 0], both[1]], axis=1)
        mean, deviation = (x[1, groups][:, [0, -1]] for x in (self.mean[...], self.deviation[...]))
        self.spread[...] = ((of_heads - mean) / deviation @ self.factors[...][::2]).std()

    def _set_moments(
        self,
        member: Float[Array, "g n"],
        columns: slice,
        seen: Float[Array, "n c"],
        unseen: Float[Array, "n c"],
    ) -> None:
        """Moments over each group of some scores of the normals, as they are and as if unseen."""
        count = member.sum(1, keepdims=True)
        for k, scores in enumerate((seen, unseen)):
            mean, variance = scores.mean(0), scores.var(0)
            mean = (member @ scores + _SHRINK * mean) / (count + _SHRINK)
            square = jnp.einsum("gn,gnr->gr", member, jnp.square(scores - mean[:, None]))
            deviation = jnp.sqrt((square + _SHRINK * variance) / (count + _SHRINK))
            least = _TINY + _FLAT * jnp.abs(mean)
            self.mean[...] = self.mean[...].at[k, :, columns].set(mean)
            deviation = jnp.maximum(deviation, least)
            self.deviation[...] = self.deviation[...].at[k, :, columns].set(deviation)

    def total_score(self, head_scores: Float[Array, "*b 3"]) -> Float[Array, "*b"]:
        """Density, and the seen head by its factor."""
        return head_scores @ self.factors[...].astype(head_scores.dtype)

    def plus_local(
        self, scores: Float[Array, " b"], local: Float[Array, " b"]
    ) -> Float[Array, " b"]:
        """The total scores, with those of a ``LocalHead`` at the scale of theirs."""
        return scores + self.spread[...] * local

    def label_score(self, head_scores: Float[Array, "*b 3"]) -> Float[Array, "*b"]:
        """The total score as a share of an ideal anomaly's, whose heads are at the margin."""
        return self.total_score(head_scores) / (self.margin * self.factors[...].sum())

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 3"]:
        """Scores in the order of ``heads``, in standard deviations of the normals."""
        del reference
        return self._standardised(self.measure(inputs), training=weights is not None)

    def measured_scores(self, rows: Float[Array, "b r"]) -> Float[Array, "b 3"]:
        """Scores at inference, by what ``measure`` gives."""
        return self._standardised(rows, training=False)

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """The length of every location's features, standardised as the local head's score is."""
        del reference
        mean, deviation = self._moments(_flat(inputs), training=False)
        lengths = inputs.at_locations(self._at_location)
        return tuple(
            grid.to_map((x - mean[:, k, None]) / deviation[:, k, None])
            for k, (grid, x) in enumerate(zip(inputs.grids, lengths, strict=True), 1)
        )

    def _moments(
        self, z: Float[Array, "b d"], *, training: bool
    ) -> tuple[Float[Array, "b r"], Float[Array, "b r"]]:
        """Mean and deviation of every score over the normals that each image is like."""
        distances = jnp.square(z[:, None] - self.centres[...]).sum(-1)
        group, k = distances.argmin(1), 0 if training else 1
        return self.mean[...][k, group], self.deviation[...][k, group]

    def _standardised(self, rows: Float[Array, "b r"], *, training: bool) -> Float[Array, "b 3"]:
        """The heads' scores from rows of z, density and local scores."""
        z, lengths = jnp.split(rows, [len(self.direction[...])], axis=1)
        mean, deviation = self._moments(z, training=training)
        raw = jnp.column_stack([lengths, self._seen(z)])
        scores = (raw - mean) / deviation
        return jnp.stack([scores[:, 0], scores[:, 1:-1].mean(1), scores[:, -1]], axis=1)

    def _rows(self, z: Float[Array, "b d"], local: Float[Array, "b scales"]) -> Float[Array, "b r"]:
        """Z, its length by the metric, and the local scores."""
        rows, side = self.metric.shape
        moved = z
        if rows:
            blocks = z.reshape(z.shape[0], rows // side, side)  # There may be no images.
            metric = self.metric[...].reshape(-1, side, side)
            moved = z + jnp.einsum("bpd,pde->bpe", blocks, metric).reshape(z.shape)
        density = _length(jnp.square(moved).sum(-1))
        return jnp.column_stack([z, density, local])

    def _at_location(self, locations: Float[Array, "*n l c"]) -> Float[Array, "*n l"]:
        precise = locations.astype(self.local_gain[...].dtype)
        return _length(jnp.square(precise) @ jnp.exp(2 * self.local_gain[...]))

    def _seen(self, z: Float[Array, "b d"]) -> Float[Array, " b"]:
        linear = z[:, : len(self.linear[...])] @ self.linear[...]
        return _unit(z) @ self.direction[...] + linear


def _share(labelled: int) -> float:
    """The prior's median of the factor of pseudo-anomalies: labelled ones make them matter less."""
    return 1 / (labelled + 2)


def _fitted_factors(
    normals: Float[Array, " n"],
    anomalies: Float[Array, " m"],
    of_normals: Float[Array, "n m"],
    of_anomalies: Float[Array, "m m"],
    pseudo_normals: Float[Array, " n"],
    pseudo_anomalies: Float[Array, " m"],
    ridge: Ridge,
) -> tuple[Float[Array, ""], Float[Array, "3"], Float[Array, ""]]:
    """By how well density + f x labelled + g x pseudo + h x linear tells anomalies left out.

    Each of the four is standardised over the normals. The priors' medians are m / (m + 1) for f,
    as few directions tell little, ``_share`` for g, and half of f's for h. The likelihood is the
    AUC-ROC of the m labelled anomalies against the normals, where an anomaly's score and the
    normals' are by what the other anomalies tell. The results are the posterior's geometric means,
    of f and g together without the linear score, then of h with these; one anomaly leaves the
    prior's median of f.

    Args:
        normals: standardised density scores of the normals, without their own part.
        anomalies: the same of the m labelled anomalies, one or more.
        of_normals: cosines between normals and anomalies, without the normals' own part.
        of_anomalies: cosines between the anomalies.
        pseudo_normals: mean cosines of the normals with pseudo-anomalies; 0 where there are none.
        pseudo_anomalies: those of the anomalies.
        ridge: the linear scores.

    Returns:
        The factor of all but density together, standardised; the shares of the pseudo-anomalies,
        of the labelled ones, which is 1, and of the linear score; and the AUC-ROC of anomalies
        left out.
    """
    m = len(anomalies)
    # Column i: the mean cosine with all anomalies but i.
    seen = (of_normals.sum(1, keepdims=True) - of_normals) / max(m - 1, 1)
    own = (of_anomalies.sum(1) - jnp.diagonal(of_anomalies)) / max(m - 1, 1)
    seen, own = _in_deviations(seen, own)
    made, made_own = _in_deviations(pseudo_normals, pseudo_anomalies)
    linear, linear_own = _in_deviations(ridge.without, ridge.own)

    def cosines(factors: Float[Array, "2"]) -> tuple[Float[Array, "n m"], Float[Array, " m"]]:
        f, g = factors
        return (normals + g * made)[:, None] + f * seen, anomalies + f * own + g * made_own

    def auc(scores: tuple[Float[Array, "n m"], Float[Array, " m"]]) -> Float[Array, ""]:
        return (scores[1] > scores[0]).mean()

    medians = jnp.array([m / (m + 1), _share(m)], seen.dtype)
    f, g = factors = _posterior_mean(lambda tried: auc(cosines(tried)), medians, m)
    base, base_own = cosines(factors)

    def all_together(h: Float[Array, "1"]) -> Float[Array, ""]:
        return auc((base + h * linear, base_own + h * linear_own))

    h = _posterior_mean(all_together, medians[:1] / 2, m)
    deviation = jnp.maximum(of_normals.mean(1).std(), _TINY)
    others = jnp.stack([pseudo_normals, of_normals.mean(1), ridge.unseen], axis=1)
    shares = jnp.stack([g, f, h[0]]) / f * deviation / jnp.maximum(others.std(0), _TINY)
    return f * (others @ shares).std() / deviation, shares, all_together(h)


def _posterior_mean(
    auc: Callable[[Float[Array, " k"]], Float[Array, ""]], medians: Float[Array, " k"], m: int
) -> Float[Array, " k"]:
    """The geometric mean of k factors by their priors and the AUC-ROC of m anomalies."""
    k = len(medians)
    grid = jnp.stack(jnp.meshgrid(*[jnp.asarray(_GRID, medians.dtype)] * k), -1).reshape(-1, k)
    fit = _EACH * m * jax.lax.map(auc, medians * jnp.exp(grid))
    weights = jax.nn.softmax(fit - jnp.square(grid / _SPREAD).sum(1) / 2)
    return medians * jnp.exp(weights @ grid)


def _in_deviations(
    normals: Float[Array, "n ..."], others: Float[Array, " m"]
) -> tuple[Float[Array, "n ..."], Float[Array, " m"]]:
    """Scores of normals and others, in standard deviations of the normals from their mean."""
    mean, deviation = normals.mean(0), jnp.maximum(normals.std(0), _TINY)
    return (normals - mean) / deviation, (others - mean) / deviation


def _largest_eigenvalue(z: Float[Array, "n d"]) -> Float[Array, ""]:
    """Of z^T z, by the smaller one of it and z z^T; positive where all are 0, too."""
    products = z.T @ z if z.shape[0] > z.shape[1] else z @ z.T
    return jnp.maximum(jnp.linalg.eigvalsh(products)[-1], _TINY)


def _flat(inputs: Inputs) -> Float[Array, "b d"]:
    """The pooled features, scale beside scale, then the next pooling's."""
    return inputs.pooled.reshape(*inputs.pooled.shape[:-2], -1)


def _length(squared: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.sqrt(squared + _TINY**2)


def _unit(z: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return z / _length(jnp.square(z).sum(-1, keepdims=True))
