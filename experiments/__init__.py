"""One script per table; each is a thin loop over ahl_jax."""
