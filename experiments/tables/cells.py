"""The cells of a table, with the folders of their runs."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ahl_jax import Config, UserError, preset
from ahl_jax.config.presets import differing_settings, with_settings
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.open import categories, load_dataset
from ahl_jax.detectors import DETECTORS
from ahl_jax.sweeps import cells
from ahl_jax.sweeps.points import check_history
from experiments.tables.methods import METHODS, Method

log = logging.getLogger("ahl_jax")

PUBLISHED_SIZE = 448
"""Side in pixels of the images that the paper trains from."""


@dataclass(frozen=True)
class Options:
    """Train and test the missing runs, then write the table.

    The same command goes on with a sweep that was stopped; finished runs are only read.
    """

    data: tuple[str, ...] = ("elpv",)
    """Data sets or folders in MVTec layout."""

    category: tuple[str, ...] = ()
    """Categories, where the one data set given has several; by default all."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every method gets the same ones, in one program where they choose alike."""

    shots: tuple[int, ...] = (10,)
    """M, the number of labelled anomalies; several make a part of the table each."""

    methods: tuple[str, ...] = ()
    """Rows of the table; by default all."""

    trunk: str | None = None
    """Another trunk than the preset's, for every row."""

    trunk_weights: Path | None = None
    """Its weights file."""

    image_size: int | None = None
    """Another size of the larger scale, in pixels, for every row; with --stage-one by default the
    published one, 448."""

    stage_one: bool = False
    """Train the trunk on the data first, for every row that trains: with the row's own
    detector on top, or DRA where that needs whitened features."""

    stage_one_epochs: int | None = None
    """Its epochs, where not the published 30."""

    stage_one_batch: int | None = None
    """Its images per batch, where not the published 48."""

    keep_copies: bool = False
    """Keep images in the test of which training has the same file, as published splits may."""

    quick: bool = False
    """Use the debug preset, to see in minutes that everything runs."""

    workdir: Path = Path("runs/tables")
    """The folder for the runs, which the tables share."""

    out: Path = Path("experiments/results")
    """The folder for the tables."""

    def features(self) -> dict[str, Any]:
        """The settings that all rows have otherwise than the preset."""
        size = self.image_size
        if self.stage_one and size is None and not self.quick:
            size = PUBLISHED_SIZE
        named = {
            "trunk": self.trunk,
            "trunk_weights": self.trunk_weights,
            "image_size": size,
            "stage_one_epochs": self.stage_one_epochs,
            "stage_one_batch": self.stage_one_batch,
        }
        given = {name: value for name, value in named.items() if value is not None}
        flags = {"stage_one": self.stage_one, "keep_copies": self.keep_copies}
        return given | {name: True for name, on in flags.items() if on}

    @property
    def variant(self) -> str:
        """The ending that tells the files and folders of other features apart."""
        parts = [
            quote(Path(value).name if isinstance(value, Path) else str(value), safe="")
            + {"stage_one_epochs": "-epochs", "stage_one_batch": "-images"}.get(name, "")
            for name, value in self.features().items()
            if value is not True
        ]
        flags = [*["stage-one"] * self.stage_one, *["copies"] * self.keep_copies]
        return "".join(f"_{part}" for part in [*parts, *flags])


@dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    name: str
    """The script's name, and the files'."""

    label: str
    """The entry of the column ``table``: the paper's number for it."""

    title: str
    settings: tuple[str, ...] = ("general",)
    methods: Mapping[str, Method] = field(default_factory=lambda: METHODS)
    variant: str = ""
    """Added to the files' names where options of the script make another table."""


@dataclass(frozen=True)
class Cell(cells.Cell):
    """One method on a data set, with all seeds."""

    dataset: str
    setting: str
    shots: int
    seen_class: str | None
    method: str

    @property
    def part(self) -> tuple[str, int, str, str]:
        """The part of the table: setting, shots, data set and seen class, as its rows have them."""
        return self.setting, self.shots, self.dataset, self.seen_class or ""

    @property
    def name(self) -> str:
        """How messages call it."""
        seen = f", seen class {self.seen_class}" if self.seen_class else ""
        return f"{self.dataset}, {self.setting}, M = {self.shots}{seen}, {self.method}"


def plan(table: Table, options: Options) -> list[Cell]:
    """The cells of a table in order: data set by data set, and in each method by method.

    Hard setting: one cell per anomaly class that has enough images.

    Raises:
        UserError: if the options do not fit the table or the data. Settings, splits and folders of
            all cells are checked, so that nothing is trained in vain.
    """
    unknown = [name for name in options.methods if name not in table.methods]
    if unknown:
        known = ", ".join(f"'{name}'" for name in table.methods)
        raise UserError(f"`methods` has no '{unknown[0]}'; choose from {known}")
    if options.category and len(options.data) != 1:
        raise UserError("`category` belongs to one folder; give `data` that one alone")
    if not options.stage_one and (options.stage_one_epochs or options.stage_one_batch):
        raise UserError("`stage_one_epochs` and `stage_one_batch` need --stage-one")
    if not (options.seeds and options.shots and options.data):
        raise UserError("`data`, `seeds` and `shots` each need at least one value")
    for name, given in (("data", options.data), ("category", options.category)):
        if len(set(given)) < len(given):
            raise UserError(f"`{name}` has the same value twice; give it once")
    names = [dataset_name(data, None) for data in options.data]
    if len(set(names)) < len(names):
        raise UserError("two of `data` have the same name; give them one after the other, with "
                        "different `workdir` and `out`")  # fmt: skip
    found = [
        _cell(table, options, data, name)
        for data in _datasets(table, options)
        for name in options.methods or table.methods
    ]
    cells.check(found, options.seeds)
    return found


def dataset_name(data: str, category: str | None) -> str:
    """The data set's name without its folder, such as ``elpv`` or ``mvtec/screw``."""
    return "/".join(filter(None, [Path(data).resolve().name, category]))


def _datasets(table: Table, options: Options) -> Iterator[DataConfig]:
    for name in options.data:
        for category in options.category or categories(name) or (None,):
            one = DataConfig(name, category)
            for setting in table.settings:
                for shots in dict.fromkeys(options.shots):
                    part = dataclasses.replace(one, shots=shots)
                    yield from _hard(part) if setting == "hard" else [part]


def _hard(data: DataConfig) -> list[DataConfig]:
    """Each class that has M images as the seen one."""
    classes = load_dataset(data).anomalies
    where = dataset_name(data.data, data.category)
    few = [name for name, images in classes.items() if len(images) < data.shots]
    if few:
        log.warning(
            "%s: no class with fewer than %d images can be the seen one, so not %s",
            where,
            data.shots,
            ", ".join(few),
        )
    seen = [name for name in classes if name not in few]
    if not seen:
        raise UserError(f"{where} has no anomaly class with {data.shots} images; lower `shots`")
    return [dataclasses.replace(data, setting="hard", seen_class=name) for name in seen]


def _cell(table: Table, options: Options, data: DataConfig, name: str) -> Cell:
    own = {key: getattr(data, key) for key in ("category", "setting", "seen_class", "shots")}
    start = preset("debug" if options.quick else "paper", data.data, **own)
    method = table.methods[name]
    features = options.features()
    settings = dict(method.settings)
    if not method.trained:
        # It would train on anomalies.
        features = {k: v for k, v in features.items() if not k.startswith("stage_one")}
    if features.get("stage_one") and not DETECTORS[method.detector].whitened:
        features["stage_one_detector"] = method.detector
        if settings.get("method") == "base":
            # In the paper a detector alone is trained from images, heads and all.
            settings |= {"method": "fit", "stage_one_heads": True}
    start = with_settings(start, features)
    if options.quick:
        settings |= _longer(start, settings)
    config = with_settings(start, settings)
    if "history" in settings:
        check_history(config)
    dataset = dataset_name(data.data, data.category)
    part = f"{data.setting}-{data.shots}-shots"
    part += f"-{quote(data.seen_class, safe='')}" if data.seen_class else ""
    return Cell(
        dataset=dataset,
        setting=data.setting,
        shots=data.shots,
        seen_class=data.seen_class,
        method=name,
        config=config,
        folder=options.workdir / f"{'quick' if options.quick else 'paper'}{options.variant}"
        / quote(dataset, safe="")
        / part / _difference(start, config),
    )  # fmt: skip


def _longer(start: Config, settings: Mapping[str, Any]) -> dict[str, int]:
    """The length of a quick run, where the debug preset is too short for a method's settings."""
    updates, history = settings.get("updates_per_epoch", 1), settings.get("history", 0)
    longer = {"steps": updates} if start.learning.steps % updates else {}
    return longer | ({"epochs": history + 1} if start.learning.epochs <= history else {})


def _difference(start: Config, config: Config) -> str:
    """The settings that differ, as a folder's name; the same for every way to ask for them."""
    changed = differing_settings(start, config)
    named = (f"{name}-{quote(str(value), safe='')}" for name, value in changed.items())
    return "_".join(named).replace("_", "-") or "preset"
