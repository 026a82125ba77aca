"""The names of detectors in words."""

from ahl_jax.config.settings import Config
from ahl_jax.detectors import DETECTORS


def method_name(config: Config) -> str:
    """The name of a run's method, such as AHL(DRA)."""
    kind = DETECTORS[config.detector.detector].__name__
    names = {"ahl": f"AHL({kind})", "ensemble": f"An ensemble of {kind}"}
    return names.get(config.learning.method, kind)
