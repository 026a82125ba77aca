"""Stage one: the trunk trained on the images themselves, with a detector on top.

AHL takes its features from the trunk of a detector that has been trained before. ``model`` is that
training as pure functions of arrays, ``run`` reads the images and saves what comes of it.
"""

from ahl_jax.stage_one.run import trained_trunk

__all__ = ["trained_trunk"]
