"""Whether a data set is clean: files that cannot be read, and images that are in it twice."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from ahl_jax.common.errors import BadImageError
from ahl_jax.common.progress import Progress
from ahl_jax.data.contact_sheet import rows
from ahl_jax.data.images import image_digest, image_mode, read_pixels, without_skipping
from ahl_jax.data.masks import masks_of, read_mask
from ahl_jax.data.records import ImageSource
from ahl_jax.data.types import Dataset, Sample

SHOTS = 10
"""Labelled anomalies per class that the published protocols use at most."""

# Two images count as the same picture where their grey thumbnails of 32 x 32 pixels agree in all
# three ways. JPEG of quality 50 and up, and scaling to half, double and squares of 256 pixels,
# leave the correlation above 0.999, the mean difference below 0.7 of 255 grey levels and the
# largest below 8.3 (tried on images of screws, bottles, solar cells, commutators, and CT and MRI
# slices). Photographs of different parts, and of one part taken twice, correlate up to 0.9999
# where the camera is fixed, so that the correlation alone says little; but their mean difference
# is 0.94 and up. The largest difference tells a picture from the same one with a defect drawn into
# it: a defect is in one place, errors of coding are everywhere. Images with little contrast differ
# little, and there it is the correlation that tells them apart. Stronger compression and scaling
# are not found.
_SIDE = 32
_CORRELATION = 0.999
_MEAN = 0.8
_LARGEST = 9.0

_BLOCK = 256
"""Rows of the matrix of correlations that are in memory at a time."""

_PAIRS = 4096
"""Pairs whose thumbnails are subtracted at a time."""

_THREADS = 8

Kind = Literal["file", "pixels", "near"]


@dataclass(frozen=True)
class Member(Sample):
    """One image of a data set, and what it counts as.

    Attributes:
        train: Whether it is there to train on; all others may be in the test.
    """

    train: bool


@dataclass(frozen=True)
class Group:
    """Images that show the same picture.

    Attributes:
        images: Two or more, in the order of the data set.
        kind: What all have in common: the ``file`` byte by byte, at least the ``pixels`` once they
            are decoded, or no more than that they look the same (``near``).
    """

    images: tuple[Member, ...]
    kind: Kind

    @property
    def leaks(self) -> bool:
        """Whether both training and test have it, however anomalies are drawn."""
        return len({image.train for image in self.images}) > 1

    @property
    def contradicts(self) -> bool:
        """Whether it counts as normal in one place and as an anomaly in another."""
        return len({image.anomaly_class is None for image in self.images}) > 1


@dataclass(frozen=True)
class Check:
    """What was found in a data set.

    Attributes:
        name: The data set's name.
        counts: Images by part and class, unreadable ones too.
        sizes: Width and height of the images, the most frequent first.
        modes: What the images hold, see ``ahl_jax.data.images.image_mode``.
        unreadable: Images that cannot be read, and a sentence on each.
        masks: Images whose masks cannot be read or do not fit, and a sentence on each.
        groups: Images that are there more than once; each image is in one group at most.
        few: Anomaly classes to draw from with fewer than ``SHOTS`` images; no fault of the data.
        drawn: Anomalies to draw from, of all classes.
    """

    name: str
    counts: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    modes: Mapping[str, int]
    unreadable: tuple[tuple[ImageSource, str], ...]
    masks: tuple[tuple[ImageSource, str], ...]
    groups: tuple[Group, ...]
    few: Mapping[str, int]
    drawn: int

    @property
    def clean(self) -> bool:
        """Whether all images and masks can be read and no image is there twice."""
        return not (self.unreadable or self.masks or self.groups)


@dataclass(frozen=True)
class _Look:
    """What is kept of an image."""

    size: tuple[int, int]
    mode: str
    digest: bytes
    """Of its decoded pixels."""

    thumbnail: Float[np.ndarray, "side side"]


def check(dataset: Dataset, root: Path, *, progress: bool = True) -> Check:
    """Reads every image and mask once, and compares thumbnails of all with each other.

    Pixels are compared as detectors see them: in 8 bits and three channels. What is kept of an
    image is a thumbnail, so that 20,000 images take about 200 MB.

    Args:
        dataset: The images.
        root: Its folder, or the file in it that lists the images, for masks.
        progress: Whether to show progress on stderr.
    """
    members = [
        *(Member(path, None, True) for path in dataset.train_normals),
        *(Member(path, None, False) for path in dataset.test_normals),
        *(Member(p, name, True) for name, paths in dataset.labelled.items() for p in paths),
        *(Member(p, name, False) for name, paths in dataset.anomalies.items() for p in paths),
    ]
    paths = [member.path for member in members]
    seen: list[int] = []
    digests: list[bytes] = []
    thumbnails = np.zeros((len(paths), _SIDE, _SIDE), np.float16)
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    unreadable: list[tuple[ImageSource, str]] = []
    with Progress(len(paths), dataset.name if progress else None) as bar:
        for i, look in enumerate(_looks(paths)):
            bar.update(1)
            if isinstance(look, BadImageError):
                unreadable.append((paths[i], without_skipping(str(look))))
                continue
            thumbnails[len(seen)] = look.thumbnail
            seen.append(i)
            digests.append(look.digest)
            sizes[look.size] += 1
            modes[look.mode] += 1
    readable = [members[i] for i in seen]
    masks: list[tuple[ImageSource, str]] = []
    for i, mask in masks_of(readable, root).items():
        try:
            read_mask(readable[i].path, mask)
        except BadImageError as error:
            masks.append((readable[i].path, str(error)))
    # Where the data names the labelled anomalies, none is drawn.
    drawn = {} if dataset.labelled else {n: len(each) for n, each in dataset.anomalies.items()}
    return Check(
        name=dataset.name,
        counts={title: len(each) for title, each in rows(dataset).items()},
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        unreadable=tuple(unreadable),
        masks=tuple(masks),
        groups=tuple(_groups(readable, digests, thumbnails[: len(seen)])),
        few={name: n for name, n in drawn.items() if n < SHOTS},
        drawn=sum(drawn.values()),
    )


def _looks(paths: Sequence[ImageSource]) -> Iterator[_Look | BadImageError]:
    """A look at each image, in order; threads decode a few ahead."""
    # Imported late: it takes two seconds, which other commands need not wait.
    import grain

    def look(index: int) -> _Look | BadImageError:
        try:
            return _look(paths[index])
        except BadImageError as error:
            return error

    ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)
    yield from grain.MapDataset.range(len(paths)).map(look).to_iter_dataset(ahead)


def _look(path: ImageSource) -> _Look:
    pixels = read_pixels(path)
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{width} {height} ".encode())
    digest.update(pixels.data)
    # In floating point: rounded to whole grey levels, faint images would no longer correlate.
    grey = Image.fromarray(pixels).convert("L").convert("F")
    small = grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return _Look((width, height), image_mode(path), digest.digest(), np.asarray(small))


def _groups(
    members: Sequence[Member],
    digests: Sequence[bytes],
    thumbnails: Float[np.ndarray, "n side side"],
) -> Iterator[Group]:
    """The groups, in the order of their first images."""
    # Of images with equal pixels one stands for all, so that many copies cost no comparisons.
    first = {digest: i for i, digest in reversed(list(enumerate(digests)))}
    order = sorted(first.values())
    pictures = dict(zip(order, same_pictures(thumbnails[order]).tolist(), strict=True))
    found: dict[int, list[int]] = {}
    for i, digest in enumerate(digests):
        found.setdefault(pictures[first[digest]], []).append(i)
    for group in found.values():
        if len(group) > 1:
            images = tuple(members[i] for i in group)
            near = len({digests[i] for i in group}) > 1
            yield Group(images, "near" if near else _exact(images))


def _exact(images: Sequence[Member]) -> Kind:
    """The kind of a group whose pixels are equal."""
    return "pixels" if len({image_digest(image.path) for image in images}) > 1 else "file"


def same_pictures(thumbnails: Float[np.ndarray, "n side side"]) -> Int[np.ndarray, " n"]:
    """Numbers that are equal for thumbnails of the same picture, or for a chain of such.

    Args:
        thumbnails: Grey values from 0 to 255.
    """
    # Imported late: nothing else that commands on data do needs it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(thumbnails)
    flat = thumbnails.reshape(count, _SIDE * _SIDE).astype(np.float32)
    means = flat.mean(1)
    flat -= means[:, None]
    # An image of one colour is like no other; only its exact copies are found.
    norms = np.maximum(np.linalg.norm(flat, axis=1), 1e-3)
    numbers = np.arange(count)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        product = flat[block] @ flat[start:].T
        alike = product >= _CORRELATION * norms[block, None] * norms[start:]
        # The mean square is no larger than the product of the mean and the largest difference.
        square = norms[block, None] ** 2 + norms[start:] ** 2 - 2 * product
        square += flat.shape[1] * (means[block, None] - means[start:]) ** 2
        alike &= square <= 1.01 * flat.shape[1] * _MEAN * _LARGEST  # 1 % for rounding.
        pairs = np.argwhere(np.triu(alike, 1)) + start
        pairs = pairs[numbers[pairs[:, 0]] != numbers[pairs[:, 1]]]
        while len(pairs):
            some, pairs = pairs[:_PAIRS], pairs[_PAIRS:]
            one, other = (thumbnails[some[:, side]].astype(np.float32) for side in (0, 1))
            apart = np.abs(one - other)
            same = (apart.mean((1, 2)) <= _MEAN) & (apart.max((1, 2)) <= _LARGEST)
            if same.any():
                joined = numbers[some[same]]
                edges = np.ones(len(joined)), (joined[:, 0], joined[:, 1])
                graph = coo_array(edges, shape=(count, count))
                numbers = connected_components(graph, directed=False)[1][numbers]
                # Of many images of one picture, most pairs are known to be alike by others.
                pairs = pairs[numbers[pairs[:, 0]] != numbers[pairs[:, 1]]]
    return numbers
