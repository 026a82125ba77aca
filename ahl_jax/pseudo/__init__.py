"""Pseudo-anomalies: normal images with a small part altered, each a pure function of its key.

Every generator changes a part of the image and leaves each other pixel exactly as it was. To add
one, write a module with a function of the same signature and enter it in ``GENERATORS``.
"""

from ahl_jax.pseudo.generate import GENERATORS, Generator, make_pseudo

__all__ = ["GENERATORS", "Generator", "make_pseudo"]
