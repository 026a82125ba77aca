"""Ground truth: which pixels of an anomaly are anomalous, where a data set says so.

Prepared data sets have it in their records. In MVTec layout the mask of
``ROOT/test/CLASS/NAME.png`` is ``ROOT/ground_truth/CLASS/NAME_mask.png``; in VisA's that of
``Data/Images/Anomaly/NAME.JPG`` is ``Data/Masks/Anomaly/NAME.png``. Either may end in ``_mask``,
``_gt``, ``_label`` or none of them, in the suffix of any of ``_FORMATS``, and in capitals or not.
A CSV file may list the masks of its images instead.
"""

import functools
import io
import logging
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError

from ahl_jax.common.errors import BadImageError
from ahl_jax.common.files import is_inside
from ahl_jax.common.text import counted
from ahl_jax.data.arrays import check_pixels
from ahl_jax.data.folder import listed
from ahl_jax.data.formats import SUFFIXES
from ahl_jax.data.images import seen_size
from ahl_jax.data.pictures import opened, turn_of
from ahl_jax.data.records import ImageSource, Record
from ahl_jax.data.table import masks
from ahl_jax.data.types import Sample

log = logging.getLogger(__name__)

MaskSource = Path | Record
"""Where a mask is: a file, or the record of its image."""

_FOLDERS = {"test": "ground_truth", "train": "ground_truth", "Images": "Masks"}
"""The folder with the images -> the one beside it with their masks."""

_FORMATS = ("PNG", "BMP", "TIFF")
_KINDS = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_ENDINGS = ("_mask", "", "_gt", "_label")
_SHOWN = 3


def find_masks(images: Sequence[ImageSource], root: Path) -> dict[int, MaskSource]:
    """The masks of images, by the positions of those that have one.

    Args:
        images: any of the data set's.
        root: the data set's folder, or the file in it that lists the images; a mask that a link
            takes out of that folder is none.
    """
    inside = _folder(root)
    # The data may be named by another path here than where its images were listed.
    listed_in = masks(root) if root.is_file() else {}
    named = {image.resolve(): mask for image, mask in listed_in.items()}
    # Folders may hold thousands of masks, so each is looked up and listed once.
    folder_of, files_in = functools.cache(_mask_folder), functools.cache(_mask_files)
    found: dict[int, MaskSource] = {}
    for i, image in enumerate(images):
        if isinstance(image, Record):
            if image.ground_truth():
                found[i] = image
        elif isinstance(image, Path) and named and image.resolve() in named:
            found[i] = named[image.resolve()]
        elif isinstance(image, Path) and (folder := folder_of(image.parent, inside)):
            files, stem = files_in(folder), _composed(image.stem)
            names = [name + ending for name in (stem, stem.casefold()) for ending in _ENDINGS]
            path = next((files[name] for name in names if name in files), None)
            if path and is_inside(path, inside):
                found[i] = path
    return found


def masks_of(samples: Sequence[Sample], root: Path) -> dict[int, MaskSource]:
    """``find_masks`` of the anomalies alone: normals have no anomalous pixels."""
    where = [i for i, sample in enumerate(samples) if sample.anomaly_class is not None]
    found = find_masks([samples[i].path for i in where], root)
    return {where[i]: mask for i, mask in found.items()}


def warn_of_unused(images: Sequence[ImageSource], root: Path) -> None:
    """Name folders of masks that belong to none of the images.

    Args:
        images: those with labels, normals too.
        root: as for ``find_masks``.

    Raises:
        UserError: if a folder may not be listed.
    """
    files = [image for image in images if isinstance(image, Path)]
    places = (_home(parent, _folder(root)) for parent in {image.parent for image in files})
    homes = {place[1] for place in places if place}
    used = {mask.parent for mask in find_masks(files, root).values() if isinstance(mask, Path)}
    unused = sorted({folder for home in homes for folder in _folders_of_images(home)} - used)
    if unused:
        more = f" and {counted(len(unused) - _SHOWN, 'other')}" if len(unused) > _SHOWN else ""
        log.warning(
            "no file in %s%s is the mask of an image; give masks the folders and names of their "
            "images, such as ground_truth/CLASS/NAME_mask.png for test/CLASS/NAME.png, as %s",
            ", ".join(map(str, unused[:_SHOWN])),
            more,
            _KINDS,
        )


def marks(
    samples: Sequence[Sample], masks: Mapping[int, MaskSource]
) -> Iterator[Bool[np.ndarray, "h w"] | None]:
    """The anomalous pixels of each image; None for anomalies of which none is marked.

    Warns of masks in which nothing is marked.

    Args:
        samples: the images.
        masks: ``masks_of`` them.

    Raises:
        BadImageError: as ``read_mask`` does.
    """
    empty = []
    for i, sample in enumerate(samples):
        if sample.anomaly_class is None:
            yield np.zeros(seen_size(sample.path)[0][::-1], bool)
        elif i not in masks:
            yield None
        else:
            mask = read_mask(sample.path, masks[i])
            if mask is None:
                empty.append(masks[i])
            yield mask
    if empty:
        log.warning(
            "%s of anomalies, such as %s, left out of the pixel metrics: nothing is marked, "
            "as all is black",
            counted(len(empty), "mask"),
            empty[0],
        )


def read_mask(image: ImageSource, mask: MaskSource) -> Bool[np.ndarray, "h w"] | None:
    """The anomalous pixels of an image, at the size and the way up that it is seen.

    All that is not seen as black is marked; what is transparent is not. A mask is turned by its own
    EXIF. One without is as the image is seen, unless only the image's turn makes its size fit.

    Args:
        image: the image of an anomaly.
        mask: its mask, as ``find_masks`` gives it.

    Returns:
        None where nothing is marked.

    Raises:
        BadImageError: if the mask cannot be read, or has another size than the image.
    """
    content = io.BytesIO(mask.ground_truth()) if isinstance(mask, Record) else mask
    seen, turn = seen_size(image)
    try:
        with opened(content, _decode, _FORMATS) as picture:
            own = turn_of(picture)
            # Of the turns only those on the side make a size fit that does not.
            if own is None and turn is not None and picture.size != seen:
                own = turn if picture.size == seen[::-1] else None
            upright = picture if own is None else picture.transpose(own)
            marks = marked(upright)
    except Exception as error:  # decoders raise nearly anything on damaged files
        wrong = isinstance(error, UnidentifiedImageError)
        reason = f"not a {_KINDS} file" if wrong else error
        raise BadImageError(
            f"the mask {mask} cannot be read ({reason}); replace or delete it"
        ) from error
    if marks.shape != seen[::-1]:
        raise BadImageError(
            f"the mask {mask} has {marks.shape[1]} x {marks.shape[0]} pixels, and its image "
            f"{image} has {seen[0]} x {seen[1]}; draw it in the size of the image, or delete it"
        )
    return marks if marks.any() else None


def marked(picture: Image.Image) -> Bool[np.ndarray, "h w"]:
    """The pixels of a decoded mask that are not seen as black, however faint."""
    if picture.mode.startswith(("I", "F")):
        # Of more than 8 bits, which Pillow's conversions would cut.
        return np.asarray(picture) > 0
    if picture.mode == "LAB":
        # Pillow takes it for RGB; the first band is the lightness.
        return np.asarray(picture)[..., 0] > 0
    if picture.has_transparency_data:
        pixels = np.asarray(picture.convert("RGBA"))
        return (pixels[..., :3].max(-1) > 0) & (pixels[..., 3] > 0)
    return np.asarray(picture.convert("RGB")).max(-1) > 0


def _decode(picture: Image.Image) -> None:
    check_pixels(picture.width, picture.height)
    picture.load()


def _composed(name: str) -> str:
    """The composed Unicode spelling, as a name on a disk may have the other one."""
    return unicodedata.normalize("NFC", name)


def _folder(root: Path) -> Path:
    return (root.parent if root.is_file() else root).resolve()


def _home(parent: Path, inside: Path) -> tuple[Path, Path] | None:
    """The folder around that holds images by the layout, and the one with their masks."""
    for above in (parent, *parent.parents):
        if above.name in _FOLDERS and is_inside(above, inside):
            home = _inner(above.parent, _FOLDERS[above.name])
            return (above, home) if home else None
    return None


def _mask_folder(parent: Path, inside: Path) -> Path | None:
    """The folder with the masks of a folder's images, by the place that it is in."""
    if not (place := _home(parent, inside)):
        return None
    above, folder = place
    for part in parent.relative_to(above).parts:
        if not (inner := _inner(folder, part)):
            return None
        folder = inner
    return folder


def _inner(folder: Path, name: str) -> Path | None:
    """A folder in a folder, by its name in any case."""
    if (folder / name).is_dir():
        return folder / name
    alike = _composed(name).casefold()
    inner = (entry for entry in sorted(listed(folder)) if entry.is_dir())
    return next((entry for entry in inner if _composed(entry.name).casefold() == alike), None)


def _mask_files(folder: Path) -> dict[str, Path]:
    """The masks in a folder by their stems; exact spellings go before those in lower case."""
    masks = [path for path in _files(folder) if path.suffix.lower() in _SUFFIXES]
    masks.sort(key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path.name))
    found: dict[str, Path] = {}
    for path in masks:
        found.setdefault(_composed(path.stem), path)
    for path in masks:
        found.setdefault(_composed(path.stem).casefold(), path)
    return found


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder that may be images, in any order."""
    for path in listed(folder):
        if path.name[0] != "." and path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _folders_of_images(home: Path) -> Iterator[Path]:
    """The folders below one, and itself, that files are in which may be images."""
    if any(_files(home)):
        yield home
    for entry in listed(home):
        if entry.is_dir() and entry.name[0] != ".":
            # What a link leads to is not entered: it could lead in a circle.
            yield from [entry] if entry.is_symlink() else _folders_of_images(entry)
