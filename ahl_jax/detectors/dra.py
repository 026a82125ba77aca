"""DRA: disentangled representations of abnormality, four heads on the same features."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.config import DetectorConfig
from ahl_jax.detectors.heads import WeightedBatchNorm, top_mean
from ahl_jax.detectors.inputs import PATCH, Inputs, Scale
from ahl_jax.detectors.protocol import DeviationDetector, Head


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
        Head("normality", targets=(1, 0, 0), sign=-1),
    )

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        # One product for both heads reads the locations once; the columns share nothing.
        self.locate = nnx.Linear(channels, 2, rngs=rngs)
        # Batch norm takes any bias out again; what Adam makes of its rounding would drift.
        self.residual = nnx.Linear(PATCH**2 * channels, channels, use_bias=False, rngs=rngs)
        self.norm = WeightedBatchNorm(channels)
        self.residual_out = nnx.Linear(channels, 1, rngs=rngs)
        self.normality = nnx.Linear(channels, config.hidden, rngs=rngs)
        self.normality_out = nnx.Linear(config.hidden, 1, rngs=rngs)
        self.top_k = config.top_k
        self.margin = config.margin

    def _abnormality(self, scale: Scale) -> Float[Array, "b l 2"]:
        return jnp.abs(self.locate(scale.locations))

    def _residual(
        self, scale: Scale, reference: Scale, weights: Float[Array, " b"] | None
    ) -> Float[Array, "b p"]:
        difference = reference.patches() - scale.patches()
        hidden = jax.nn.relu(self.norm(self.residual(difference), weights))
        return jnp.abs(self.residual_out(hidden)[..., 0])

    def _normality(self, pooled: Float[Array, "b c"]) -> Float[Array, " b"]:
        return self.normality_out(jax.nn.relu(self.normality(pooled)))[:, 0]

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 4"]:
        """Scores in the order of ``heads``, the mean over scales."""
        scales = []
        for scale, normal in zip(inputs, reference, strict=True):
            seen_pseudo = top_mean(self._abnormality(scale).swapaxes(1, 2), self.top_k)
            residual = top_mean(self._residual(scale, normal, weights), self.top_k)
            normality = self._normality(scale.pooled)
            scales.append(
                jnp.concatenate([seen_pseudo, residual[:, None], normality[:, None]], axis=1)
            )
        return jnp.stack(scales).mean(0)

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """Seen + pseudo + residual of every location; normality belongs to the whole image."""
        maps = []
        for scale, normal in zip(inputs, reference, strict=True):
            residual = scale.grid.spread(self._residual(scale, normal, None))
            maps.append(scale.grid.to_map(self._abnormality(scale).sum(-1)) + residual)
        return tuple(maps)
