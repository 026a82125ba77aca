"""A data set that ``ahl data prepare`` has written, image by image as records."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import read_file, read_json
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.records import Record, data_folder, is_prepared, prepared_folder
from ahl_jax.data.types import Dataset


def load(config: DataConfig) -> Dataset:
    """The records of a prepared data set, or of one category of it.

    Raises:
        UserError: if it is not prepared, or damaged, or the category is missing or unknown.
    """
    folder = _folder(config.data, config.category)
    found: dict[str, dict[str, list[Record]]] = {}
    for split, manifest in read_manifest(folder).items():
        found[split] = defaultdict(list)
        for index, (name, anomaly_class, size) in enumerate(manifest["images"]):
            found[split][anomaly_class].append(Record(folder, split, index, name, size))
    return Dataset(
        name=config.category or config.data,
        train_normals=tuple(found["train"][""]),
        test_normals=tuple(found["test"].pop("", ())),
        anomalies={name: tuple(found["test"][name]) for name in sorted(found["test"])},
    )


def prepared_categories(name: str) -> list[str]:
    """The categories of a data set that are prepared, sorted."""
    home = data_folder() / name
    if not home.is_dir():
        return []
    return sorted(
        entry.name for entry in home.iterdir() if is_prepared(prepared_folder(name, entry.name))
    )


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """A prepared data set's record of its splits: ``counts``, ``sha256`` and ``images``.

    An image is a list of its name, its anomaly class (empty for normal) and its size in bytes.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        manifest = read_json(read_file(folder / "metadata.json").decode())
        found = {split: manifest[split] for split in ("train", "test")}
        for name, kind, size in (image for split in found.values() for image in split["images"]):
            if not (isinstance(name, str) and isinstance(kind, str) and isinstance(size, int)):
                raise ValueError(f"its image {name} is none")
        return found
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"the prepared data set in {folder} is damaged ({error}); delete that folder and run "
            "ahl data prepare again"
        ) from error


def _folder(name: str, category: str | None) -> Path:
    whole = prepared_folder(name)
    if is_prepared(whole):
        if category is not None:
            raise UserError(f"{name} has no categories; leave out `category={category!r}`")
        return whole
    categories = prepared_categories(name)
    # A look-up among what is there, so that no name can lead out of the folder.
    if category in categories:
        return prepared_folder(name, category)
    there = ", ".join(categories)
    if categories and category is None:
        raise UserError(f"{name} has several categories; choose one with `category`: {there}")
    wanted = name if category is None else f"category {category!r} of {name}"
    also = f" (prepared are: {there})" if categories else ""
    folder = f", or write ./{name} for the folder here" if Path(name).is_dir() else ""
    raise UserError(
        f"{wanted} is not prepared in {data_folder()}{also}; run: ahl data prepare {name} "
        f"--manual-dir FOLDER{folder}"
    )
