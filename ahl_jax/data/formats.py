"""The formats of images: their names, and the libraries that read them."""

import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, features

_HEAD = 132
"""Bytes that a format of another package is told by."""


@dataclass(frozen=True)
class Format:
    """A format of image files."""

    name: str
    """As Pillow has it, except for NumPy's."""

    suffixes: tuple[str, ...]
    """In lower case."""

    feature: str | None = None
    """The part of Pillow that reads it, if Pillow can be without."""

    package: str | None = None
    """The package that teaches Pillow to read it."""

    mark: tuple[int, bytes] = (0, b"")
    """Where in the file which bytes are, if it takes a package."""

    @property
    def is_read(self) -> bool:
        """Whether it can be read here."""
        if self.package:
            return importlib.util.find_spec(self.package.replace("-", "_")) is not None
        # A Pillow from before the feature does not know its name.
        known = {**features.modules, **features.codecs}
        return self.feature is None or bool(self.feature in known and features.check(self.feature))

    @property
    def remedy(self) -> str:
        """The command after which it can be read."""
        return f"pip install {self.package or '--upgrade pillow'}"


# None of these has a decoder that runs programs or writes files, as Pillow's for EPS has.
FORMATS = (
    Format("PNG", (".png",)),
    Format("JPEG", (".jpg", ".jpeg")),
    Format("BMP", (".bmp",)),
    Format("TIFF", (".tif", ".tiff")),
    Format("GIF", (".gif",)),
    Format("WEBP", (".webp",), feature="webp"),
    Format("AVIF", (".avif",), feature="avif"),
    Format("JPEG2000", (".jp2", ".j2k", ".jpf", ".jpx"), feature="jpg_2000"),
    Format("HEIF", (".heic", ".heif", ".hif"), package="pillow-heif", mark=(4, b"ftyp")),
    Format("DICOM", (".dcm", ".dicom"), package="pydicom", mark=(128, b"DICM")),
    Format("NPY", (".npy",)),
)
"""All that are known."""

_READ = tuple(each for each in FORMATS if each.is_read)

ENCODED = tuple(each.name for each in _READ if each.name != "NPY")
"""The names of those that are read through Pillow."""

SUFFIXES = frozenset(suffix for each in _READ for suffix in each.suffixes)
"""The extensions of images that can be read, in lower case."""

_MISSING = {suffix: each for each in FORMATS if each not in _READ for suffix in each.suffixes}

_NO_IMAGES = frozenset(
    (".csv", ".db", ".htm", ".html", ".ini", ".json", ".log", ".md", ".tsv", ".txt", ".xml",
     ".yaml", ".yml")
)  # fmt: skip
"""What lies beside images, and is none."""


def open_encoded(file: IO[bytes], formats: Sequence[str]) -> Image.Image:
    """An image as Pillow opens it; packages are loaded for the formats that take them alone.

    Raises:
        Exception: nearly any, as decoders do on damaged files.
    """
    head = file.read(_HEAD)
    file.seek(0)
    known = [
        each
        for each in _READ
        if each.name in formats and head[each.mark[0] :].startswith(each.mark[1])
    ]
    for each in known:
        if each.name == "HEIF":
            import pillow_heif

            pillow_heif.register_heif_opener()
        elif each.name == "DICOM":
            from ahl_jax.data import dicom

            dicom.register()
    return Image.open(file, formats=[each.name for each in known])


def is_unread(path: Path) -> bool:
    """Whether a file may be an image, but is in no format that can be read."""
    return may_be_image(path) and path.suffix.lower() not in SUFFIXES and path.is_file()


def may_be_image(path: Path) -> bool:
    """Whether the name of a file does not say that it is something else."""
    return path.name[0] != "." and path.suffix.lower() not in _NO_IMAGES


def remedy(path: str | Path) -> str:
    """The command after which a file of that name can be read; empty if there is none."""
    missing = _MISSING.get(Path(path).suffix.lower())
    return missing.remedy if missing else ""


def unread_in_words(paths: Iterable[Path]) -> str:
    """Of some files those that ``is_unread``, counted by suffix; empty where there are none."""
    counts = Counter(path.suffix.lower() for path in set(paths) if is_unread(path))
    said = []
    for suffix, number in counts.most_common():
        how = remedy(f"x{suffix}")
        said.append(f"{number} {suffix or 'without a suffix'}" + (f" ({how})" if how else ""))
    return f"skipped {', '.join(said)}" if said else ""


def warn_of_unread(paths: Iterable[Path], where: Path) -> None:
    """Warn of the files that were passed over in a data set."""
    if said := unread_in_words(paths):
        warnings.warn(f"{said} in {where}", stacklevel=2)
