"""Trunks: pretrained networks that turn images into feature maps.

A new trunk is one module beside this one (an NNX module like ``ResNet18``) and one line in
``TRUNKS``.
"""

from ahl_jax.backbones.folding import Unfolded
from ahl_jax.backbones.loading import (
    download_weights,
    import_weights,
    imported_file,
    load_trunk,
    weights_files,
)
from ahl_jax.backbones.trunk import TRUNKS, Trunk, folded_trunk, products_in, trunk_from_params
from ahl_jax.backbones.weights import read_torch_weights

__all__ = [
    "TRUNKS",
    "Trunk",
    "Unfolded",
    "download_weights",
    "folded_trunk",
    "import_weights",
    "imported_file",
    "load_trunk",
    "products_in",
    "read_torch_weights",
    "trunk_from_params",
    "weights_files",
]
