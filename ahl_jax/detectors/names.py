"""The names of detectors in words."""

from ahl_jax.config.settings import Config
from ahl_jax.detectors import DETECTORS


def method_name(config: Config) -> str:
    """What a run trains, such as AHL(DRA)."""
    kind = DETECTORS[config.detector.detector].__name__
    names = {"ahl": f"AHL({kind})", "ensemble": f"An ensemble of {kind}"}
    return names.get(config.learning.method, kind)
