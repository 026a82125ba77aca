"""Open-set anomaly detection from normal images and a handful of labelled defects, in JAX.

Anomaly Heterogeneity Learning (AHL): T base detectors, one per heterogeneous subset of the training
data, train in one compiled step; a sequence model over their scores says how much each counts; one
unified detector learns from all of them.
"""

import lazy_loader

from ahl_jax.common import stop

stop.before_all_else()

# JAX and scikit-learn take seconds to import, which not all of it needs; see ``__init__.pyi``.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
