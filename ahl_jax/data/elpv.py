"""ELPV: electroluminescence images of solar cells, from the PyPI package ``elpv-dataset``.

A cell is normal where the experts' defect probability is 0 and an anomaly where it is 1; the cells
in between are not used. The classes are the cell types, mono- and polycrystalline. The source has
no split, so its normals are split 75/25 in its own order: 1,131 to train on and 377 to test on.
"""

import importlib.util
from pathlib import Path

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.splits import split_normals
from ahl_jax.data.types import Dataset


def load(config: DataConfig) -> Dataset:
    """The ELPV data set, read from the installed package without importing it.

    Raises:
        UserError: if the package is missing or has no labels, or a category is asked for.
    """
    if config.category is not None:
        raise UserError(f"elpv has no categories; leave out `category={config.category!r}`")
    root = _package_folder() / "data"
    labels = root / "labels.csv"
    try:
        rows = [line.split() for line in labels.read_text("utf-8").splitlines() if line.strip()]
        cells = [(root / image, float(probability), kind) for image, probability, kind in rows]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{labels} cannot be read ({error}); "
            "run: pip install --force-reinstall --no-deps elpv-dataset"
        ) from error
    normals = [path for path, probability, _ in cells if probability == 0]
    train, test = split_normals(normals)
    defects = [(path, kind) for path, probability, kind in cells if probability == 1]
    return Dataset(
        name="elpv",
        train_normals=tuple(train),
        test_normals=tuple(test),
        anomalies={
            kind: tuple(path for path, other in defects if other == kind)
            for kind in sorted({kind for _, kind in defects})
        },
    )


def _package_folder() -> Path:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the data set elpv is not installed; run: pip install elpv-dataset")
    return Path(spec.submodule_search_locations[0])
