"""The images of a run, found again in its data as that is now."""

import logging
from dataclasses import replace

from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import Config
from ahl_jax.data.open import load_dataset
from ahl_jax.data.remembered import Found, find, places
from ahl_jax.data.types import Split
from ahl_jax.features.split import load_split, split_digest
from ahl_jax.storage.workdir import Workdir

log = logging.getLogger(__name__)


def moved(config: Config, data: str | None) -> Config:
    """The settings with the data elsewhere, if it is."""
    return config if data is None else with_settings(config, {"data": data})


def tell_places(run: Workdir, config: Config) -> None:
    """Say which folders are read, as a run names them that may be a stranger's."""
    first, *others = places(run.images() or [], config.data.data)
    more = f"{len(others)} other folders, such as {others[0]}" if others[1:] else "".join(others)
    said = f"{first} and {more}" if more else first
    log.info("reading the images that %s names, in %s", run.path, said)


def find_split(run: Workdir, config: Config, split: Split | None = None) -> Found:
    """The split of a run, as its data is now.

    Args:
        run: its folder; where an earlier version made it, the split is that of the data now.
        config: its settings, with the data where it is now.
        split: the images that it was given, if it was.

    Raises:
        UserError: if the data or the list of the run's images cannot be read.
    """

    def compared(found: Found) -> Found:
        return replace(found, same=run.data_digest() == split_digest(found.split))

    rows = None if split else run.images()
    if rows is None:
        return compared(Found(split or load_split(config), listed=False))
    dataset = load_dataset(config.data)
    found = compared(find(rows, dataset, config.data, by_name=True))
    return found if found.same else compared(find(rows, dataset, config.data, by_name=False))
