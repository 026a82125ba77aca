"""Images -> arrays: one reader for all formats."""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from ahl_jax.common.errors import BadImageError, InputError
from ahl_jax.data.arrays import (
    Fit,
    Placement,
    channels_checked,
    check_pixels,
    levels,
    placed,
    resized,
)
from ahl_jax.data.formats import ENCODED, remedy
from ahl_jax.data.frame import CropError, Frame, square
from ahl_jax.data.pictures import mode_of, opened, sideways, turn_of, upright, values_of
from ahl_jax.data.records import ImageSource, InMemory

Picture = Path | str | Image.Image | np.ndarray
"""An image: a file, or what has been read from one."""

_SKIPPING = ", or leave such files out with `skip_bad_images=True`"


def read_image(path: ImageSource, frame: Frame | int) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image as RGB, brought to the size of a frame.

    It is scaled with an antialiased bilinear filter; unless the frame keeps it, the aspect ratio is
    lost. The EXIF orientation is applied, unless the EXIF is damaged. Grey becomes three equal
    channels, a palette its colours, and an alpha channel is dropped. Of a file with several pages
    the first is read.

    Values become 0 to 255: uint8 stays, bool and 1-bit images become 0 and 255, and 16-bit values
    are divided by 257. So are whole numbers of 32 bits, unless none is above 255. Floating point
    must be finite and not negative; it counts as 0 to 1 where no value is above 1, and as 0 to 255
    otherwise.

    A ``.npy`` file holds an array of shape [h, w], [h, w, 1] or [h, w, c] with c >= 3, of which
    the first three channels are read; pickled objects in it are never loaded.

    Args:
        path: A file in one of ``ahl_jax.data.formats.FORMATS``, such a record, or an array; what
            decides between all formats but ``.npy`` is the content, not the name.
        frame: The part of the image that is wanted and its size; a number is the side in pixels
            that all of it is brought to.

    Raises:
        BadImageError: if the file is missing, damaged or empty, is not an image, has more than
            ``MAX_PIXELS`` pixels, its values are not as above, or the frame's crop goes beyond it.
    """
    return _read(path, _fit(frame))


def read_display(path: ImageSource, longest: int = 512) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image as ``read_image`` does, but as it is to be looked at.

    Args:
        path: as for ``read_image``.
        longest: pixels that the longer side has at most; the aspect ratio is kept.

    Raises:
        BadImageError: as by ``read_image``.
    """

    def fit(width: int, height: int) -> Placement:
        share = min(1, longest / max(width, height))
        return _stretched(max(1, round(width * share)), max(1, round(height * share)))

    return _read(path, fit)


def read_pixels(path: ImageSource) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image as ``read_image`` does, in the size that it has.

    Raises:
        BadImageError: as by ``read_image``.
    """
    return _read(path, _stretched)


def image_mode(path: ImageSource) -> str:
    """What the pixels of an image are, in words: grey, RGB, with alpha, 16 bit and the like.

    Args:
        path: an image that ``read_image`` reads; only its head is decoded.

    Raises:
        BadImageError: as by ``read_image``.
    """
    with _told(path):
        if _is_array(path):
            return _mode_of_array(_array(path))
        with opened(_source(path)) as image:
            return mode_of(image)


def as_image(picture: Picture, frame: Frame | int, name: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """An image as ``read_image`` gives it.

    Args:
        picture: a file, a PIL image, or an array as a ``.npy`` file may hold.
        frame: as for ``read_image``.
        name: What messages call an image that is no file; by default its type.

    Raises:
        BadImageError: as by ``read_image``.
    """
    if isinstance(picture, Path | str):
        try:
            return read_image(Path(picture), frame)
        except BadImageError as error:
            raise BadImageError(without_skipping(str(error))) from error
    return _from_memory(picture, _fit(frame), name)


def image_list(images: Any) -> list[Any]:
    """Several images as a list of them.

    Args:
        images: a sequence or iterator of images or their paths, a column of a table, or an array of
            images [n, h, w] or [n, h, w, c].

    Raises:
        InputError: if it is one image, or none of these.
    """
    if isinstance(images, str | bytes | Path | Image.Image):
        what = "one image"
    elif hasattr(images, "__array__"):  # tables, and arrays of other libraries too
        array = np.asarray(images)
        if array.dtype.kind in "OUT" and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        # A side of up to four pixels is taken for channels.
        if array.ndim in (1, 4) or (array.ndim == 3 and array.shape[2] > 4):
            return list(array)
        what = f"an array of shape {array.shape}"
    elif isinstance(images, Iterator | Sequence):
        return list(images)
    else:
        what = f"an object of type {type(images).__name__}"
    raise InputError(
        f"{what} is no list of images; put one image in a list, as in [image], and give one column "
        "of a table"
    )


def path_or_array(picture: Any, name: str) -> Path | Shaped[np.ndarray, "..."]:
    """A file, or else the pixels of an image the right way up, as ``as_image`` takes them.

    Args:
        picture: a ``Picture``, or what NumPy makes an array of.
        name: What messages call it.

    Raises:
        BadImageError: as by ``read_image``.
    """
    if isinstance(picture, str | Path):
        return Path(picture)
    if not isinstance(picture, Image.Image):
        return np.asarray(picture)
    try:
        return values_of(upright(picture))
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _no_image(name, error) from error


def check_image(path: Path) -> None:
    """Decodes an image, to find out whether it can be read.

    Raises:
        BadImageError: as by ``read_image``.
    """
    read_image(path, 8)


def seen_size(path: ImageSource) -> tuple[tuple[int, int], Image.Transpose | None]:
    """Width and height of an image as it is seen, and the turn by its EXIF that is in them.

    Raises:
        BadImageError: as by ``read_image``.
    """
    with _told(path):
        if _is_array(path):
            height, width = channels_checked(_array(path)).shape[:2]
            return (width, height), None
        with opened(_source(path), turn_of) as image:
            width, height = image.size
            return (height, width) if sideways(image) else (width, height), turn_of(image)


def image_size(path: ImageSource) -> int:
    """The number of bytes of an encoded image.

    Raises:
        OSError: if there is no such file.
    """
    return path.stat().st_size if isinstance(path, Path) else path.size


def without_skipping(message: str) -> str:
    """The message on a bad image, without the advice to skip it that only data sets can take."""
    return message.removesuffix(_SKIPPING)


def image_digest(path: ImageSource) -> str:
    """The SHA-256 of the encoded image's bytes, in hexadecimal.

    Raises:
        BadImageError: if it cannot be read.
    """
    if not isinstance(path, Path):
        return hashlib.sha256(path.read()).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadImageError(
            f"{path} cannot be read ({error.strerror}); replace the file{_SKIPPING}"
        ) from error


def _fit(frame: Frame | int) -> Fit:
    return (square(frame) if isinstance(frame, int) else frame).place


def _stretched(width: int, height: int) -> Placement:
    return Placement((width, height), (width, height))


def _read(path: ImageSource, fit: Fit) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(path, InMemory):
        return _from_memory(path.array, fit, path.name)
    with _told(path):
        if _is_array(path):
            if not image_size(path):
                raise ValueError("empty file")
            return _from_array(_array(path), fit)
        return _read_picture(path, fit)


def _is_array(path: ImageSource) -> bool:
    return isinstance(path, InMemory) or Path(path.name).suffix.lower() == ".npy"


@contextlib.contextmanager
def _told(path: ImageSource) -> Iterator[None]:
    """Whatever goes wrong in reading an image becomes a sentence about it."""
    try:
        yield
    except BadImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _bad(path, error) from error


def _from_memory(
    picture: Image.Image | np.ndarray, fit: Fit, name: str
) -> UInt8[np.ndarray, "h w 3"]:
    try:
        if isinstance(picture, Image.Image):
            return _from_picture(picture, fit)
        return _from_array(np.asarray(picture), fit)
    except Exception as error:
        raise _no_image(name or type(picture).__name__, error) from error


def _no_image(name: str, error: Exception) -> BadImageError:
    if isinstance(error, CropError):
        return BadImageError(_beyond(name, error))
    return BadImageError(
        f"{name} is no image ({error}); give a file, a PIL image, or an array [h, w], [h, w, 1] or "
        "[h, w, 3]"
    )


def _beyond(name: object, error: CropError) -> str:
    return f"{name} has {error}; train with a `crop` that is within them"


def _bad(path: ImageSource, error: Exception) -> BadImageError:
    if isinstance(error, CropError):
        return BadImageError(f"{_beyond(path, error)}{_SKIPPING}")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower()
    elif isinstance(error, UnidentifiedImageError):
        reason = f"not a {', '.join(ENCODED[:-1])} or {ENCODED[-1]} file"
        if not image_size(path):
            reason = "empty file"
        elif how := remedy(path.name):
            reason = f"to read such files, run {how}"
    return BadImageError(
        f"{path} cannot be read as an image ({reason}); replace the file{_SKIPPING}"
    )


def _source(path: ImageSource) -> Path | io.BytesIO:
    return path if isinstance(path, Path) else io.BytesIO(path.read())


def _mode_of_array(array: np.ndarray) -> str:
    if array.dtype.kind == "f":
        return "floating point"
    if array.dtype.itemsize > 1:
        return "16 bit"
    channels = array.shape[2] if array.ndim > 2 else 1
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def _read_picture(path: ImageSource, fit: Fit) -> UInt8[np.ndarray, "h w 3"]:
    def decode(image: Image.Image) -> None:
        check_pixels(image.width, image.height)
        # Lets the JPEG decoder scale down by a power of two as it decodes, to no less than twice
        # the size wanted.
        turned = sideways(image)
        place = fit(*reversed(image.size)) if turned else fit(*image.size)
        # Of a HEIF it would take a small picture beside the image, which may show another.
        if place.box is None and image.format != "HEIF":
            width, height = reversed(place.size) if turned else place.size
            image.draft(None, (2 * width, 2 * height))
        image.load()

    with opened(_source(path), decode) as image:
        return _from_picture(image, fit)


def _from_picture(picture: Image.Image, fit: Fit) -> UInt8[np.ndarray, "h w 3"]:
    picture = upright(picture)
    if picture.mode.startswith(("I", "F")):
        return _from_array(values_of(picture), fit)
    # As for an array of its pixels, without the copies.
    return np.array(placed(picture.convert("RGB"), fit(picture.width, picture.height)))


def _from_array(array: Shaped[np.ndarray, "..."], fit: Fit) -> UInt8[np.ndarray, "h w 3"]:
    return resized(levels(np.asarray(channels_checked(array))), fit)


def _array(path: ImageSource) -> np.ndarray:
    """The array that is in memory or in a ``.npy`` file."""
    if isinstance(path, InMemory):
        return path.array
    return _mapped(path) if isinstance(path, Path) else _npy_in(path.read())


def _mapped(path: Path) -> np.ndarray:
    # Mapping the file reads nothing yet, and refuses pickled objects and files that are too short.
    return np.lib.format.open_memmap(path, mode="r")


def _npy_in(content: bytes) -> np.ndarray:
    """The array of a ``.npy`` file, in place; pickled objects and short files are refused."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.ndarray(shape, dtype, content, file.tell(), order=order)
