"""``python -m ahl_jax`` is ``ahl``."""

from ahl_jax.cli.main import main

main()
