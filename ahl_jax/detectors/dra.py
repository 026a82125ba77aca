"""DRA: disentangled representations of abnormality, four heads on the same features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.backbones.batch_norm import WeightedBatchNorm
from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors.heads import FeatureLinear, top_mean, top_mean_of
from ahl_jax.detectors.inputs import PATCH, Inputs
from ahl_jax.detectors.protocol import DeviationDetector, Head

PatchScore = Callable[[Float[Array, "b p c"]], Float[Array, "b p"]]


class DRA(DeviationDetector):
    """Seen, pseudo and latent residual abnormality, and normality.

    score = seen + pseudo + residual - normality, each the mean over the scales. The heads share
    their weights over the scales. The residual head's 3x3 convolution has stride 3 and no padding,
    so it is a matrix product over non-overlapping patches.
    """

    table = (
        Head("seen", targets=(0, 1, None)),
        Head("pseudo", targets=(0, None, 1)),
        Head("residual", targets=(0, 1, 1)),
        Head("normality", targets=(1, 0, 0), factor=-1),
    )

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        # One product for both heads reads the locations once; the columns share nothing.
        self.locate = FeatureLinear(channels, 2, rngs=rngs)
        # Batch norm takes any bias out again; what Adam makes of its rounding would drift.
        self.residual = FeatureLinear(PATCH**2 * channels, channels, use_bias=False, rngs=rngs)
        self.norm = WeightedBatchNorm(channels)
        self.residual_out = nnx.Linear(channels, 1, rngs=rngs)
        self.normality = FeatureLinear(channels, config.hidden, rngs=rngs)
        self.normality_out = nnx.Linear(config.hidden, 1, rngs=rngs)
        self.top_k = config.top_k
        self.margin = config.margin

    def _abnormality(self, inputs: Inputs) -> tuple[Float[Array, "b l 2"], ...]:
        """Of each scale, the seen and the pseudo score of every location."""
        return inputs.at_locations(lambda x: jnp.abs(self.locate(x)))

    def _residual(
        self, inputs: Inputs, reference: Inputs, weights: Float[Array, " b"] | None
    ) -> list[tuple[Float[Array, "b p c"], PatchScore]]:
        """Of each scale, the hidden features of the patches, and the score of such features."""
        scales = self._compared(inputs, reference)
        # Batch norm has moments of its own for each scale.
        return [(hidden, self._patch_score(self.norm(hidden, weights))) for hidden in scales]

    def _compared(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b p c"], ...]:
        """The residual layer of the reference's patches less the images', scale by scale.

        It is linear, so the difference may be taken before it or behind. The former is one more
        pass over the patches, for which TPUs copy them into another layout; the latter has the
        reference's own product, and its gradient, for which a CPU takes 1 to 5 % longer.
        """
        if jax.default_backend() == "tpu":
            of_reference = self.residual(reference.patches)
            return inputs.at_patches(lambda patches: of_reference - self.residual(patches))
        return inputs.at_patches(lambda patches: self.residual(reference.patches - patches))

    def _patch_score(self, normalise: Callable[[Array], Array]) -> PatchScore:
        return lambda h: jnp.abs(self.residual_out(jax.nn.relu(normalise(h)))[..., 0])

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 4"]:
        """Scores in the order of ``heads``, the mean over scales."""
        abnormality = [top_mean(x.swapaxes(1, 2), self.top_k) for x in self._abnormality(inputs)]
        residual = [
            top_mean_of(score, hidden, self.top_k)[:, None]
            for hidden, score in self._residual(inputs, reference, weights)
        ]
        normality = self.normality_out(jax.nn.relu(self.normality(inputs.pooled)))
        means = [jnp.stack(scales).mean(0) for scales in (abnormality, residual)]
        return jnp.concatenate([*means, normality.mean(1)], axis=1)

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """Seen + pseudo + residual of every location; normality belongs to the whole image."""
        parts = (inputs.grids, self._abnormality(inputs), self._residual(inputs, reference, None))
        return tuple(
            grid.to_map(seen_pseudo.sum(-1)) + grid.spread(score(hidden))
            for grid, seen_pseudo, (hidden, score) in zip(*parts, strict=True)
        )
