"""The files of a run, in one folder: ``FILES``."""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import (
    alone,
    as_written,
    check_no_file,
    csv_text,
    holder,
    make_folder,
    read_file,
    read_json,
    reason,
    remove,
    replace_file,
    utf_8,
    writing,
)
from ahl_jax.common.remote import any_path, resolved, url_of
from ahl_jax.common.text import counted
from ahl_jax.config.checks import left_to_data
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import Config, flat
from ahl_jax.data.open import NAMED
from ahl_jax.data.remembered import Part, Row
from ahl_jax.data.types import ANOMALY, NORMAL_WORDS
from ahl_jax.storage.checkpoints import check_name
from ahl_jax.storage.tensorboard import EventFiles, check_event_files

FILES = (
    "run.json", "images.csv", "history.csv", "metrics.json", "checkpoint", "tensorboard", "profile"
)  # fmt: skip
"""Everything that a run writes; ``--overwrite`` removes these and nothing else."""

_CHECKSUM, _FILES = "sha256", "files"
"""In run.json: of itself, and of the others that are text."""

CALIBRATION = "calibration.json"
"""In the checkpoint's folder: the scores that the threshold is set by."""


class Workdir:
    """The folder of one run.

    Args:
        path: the folder, which may be in object storage.
        tensorboard: whether history and metrics are written as event files too.

    Raises:
        UserError: if event files are wanted and the library for them is missing.
    """

    def __init__(self, path: Path | str, *, tensorboard: bool = False):
        self.path = any_path(path)
        self.tensorboard = tensorboard
        if tensorboard:
            check_event_files()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing to the folder.

        Raises:
            UserError: if one does, or the folder cannot be written to.
        """
        check_no_file(self.path, "workdir")
        check_name(self.path)
        with contextlib.ExitStack() as stack:
            with writing(self.path, "give another folder as `workdir`"):
                stack.enter_context(alone(self.path, self._busy))
            yield

    def claim(self, config: Config, *, overwrite: bool) -> None:
        """Make the folder this run's, or find that it is already.

        Raises:
            UserError: if it holds another run, or files that no run of ours left; nothing is
                changed then.
        """
        if overwrite or self._without_epochs(config):
            check_no_file(self.path, "workdir")
            self._check_apart(config)
            self._clear()
        else:
            self.check(config)
            if self._files():
                return
        with writing(self.path, "give another folder as `workdir`"):
            make_folder(self.path)
            self._describe({"config": located(config).to_dict()})

    def check(self, config: Config) -> None:
        """Find out, without changing anything, whether ``claim`` would refuse the folder.

        Raises:
            UserError: as ``claim`` does.
        """
        check_no_file(self.path, "workdir")
        self._check_apart(config)
        files = self._files()
        if files and not self._without_epochs(config):
            self._check_same(config, files)

    def _without_epochs(self, config: Config) -> bool:
        """Whether another run has begun here, and nothing is lost where this one takes over."""
        if not (self.path / "run.json").is_file():
            return False
        done = [self.path / "history.csv", self.path / "metrics.json"]
        trained = any(path.exists() for path in done) or any(self.path.glob("checkpoint/epoch_*"))
        if trained or "config" not in self._run():
            return False
        try:
            return self.config() != self.settled(config)
        except UserError:  # Of another version.
            return True

    def config(self) -> Config:
        """The settings of the run, as by ``located``.

        Raises:
            UserError: if the folder holds no run.
        """
        # Earlier versions stored paths as they were typed.
        return located(Config.from_dict(self._run()["config"]))

    def settled(self, config: Config) -> Config:
        """The settings as by ``located``; what is left to the data is as in the run here.

        Raises:
            UserError: if the folder's run cannot be read.
        """
        config = located(config)
        names = left_to_data(config)
        if not names or not (self.path / "run.json").is_file():
            return config
        there = dict(flat(self.config().to_dict()))
        return with_settings(config, {name: there[name] for name in names})

    def bind_data(self, digest: str) -> None:
        """Tie the run to its images, named by a digest over all of their bytes.

        Raises:
            UserError: if the run began with other images.
        """
        self._bind("data", digest, "images")

    def bind_trunk(self, digest: str) -> None:
        """Tie the run to the weights that its trunk starts from, named by a digest.

        Raises:
            UserError: if the run began with other weights.
        """
        self._bind("trunk", digest, "weights of the trunk")

    def check_trunk(self, digest: str) -> None:
        """Find out, without changing anything, whether ``bind_trunk`` would refuse.

        Raises:
            UserError: as ``bind_trunk`` does.
        """
        if self._files():
            self._check_bound(self._run(), "trunk", digest, "weights of the trunk")

    def _bind(self, name: str, digest: str, what: str) -> None:
        run = self._run()
        self._check_bound(run, name, digest, what)
        self._describe(run | {name: digest})

    def _check_bound(self, run: dict[str, Any], name: str, digest: str, what: str) -> None:
        if run.get(name, digest) != digest:
            raise UserError(
                f"the {what} changed since the run in {self.path} began; restore them, "
                "start over with `overwrite=True`, or give another `workdir`"
            )

    def data_digest(self) -> str | None:
        """The digest that ``bind_data`` stored."""
        return self._run().get("data")

    def write_images(self, rows: Sequence[Row]) -> None:
        """Write images.csv, a row per image."""
        self._write(
            "images.csv",
            csv_text(
                [
                    {
                        "path": row.path,
                        "label": ANOMALY if row.anomaly_class else NORMAL_WORDS[-1],
                        "class": row.anomaly_class,
                        "split": row.part,
                        "sha256": row.sha256,
                    }
                    for row in rows
                ]
            ),
        )

    def images(self) -> list[Row] | None:
        """The rows that ``write_images`` wrote; None in runs of earlier versions.

        Raises:
            UserError: if the file is damaged.
        """
        text = self.read("images.csv")
        if text is None:
            return None
        try:
            return [
                _row(*(as_written(row[name]) for name in ("path", "class", "split", "sha256")))
                for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)
            ]
        except (csv.Error, KeyError, AttributeError, ValueError) as error:
            raise _damaged(self.path / "images.csv", error) from error

    def trained_on(self) -> set[str] | None:
        """The ``sha256`` of the images that training saw; None in runs of earlier versions.

        Raises:
            UserError: if images.csv is damaged.
        """
        rows = self.images()
        return None if rows is None else {row.sha256 for row in rows if row.part == "train"}

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write history.csv, a row per epoch."""
        self._write("history.csv", csv_text(rows))
        if self.tensorboard:
            self._events.epochs(rows)

    def read_history(self, epochs: int) -> list[dict[str, Any]]:
        """The rows of the first ``epochs`` epochs, as text.

        Raises:
            UserError: if one is missing, or the file is damaged.
        """
        advice = "start over with `overwrite=True`"
        text = self.read("history.csv", advice) if epochs else None
        try:
            rows = list(csv.DictReader(io.StringIO(text)))[:epochs] if text else []
            [float(value or 0) for row in rows for value in (row["epoch"], *row.values())]
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path / "history.csv", error, advice) from error
        if len(rows) < epochs:
            raise UserError(
                f"{self.path / 'history.csv'} lacks epochs that the checkpoint has; {advice}"
            )
        return rows

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json."""
        self._write("metrics.json", _json(metrics))
        if self.tensorboard:
            self._events.epochs(self.read_history(metrics["epochs"]))
            self._events.finish(metrics)

    def write_calibration(self, text: str) -> None:
        """Write ``ahl_jax.inference.threshold.Calibration.text`` beside its checkpoint."""
        self._write(f"checkpoint/{CALIBRATION}", text)

    def metrics(self) -> dict[str, Any] | None:
        """Reads back the metrics that ``write_metrics`` wrote, if it did.

        Raises:
            UserError: if the file is damaged.
        """
        text = self.read("metrics.json")
        try:
            found = None if text is None else read_json(text)
            if not isinstance(found, dict | None):
                raise ValueError("it holds no metrics")
            return found
        except ValueError as error:
            raise _damaged(self.path / "metrics.json", error) from error

    def read(self, name: str, advice: str = "") -> str | None:
        """The text of one of the run's files; None if it is not there.

        Args:
            name: its path in the run's folder.
            advice: the way out, by default to let the training write it again.

        Raises:
            UserError: if it is not what the run wrote. Files of earlier versions cannot be told.
        """
        path = self.path / name
        try:
            content = read_file(path)
            known = self._digests().get(name)
            if known and hashlib.sha256(content).hexdigest() not in known:
                raise ValueError("its checksum is wrong")
            return content.decode()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _damaged(path, error, advice) from error

    @functools.cached_property
    def _events(self) -> EventFiles:
        return EventFiles(self.path / "tensorboard")

    def _run(self) -> dict[str, Any]:
        path = self.path / "run.json"
        try:
            run = read_json(read_file(path).decode())
            right = _checksum(run) if isinstance(run, dict) else ""
        except FileNotFoundError as error:
            inside = None
            with contextlib.suppress(FileNotFoundError):  # There is no such bucket.
                inside = min(self.path.glob("*/run.json"), default=None)
            advice = f", such as {inside.parent}" if inside else ""
            raise UserError(
                f"{self.path} holds no run (there is no run.json); name the folder of a run{advice}"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({reason(error)}); train again") from error
        if not isinstance(run, dict) or not isinstance(run.get("config"), dict):
            raise UserError(f"{path} is not the description of a run; train again")
        files = run.get(_FILES, {})
        if not isinstance(files, dict) or not all(isinstance(f, list) for f in files.values()):
            raise UserError(f"{path} is damaged (its checksums are none); train again")
        if run.pop(_CHECKSUM, right) != right:
            raise UserError(
                f"{path} is damaged (its checksum is wrong); restore it or train again, or delete "
                f"its {_CHECKSUM} if you changed it yourself"
            )
        return run

    def _describe(self, run: dict[str, Any]) -> None:
        """Write run.json."""
        self._replace("run.json", _json(run | {_CHECKSUM: _checksum(run)}))

    def _digests(self) -> dict[str, list[str]]:
        """The checksums that each file may have."""
        return self._run().get(_FILES, {}) if (self.path / "run.json").is_file() else {}

    def _busy(self) -> None:
        raise UserError(
            f"another training is writing to {self.path}{holder(self.path)}; wait until it is "
            "done, or give another `workdir`"
        )

    def _check_apart(self, config: Config) -> None:
        if resolved(config.data.data) == resolved(self.path / "images.csv"):
            raise UserError(
                f"{config.data.data} is where the run would list its images; give another `workdir`"
            )

    def _files(self) -> list[str]:
        return [name for name in FILES if (self.path / name).exists()]

    def _check_same(self, config: Config, files: list[str]) -> None:
        if "run.json" not in files:
            raise UserError(
                f"{self.path} already has {files[0]}, which belongs to no run that can go on; "
                "give another `workdir`, or `overwrite=True` to replace it"
            )
        both = self.config(), self.settled(config)
        saved, wanted = (dict(flat(one.to_dict())) for one in both)
        different = [name for name in wanted if saved.get(name) != wanted[name]]
        if different:
            name = different[0]
            others = len(different) - 1
            more = f"; {counted(others, 'other setting')} too" if others else ""
            raise UserError(
                f"{self.path} already holds a different run (`{name}` is "
                f"{saved.get(name)} there and {wanted[name]} here{more}); give another `workdir`, "
                "or `overwrite=True` to replace it"
            )

    def _clear(self) -> None:
        for name in FILES:
            remove(self.path / name)

    def _write(self, name: str, text: str) -> None:
        path, run = self.path / name, self._run()
        digests = run.get(_FILES, {})
        new = hashlib.sha256(utf_8(text)).hexdigest()
        # A kill in between leaves the old file, or the new one.
        old = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else new
        before = [old] if old in digests.get(name, [old]) else []
        self._describe(run | {_FILES: digests | {name: sorted({*before, new})}})
        self._replace(name, text)

    def _replace(self, name: str, text: str) -> None:
        with writing(self.path, "make room there, or give another folder as `workdir`"):
            replace_file(self.path / name, text)


def located(config: Config) -> Config:
    """The settings with the absolute paths of files and folders, so that they hold anywhere.

    The names of data sets stay, and so does what is not there.
    """
    data, features = config.data, config.features
    if url := url_of(data.data):
        data = dataclasses.replace(data, data=url)
    elif data.data not in NAMED and os.path.exists(data.data):
        data = dataclasses.replace(data, data=os.path.realpath(data.data))
    if (weights := features.trunk_weights) and os.path.exists(weights):
        features = dataclasses.replace(features, trunk_weights=weights.resolve())
    return dataclasses.replace(config, data=data, features=features)


def _row(path: str, anomaly_class: str, part: str, sha256: str) -> Row:
    if part not in get_args(Part):
        raise ValueError(f"{part!r} is no part of a run")
    return Row(path, anomaly_class, cast(Part, part), sha256)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _checksum(run: dict[str, Any]) -> str:
    content = {name: value for name, value in run.items() if name != _CHECKSUM}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _damaged(path: Path, error: Exception, advice: str = "") -> UserError:
    advice = advice or "delete it, and give the training's command again"
    return UserError(f"{path} is damaged ({reason(error)}); {advice}")
