"""Images -> feature maps, kept in a store on disk.

``extract`` and ``extract_pseudo`` compute only what the store lacks, so a run that was killed goes
on where it was, and runs that differ in what comes after the trunk share their features.
"""

from ahl_jax.common.files import default_folder
from ahl_jax.features.images import extract
from ahl_jax.features.maps import FeatureMaps
from ahl_jax.features.pseudo import PseudoFeatures, extract_pseudo
from ahl_jax.features.store import Store

__all__ = [
    "FeatureMaps",
    "PseudoFeatures",
    "Store",
    "default_folder",
    "extract",
    "extract_pseudo",
]
