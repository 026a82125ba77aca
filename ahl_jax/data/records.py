"""Images that are no files: records of prepared data sets, and arrays and bytes in memory."""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.common.files import read_file, read_json, user_folder
from ahl_jax.common.remote import url_of

VERSION = "1.0.0"
"""Raised when a builder comes to write something else from the same source."""

_FEATURES = "tensorflow_datasets.core.features"

_opening = threading.Lock()


@dataclass(frozen=True)
class Record:
    """One image of a prepared data set; its bytes are read when they are asked for.

    Attributes:
        folder: The prepared data set, which ``tfds.builder_from_directory`` reads too.
        split: ``train`` or ``test``.
        index: The record's number in the split.
        name: What the image is called in its source, with ``#i`` after it for the i-th part.
        size: Bytes of the encoded image.
    """

    folder: Path
    split: str
    index: int
    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.folder}/{self.split}/{self.index} ({self.name})"

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            BadImageError: if the prepared data set is damaged or gone.
        """
        return self._field("image")

    def ground_truth(self) -> bytes:
        """The encoded mask of its anomalous pixels; empty where it has none.

        Raises:
            BadImageError: as ``read`` does.
        """
        return self._field("ground_truth")

    def _field(self, name: str) -> bytes:
        try:
            field = _source(self.folder, self.split)[self.index][name]
            return field.encode() if isinstance(field, str) else bytes(field)
        except Exception as error:  # the readers raise nearly anything on damaged files
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BadImageError(
                f"{self} cannot be read ({reason}); delete {self.folder} and run ahl data prepare "
                "again"
            ) from error


@dataclass(frozen=True, eq=False)
class InMemory:
    """One image as an array, which ``ahl_jax.data.images.as_image`` takes.

    Attributes:
        name: What messages call it.
        array: The pixels.
    """

    name: str
    array: np.ndarray

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return self.array.nbytes

    def read(self) -> bytes:
        """Bytes that tell it from other arrays: dtype, shape and pixels."""
        return f"{self.array.dtype.str}{self.array.shape}".encode() + self.array.tobytes()


@dataclass(frozen=True, eq=False)
class Encoded:
    """One image as the bytes of a file.

    Attributes:
        name: What messages call it.
        content: The encoded image.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        """Bytes of the encoded image."""
        return len(self.content)

    def read(self) -> bytes:
        """The encoded image."""
        return self.content


ImageSource = Path | Record | InMemory | Encoded
"""A file, a record, an array or the bytes of a file."""


def data_folder() -> Path:
    """Where prepared data sets are: $AHL_DATA, else ahl_jax/data in the user's cache.

    Raises:
        UserError: if that is in object storage, or the user has no home.
    """
    folder = user_folder("AHL_DATA", "data")
    if url_of(folder):
        raise UserError(f"AHL_DATA is {folder}; it has to be a folder of this machine")
    return folder.absolute()


def prepared_folder(name: str, category: str | None = None) -> Path:
    """Where a data set, or one category of it, is once it is prepared."""
    return data_folder().joinpath(name, *([category] if category else []), VERSION)


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a prepared data set."""
    return (folder / "dataset_info.json").is_file()


def _source(folder: Path, split: str) -> Sequence[Mapping[str, Any]]:
    """Opens a split, once per process; reading from it needs no lock."""
    with _opening:
        return _open(folder, split)


@functools.cache
def _open(folder: Path, split: str) -> Sequence[Mapping[str, Any]]:
    _check_features(folder)
    # Imported late: only prepared data sets need it.
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder).as_data_source(split)


def _check_features(folder: Path) -> None:
    """Refuse features that no builder here writes: TFDS would import whatever module they name.

    Raises:
        ValueError: saying so.
    """
    whole = read_json(read_file(folder / "features.json").decode())
    parts = whole["featuresDict"]["features"].values()
    kinds = {whole["pythonClassName"]}, {part["pythonClassName"] for part in parts}
    names = {name for part in parts for name in part}
    splits = read_json(read_file(folder / "dataset_info.json").decode())["splits"]
    if (
        kinds != ({f"{_FEATURES}.features_dict.FeaturesDict"}, {f"{_FEATURES}.text_feature.Text"})
        or not {*whole} <= {"pythonClassName", "featuresDict"}
        or not names <= {"pythonClassName", "text", "description"}
        or any("/" in split.get("filepathTemplate", "") for split in splits)
    ):
        raise ValueError("it has features or files of another kind")
