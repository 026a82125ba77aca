"""``python -m ahl_jax`` is ``ahl``."""

from ahl_jax.cli import main

main()
