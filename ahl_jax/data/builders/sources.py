"""Reading sources as they were downloaded: folders, images and parts of images."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.data.arrays import check_pixels
from ahl_jax.data.formats import SUFFIXES
from ahl_jax.data.images import check_image
from ahl_jax.data.masks import marked
from ahl_jax.data.pictures import opened

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

_DEPTH = 4


def find(folder: Path, is_root: Callable[[Path], bool]) -> Path | None:
    """The folder nearest below ``folder``, or itself, that passes a test; None if none does."""
    level = [folder]
    for _ in range(_DEPTH):
        for candidate in level:
            if is_root(candidate):
                return candidate
        level = [inner for outer in level for inner in subfolders(outer)]
    return None


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones, links and Apple's are left out."""
    if not folder.is_dir():
        return []
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.is_symlink() and not _is_litter(entry.name)
    )


def images(folder: Path) -> list[Path]:
    """The images right in a folder, sorted by name.

    Raises:
        UserError: if the folder is missing, or one of them is a link.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; download the data again")
    found = sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not _is_litter(entry.name)
    )
    for path in found:
        regular_file(path)
    return found


def regular_file(path: Path) -> Path:
    """The path, if a file is there.

    Raises:
        UserError: if there is none, or a link, which might lead anywhere.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a link; put the file itself there")
    if not path.is_file():
        raise UserError(f"{path} is missing; download the data again")
    return path


def text_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        UserError: if it is missing or no text.
    """
    try:
        return regular_file(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); download the data again") from error


def whole(path: Path) -> Callable[[], bytes]:
    """Reads a file as it is, after making sure that it is an image."""
    return functools.partial(_whole, path)


def mask_of(path: Path, mask: Path) -> Callable[[], bytes]:
    """Reads a mask as it is, after making sure that it is an image, and of the size of its own."""
    return functools.partial(_mask_of, path, mask)


def part(path: Path, box: Box) -> Callable[[], bytes]:
    """Cuts a box out of an image, as PNG."""
    return functools.partial(_part, path, box)


def mask_part(paths: Sequence[Path], box: Box) -> Callable[[], bytes]:
    """Cuts a box out of the union of masks, as PNG with the values 0 and 255."""
    return functools.partial(_mask_part, tuple(paths), box)


def size(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its header."""
    with _opened(path) as image:
        return image.size


def union(paths: Sequence[Path], expected: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Where any of an image's masks is not black.

    Raises:
        UserError: if a mask cannot be read, or is not of the image's size.
    """
    return _union(tuple(paths), expected)


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _whole(path: Path) -> bytes:
    content = regular_file(path).read_bytes()
    try:
        check_image(path)
    except BadImageError as error:
        raise UserError(
            str(error).partition("; replace")[0] + "; download the data again"
        ) from error
    return content


def _mask_of(path: Path, mask: Path) -> bytes:
    _check_size(mask, size(mask), size(path))
    return _whole(mask)


def _check_size(mask: Path, found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise UserError(
            f"{mask} has {found[0]} x {found[1]} pixels, and the image it belongs to has "
            f"{expected[0]} x {expected[1]}; download the data again"
        )


def _part(path: Path, box: Box) -> bytes:
    return _png(_decoded(path).crop(box))


def _mask_part(paths: tuple[Path, ...], box: Box) -> bytes:
    whole_mask = Image.fromarray(_union(paths, size(paths[0])).astype(np.uint8) * 255)
    return _png(whole_mask.crop(box))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@functools.lru_cache(maxsize=4)  # the parts of an image follow one another, mostly
def _decoded(path: Path) -> Image.Image:
    with _opened(path) as image:
        return image.copy()


@functools.lru_cache(maxsize=4)
def _union(paths: tuple[Path, ...], expected: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    found = np.zeros(expected[::-1], bool)
    for path in paths:
        image = _decoded(path)
        _check_size(path, image.size, expected)
        found |= marked(image)
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with opened(regular_file(path), lambda image: check_pixels(*image.size)) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = "not an image" if "cannot identify" in str(error) else str(error)
    return UserError(f"{path} cannot be read as an image ({reason}); download the data again")
