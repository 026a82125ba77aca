"""`ahl predict` and `ahl export`."""

from ahl_jax.inference.options import Export, Predict


def run_predict(command: Predict) -> None:
    """Run ``ahl predict``.

    Raises:
        Exception: as ``ahl_jax.inference.folder.run`` does.
    """
    from ahl_jax.inference.folder import run

    run(command)


def run_export(command: Export) -> None:
    """Run ``ahl export``.

    Raises:
        UserError: as ``ahl_jax.inference.export.run`` does.
    """
    from ahl_jax.inference.export import run

    run(command)
