"""Preparing data sets: from what was downloaded to ArrayRecord files, whole or not at all."""

import contextlib
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import alone, holder
from ahl_jax.data.builders import NAMES, builder_class
from ahl_jax.data.records import data_folder, is_prepared, prepared_folder

log = logging.getLogger(__name__)


def prepare(name: str, manual_dir: Path | None = None, category: str | None = None) -> list[Path]:
    """Prepare a data set, or those of its categories that were downloaded.

    What is prepared already stays as it is. A prepared data set appears in one step, so that a
    kill leaves nothing half done; the same call then goes on with the categories left.

    Args:
        name: One of ``ahl_jax.data.builders.NAMES``.
        manual_dir: The folder with what was downloaded, unpacked or as zip or tar archives, which
            are unpacked into the data folder for as long as it takes.
        category: Only this category.

    Returns:
        The folder of each prepared data set or category.

    Raises:
        UserError: if there is no such data set, the source is missing or not as published, or
            nothing can be written.
    """
    if name not in NAMES:
        raise UserError(
            f"there is no builder for {name!r}; there are: {', '.join(NAMES)}. Folders in MVTec or "
            "VisA layout and CSV files need none: give ahl train their path"
        )
    builder = builder_class(name)
    known = [config.name for config in builder.BUILDER_CONFIGS]
    if category is not None and not known:
        raise UserError(f"{name} has no categories; leave out `category={category!r}`")
    if category is not None and category not in known:
        raise UserError(f"{name} has no category {category!r}; it has: {', '.join(known)}")
    home = data_folder() / name

    def busy() -> None:
        raise UserError(
            f"another process prepares {name} in {home}{holder(home)}; wait until it is done"
        )

    with _writing(home), alone(home, busy), contextlib.ExitStack() as stack:
        for left in (*home.glob("incomplete.*"), *home.glob("*/incomplete.*"), home / ".unpacked"):
            shutil.rmtree(left, ignore_errors=True)  # by a process that was killed
        if is_prepared(prepared_folder(name, category)):
            return [prepared_folder(name, category)]
        stack.callback(shutil.rmtree, home / ".unpacked", ignore_errors=True)
        source = home
        if builder.NEEDS_FOLDER:
            source = _source(builder, manual_dir, home / ".unpacked")
        found = []
        for config in _categories(builder, source, category):
            found.append(prepared_folder(name, config))
            if not is_prepared(found[-1]):
                _write(builder, source, config)
        return found


def _source(builder: Any, manual_dir: Path | None, unpacked: Path) -> Path:
    """The folder with the source, which is ``unpacked`` where it was archived."""
    from ahl_jax.data.builders.archives import unpack
    from ahl_jax.data.builders.base import missing

    if manual_dir is None:
        raise UserError(
            f"{builder.TITLE} has to be downloaded first: take {builder.DOWNLOAD} from "
            f"{builder.PAGE}, and name the folder that it is in with `manual_dir`"
        )
    if not manual_dir.is_dir():
        raise UserError(
            f"`manual_dir` {manual_dir} is not a folder; name the one that the download is in"
        )
    folder = manual_dir.absolute()
    if builder.root(folder) is None:
        if not unpack(folder, builder.ARCHIVES, unpacked) or builder.root(unpacked) is None:
            raise UserError(missing(builder, folder))
        return unpacked
    return folder


def _categories(builder: Any, source: Path, category: str | None) -> list[str | None]:
    """The categories to prepare; None alone for a data set without any."""
    if not builder.BUILDER_CONFIGS:
        return [None]
    there = builder.categories(builder.root(source))
    if category is not None and category not in there:
        raise UserError(f"category {category!r} was not downloaded; there are: {', '.join(there)}")
    return list(there) if category is None else [category]


def _write(builder: Any, source: Path, config: str | None) -> None:
    import tensorflow_datasets as tfds

    made = builder(config=config, data_dir=data_folder(), file_format="array_record")
    label = builder.TITLE if config is None else f"{builder.TITLE}: {config}"
    log.info("preparing %s in %s", label, made.data_path)
    # TFDS prints to stdout, which is the command's, and its bars do not know how far they are.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        made.download_and_prepare(
            download_dir=data_folder() / builder.name / ".unpacked" / "downloads",
            download_config=tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False),
        )


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    """Turns a failure to write into one sentence."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower().splitlines()[0]
        of = f": {error.filename}" if error.filename else ""
        raise UserError(
            f"cannot prepare {home.name} in {home} ({reason}{of}); mend that, or set AHL_DATA to "
            "another folder"
        ) from error
    except RuntimeError as error:
        # What the writer of records makes of a full disk.
        _, failed, reason = str(error).partition("write() failed: ")
        if not failed:
            raise
        raise UserError(
            f"cannot prepare {home.name} in {home} ({reason.partition(';')[0].lower()}); make room "
            "there, or set AHL_DATA to another folder"
        ) from error
