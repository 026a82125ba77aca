"""Fine-tuning: a finished run's detector trained on, on other data.

From the run come the trunk, the settings of features and detector, and the detector g with all its
parameters; from the target the images. g is trained alone, as ``ahl_jax.learning.base`` does. What
says which images are normal is always the target's: the references of a residual head; and where
features are whitened, the mean and covariance of the target's normals, not the run's. By those of
another texture every image of the target would be far away, in directions that say nothing of
defects. Both whitening maps are symmetric, hence those that change the features least, so a channel
keeps its meaning, and parameters learnt on the one whitened features are of use on the other.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.remote import any_path, resolved
from ahl_jax.config.presets import FINETUNE_EPOCHS
from ahl_jax.config.settings import Config, DataConfig, PseudoConfig
from ahl_jax.detectors import DETECTORS
from ahl_jax.run.options import run_options
from ahl_jax.run.start import load_start
from ahl_jax.run.train import train, train_runs
from ahl_jax.storage.workdir import Workdir, located


def finetune(
    run: Path | str,
    data: DataConfig,
    workdir: Path | str,
    *,
    epochs: int = FINETUNE_EPOCHS,
    seed: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a finished run's detector on other data, or finish the fine-tuning in ``workdir``.

    A fine-tuned run is a run like any other. It goes on after a stop as ``train`` does, for which
    ``run`` must still be there, and be the same; once it is finished, ``run`` may go.

    Args:
        run: the folder of the finished run to start from.
        data: the target; with ``shots=0`` its normals are all that is trained on.
        workdir: the fine-tuned run's folder, made if missing.
        epochs: how long to train.
        seed: by default that of ``run``.
        options: the fields of ``RunOptions``.

    Returns:
        The metrics on the target's test images, as ``ahl_jax.train`` does.

    Raises:
        UserError: if ``run`` holds no finished run, or another one than the fine-tuning began with;
            or as ``ahl_jax.train`` does.
    """
    if not isinstance(data, DataConfig):
        raise UserError(f"data is {data!r}; make it with DataConfig('FOLDER')")
    run, workdir = any_path(run), any_path(workdir)
    if resolved(run) == resolved(workdir):
        raise UserError(f"{run} is the run to start from; give another folder as `workdir`")
    how = run_options(options)
    earlier = Workdir(workdir)
    if not run.exists() and not how.overwrite and earlier.metrics():
        # Finished, so that it is only compared with these settings.
        saved = earlier.config()
        return train(_config(saved, saved.start, data, epochs, seed), workdir, **options)
    start = load_start(run)
    config = located(_config(start.config, start.digest, data, epochs, seed))
    if not how.overwrite and (workdir / "run.json").is_file():
        saved = earlier.config()
        if saved.start and saved != config == dataclasses.replace(saved, start=config.start):
            raise UserError(
                f"{run} is not the run that the fine-tuning in {workdir} began with; restore it, "
                "start over with `overwrite=True`, or give another `workdir`"
            )
    metrics = train_runs([config], [workdir], how, start=start)
    return metrics[0] if metrics else {}


def _config(
    of: Config, digest: str | None, data: DataConfig, epochs: int, seed: int | None
) -> Config:
    """The settings of a fine-tuned run; the same when they are made from themselves."""
    made = of.pseudo.pseudo_per_generator or PseudoConfig.pseudo_per_generator
    learning = dataclasses.replace(of.learning, epochs=epochs)
    if DETECTORS[of.detector.detector].trained and learning.method != "ensemble":
        learning = dataclasses.replace(learning, method="base")
    return dataclasses.replace(
        of,
        data=data,
        seed=of.seed if seed is None else seed,
        start=digest,
        stage_one=dataclasses.replace(of.stage_one, stage_one=False, stage_one_heads=False),
        pseudo=dataclasses.replace(of.pseudo, pseudo_per_generator=made if data.shots else 0),
        learning=learning,
    )
