"""Checks of a run's settings against the registries, before any work is done."""

from ahl_jax.backbones import TRUNKS
from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import Config
from ahl_jax.detectors import DETECTORS
from ahl_jax.pseudo import GENERATORS


def check_names(config: Config) -> None:
    """Find a name that no registry has before any work is done.

    Raises:
        UserError: naming the option and the choices.
    """
    for option, names, known in (
        ("detector", [config.detector.detector], DETECTORS),
        ("trunk", [config.features.trunk], TRUNKS),
        ("generators", config.pseudo.generators, GENERATORS),
    ):
        for name in names:
            if name not in known:
                raise UserError(
                    f"--{option} has no '{name}'; choose from {', '.join(sorted(known))}"
                )
    name, method = config.detector.detector, config.learning.method
    kind = DETECTORS[name]
    if kind.whitened and not config.features.whiten:
        raise UserError(f"the detector {name} needs --whiten; turn it on")
    if not kind.trained and method != "fit":
        raise UserError(f"the detector {name} has nothing to train; add --method fit")
    begun = config.source or (config.stage_one.stage_one and config.stage_one.stage_one_heads)
    if method == "fit" and kind.trained and not kind.calibrates() and not begun:
        able = [
            other + " (with --whiten)" * one.whitened
            for other, one in sorted(DETECTORS.items())
            if one.calibrates() or not one.trained
        ]
        raise UserError(
            f"the detector {name} has no closed form, so --method fit would leave its random "
            f"weights; choose another --method, or --detector {', '.join(able)}"
        )
