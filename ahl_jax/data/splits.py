"""The general, hard and full protocols: which anomalies training sees, and what the test holds."""

import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from jaxtyping import Bool

from ahl_jax.common.errors import BadImageError, InputError, UserError
from ahl_jax.common.text import counted
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.images import image_digest, image_size
from ahl_jax.data.records import ImageSource
from ahl_jax.data.types import Dataset, Sample, Split, in_order

T = TypeVar("T")


def make_split(dataset: Dataset, config: DataConfig, seed: int) -> Split:
    """Draws the labelled anomalies and lays out training and test set.

    Where the data set has labelled anomalies of its own, those are trained on, none is drawn, and
    the test has what is left of the setting. With ``config.shots=0`` none is seen. Otherwise:

    General: M = ``config.shots`` anomalies at random from all classes together; the test has every
    other anomaly. Hard: M from ``config.seen_class``; the test has the anomalies of all other
    classes. Full: M from every class; the test has every other anomaly. ``config.limit`` then thins
    training normals, test normals and the test images of each class evenly; it does not change
    which anomalies a seed draws. Of the training normals left, the share ``config.held_out``, at
    least one, is held out; the same ones for every seed, so that seeds can share their features.

    Categories that are joined are split one by one, each as it would be alone.

    The test may lack normals, anomalies or both. Test images that are byte for byte in the training
    set too are left out with a warning (see ``shared_images`` for the cost).

    Args:
        dataset: The images.
        config: The protocol.
        seed: Decides which anomalies are drawn; the same seed gives the same split.

    Raises:
        UserError: if the data set cannot give such a split.
    """
    if dataset.parts:
        alone = replace(config, joint=False)
        parts = [
            make_split(part, replace(alone, category=name), seed)
            for name, part in dataset.parts.items()
        ]
        split = _joined(parts)
        return split if config.keep_copies else _without_shared(split)
    where = config.data if config.category is None else f"{config.data} ({config.category})"
    if not dataset.train_normals:
        raise UserError(f"{where} has no training normals; put images of good parts in train/good")
    seen, unseen = _draw(dataset, config, seed, where)
    by_class: dict[str | None, list[Sample]] = {
        None: [Sample(path, None) for path in dataset.test_normals]
    }
    for sample in unseen:
        by_class.setdefault(sample.anomaly_class, []).append(sample)
    normals, held_out = hold_out(_thinned(dataset.train_normals, config.limit), config.held_out)
    if not normals:
        raise one_normal(where)
    split = Split(
        train_normals=normals,
        seen=tuple(seen),
        test=tuple(s for group in by_class.values() for s in _thinned(group, config.limit)),
        held_out=held_out,
    )
    if not config.keep_copies:
        split = _without_shared(split)
    used = {*normals, *held_out, *(s.path for s in (*seen, *split.test, *split.copies))}
    unused = tuple(sample for sample in dataset.samples() if sample.path not in used)
    return replace(split, unused=unused)


def _joined(splits: Sequence[Split]) -> Split:
    return Split(
        train_normals=tuple(path for split in splits for path in split.train_normals),
        seen=tuple(sample for split in splits for sample in split.seen),
        test=in_order(sample for split in splits for sample in split.test),
        held_out=tuple(path for split in splits for path in split.held_out),
        copies=tuple(sample for split in splits for sample in split.copies),
        unused=tuple(sample for split in splits for sample in split.unused),
    )


def shared_images(split: Split) -> list[tuple[ImageSource, ImageSource]]:
    """Pairs of a training and a test file with the same bytes, in the order of the test.

    Only files whose sizes agree are read, so the usual cost is one ``stat`` per image; where all
    must be hashed it is about 0.2 ms per small image. Files that cannot be read are passed over:
    whoever decodes them reports them.
    """
    train = [*split.train_normals, *split.held_out, *(sample.path for sample in split.seen)]
    by_size: dict[int, list[ImageSource]] = defaultdict(list)
    for path in train:
        if (size := _size(path)) is not None:
            by_size[size].append(path)
    digests: dict[int, dict[str, ImageSource]] = {}
    pairs = []
    for path in (sample.path for sample in split.test):
        size = _size(path)
        if size is None or size not in by_size:
            continue
        if size not in digests:
            hashed = ((_digest(other), other) for other in reversed(by_size[size]))
            digests[size] = {digest: other for digest, other in hashed if digest}
        if twin := digests[size].get(_digest(path) or ""):
            pairs.append((twin, path))
    return pairs


def distinct(images: Sequence[ImageSource], known: Sequence[ImageSource] = ()) -> list[int]:
    """Positions of the images that are no copies, byte for byte, of known or of earlier ones.

    Only files whose sizes agree are read. One that cannot be read is a copy of none.

    Args:
        images: the images.
        known: others.
    """
    sizes = Counter(map(_size, (*known, *images)))

    def content(path: ImageSource) -> str | None:
        return _digest(path) if sizes[_size(path)] > 1 else None

    seen = set(map(content, known))
    positions = []
    for i, what in enumerate(map(content, images)):
        if what is None or what not in seen:
            positions.append(i)
        seen.add(what)
    return positions


def _draw(
    dataset: Dataset, config: DataConfig, seed: int, where: str
) -> tuple[list[Sample], list[Sample]]:
    """The seen anomalies, and the anomalies that the test may have, both ordered by class."""
    by_class, labelled = (
        {name: [Sample(path, name) for path in paths] for name, paths in classes.items()}
        for classes in (dataset.anomalies, dataset.labelled if config.shots else {})
    )
    rest: list[Sample] = []
    wanted = _seen_class(dataset, config, where) if config.setting == "hard" else None
    if labelled:
        return (
            [s for name, group in labelled.items() if wanted in (name, None) for s in group],
            [s for name, group in by_class.items() if name != wanted for s in group],
        )
    if wanted:
        rest = [s for name, samples in by_class.items() if name != wanted for s in samples]
        pools = {f"anomalies of class {wanted}": by_class[wanted]}
    elif config.setting == "full":
        pools = {f"anomalies of class {name}": samples for name, samples in by_class.items()}
    else:
        pools = {}
    # A data set without any classes has 0 anomalies to draw from.
    pools = pools or {"anomalies": [s for samples in by_class.values() for s in samples]}
    seen: list[Sample] = []
    rng = np.random.default_rng(seed)
    for source, pool in pools.items():
        if not pool and config.shots:
            raise UserError(
                f"{where} has no {source} to train on; add images of them, or train on normals "
                'alone: `shots=0`, and `method="fit"` where another one is set'
            )
        if len(pool) < config.shots:
            raise UserError(
                f"{where} has {len(pool)} {source}, fewer than the {config.shots} that training is "
                "to see; add images, or lower `shots`"
            )
        drawn = set(rng.choice(len(pool), config.shots, replace=False).tolist())
        seen += [sample for i, sample in enumerate(pool) if i in drawn]
        if config.setting != "hard":
            rest += [sample for i, sample in enumerate(pool) if i not in drawn]
    return seen, rest


def _seen_class(dataset: Dataset, config: DataConfig, where: str) -> str:
    """The class that the hard setting sees, as the data set spells it."""
    wanted = unicodedata.normalize("NFC", config.seen_class or "")
    classes = dataset.labelled or dataset.anomalies
    if wanted not in classes:
        raise UserError(
            f"{where} has no anomaly class {config.seen_class!r} to train on; `seen_class` takes "
            f"one of: {', '.join(classes) or 'none'}"
        )
    if {*dataset.labelled, *dataset.anomalies} == {wanted}:
        raise UserError(
            f"{where} has the one anomaly class {wanted}, so the hard setting leaves none for the "
            'test; give data with several, or use `setting="general"`'
        )
    return wanted


def one_normal(where: str) -> UserError:
    """The refusal to hold out the only normal of some data."""
    return UserError(
        f"{where} has one training normal, which cannot set a threshold; add images, or give "
        "`held_out=0` for scores alone"
    )


def _thinned(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most ``limit`` of the items, evenly spaced."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def hold_out(normals: Sequence[T], share: float) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """The normals to train on, and those held out: at random, but always the same."""
    return _apart(normals, max(1, round(share * len(normals))) if share else 0)


def _apart(normals: Sequence[T], count: int) -> tuple[tuple[T, ...], tuple[T, ...]]:
    drawn = set(np.random.default_rng(0).choice(len(normals), count, replace=False).tolist())
    return (
        tuple(normal for i, normal in enumerate(normals) if i not in drawn),
        tuple(normal for i, normal in enumerate(normals) if i in drawn),
    )


def extended(
    split: Split, anomalies: Sequence[Sample], normals: Sequence[ImageSource], share: float
) -> Split:
    """A split with more images to train on.

    Images that training has already are passed over, and those of the test leave it, both with a
    warning. Of the new normals so many are held out that it is the share of all again, but one at
    least is trained on.

    Args:
        split: the images so far.
        anomalies: more labelled anomalies.
        normals: more normals.
        share: the share of all normals that is held out.

    Raises:
        UserError: if nothing is new, or an image counts as normal and as an anomaly.
    """

    def content(path: ImageSource) -> str:
        return _digest(path) or str(path)

    is_normal = {content(path): True for path in (*split.train_normals, *split.held_out)}
    is_normal |= {content(sample.path): False for sample in split.seen}
    given = [*anomalies, *(Sample(path, None) for path in normals)]
    new: list[Sample] = []
    for sample in given:
        normal, what = sample.anomaly_class is None, content(sample.path)
        if what not in is_normal:
            is_normal[what] = normal
            new.append(sample)
        elif is_normal[what] != normal:
            raise UserError(
                f"training would have {sample.path} as normal and as an anomaly; leave it out, or "
                "train again with it in one place"
            )
    if not new:
        raise UserError("there are no images that training does not have already; give new ones")
    if len(new) < len(given):
        warnings.warn(
            f"passed over {counted(len(given) - len(new), 'image')} that training has already",
            stacklevel=2,
        )
    good = [sample.path for sample in new if sample.anomaly_class is None]
    wanted = round(share * (len(split.train_normals) + len(split.held_out) + len(good)))
    count = min(max(wanted - len(split.held_out), 0), max(len(good) - 1, 0))
    trained, held_out = _apart(good, count)
    return _without_shared(
        replace(
            split,
            train_normals=(*split.train_normals, *trained),
            seen=(*split.seen, *(sample for sample in new if sample.anomaly_class is not None)),
            held_out=(*split.held_out, *held_out),
        )
    )


def training_split(
    images: Sequence[ImageSource], anomalous: Bool[np.ndarray, " n"], held_out: float
) -> Split:
    """All of n images as training, but for the share ``held_out`` of the normals.

    Raises:
        InputError: if no normal is left to train on.
    """
    normals, out = hold_out([images[i] for i in np.flatnonzero(~anomalous).tolist()], held_out)
    if not normals:
        raise InputError(
            "one sample that is normal cannot both train and set a threshold; give more"
        )
    seen = tuple(Sample(images[i], "anomaly") for i in np.flatnonzero(anomalous).tolist())
    return Split(train_normals=normals, seen=seen, test=(), held_out=out)


def _without_shared(split: Split) -> Split:
    pairs = shared_images(split)
    if not pairs:
        return split
    twin, path = pairs[0]
    warnings.warn(
        f"left {counted(len(pairs), 'image')} out of the test because training has the same file, "
        f"such as {path} ({twin})",
        stacklevel=3,
    )
    shared = {path for _, path in pairs}
    return replace(
        split,
        test=tuple(sample for sample in split.test if sample.path not in shared),
        copies=(*split.copies, *(sample for sample in split.test if sample.path in shared)),
    )


def _size(path: ImageSource) -> int | None:
    try:
        return image_size(path)
    except OSError:
        return None


def _digest(path: ImageSource) -> str | None:
    try:
        return image_digest(path)
    except BadImageError:
        return None


def split_normals(normals: Sequence[T]) -> tuple[list[T], list[T]]:
    """Training and test normals of a source without a split: 75/25, as in the literature.

    Args:
        normals: The images of normal parts, in the source's own order.

    Raises:
        UserError: if there are fewer than two.
    """
    if len(normals) < 2:
        raise UserError("there are fewer than two normal images to split; add images")
    # Imported late: scikit-learn takes a second, and only data sets without a split need it.
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(list(normals), test_size=0.25, random_state=42)
    return train, test
