"""The rows of the tables: names, and the settings that differ from the paper preset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ahl_jax import preset
from ahl_jax.config.presets import differing_settings
from ahl_jax.config.settings import DetectorConfig, LearningConfig
from ahl_jax.detectors import DETECTORS
from ahl_jax.sweeps.points import SHORT


@dataclass(frozen=True)
class Method:
    """A row of a table."""

    settings: Mapping[str, Any]
    """Fields of any room of ``Config``, by name."""

    against: tuple[str, ...] = ()
    """The rows that this one is compared with, seed by seed."""

    @property
    def detector(self) -> str:
        """The name of its detector."""
        return self.settings.get("detector", DetectorConfig.detector)

    @property
    def trained(self) -> bool:
        """Whether its detector trains; one that does not is fitted to the normals."""
        return DETECTORS[self.detector].trained


_NONE_HELD_OUT = {"held_out": 0.0, "in_turn": False}
# No table has heat maps, and fine ones take every test image through the trunk once more.
_DENSITY = differing_settings(
    preset("paper", ""), preset("density", "", fine_heat=False, **_NONE_HELD_OUT)
)
_FEATURES = {name: _DENSITY[name] for name in ("levels", "whiten")}
_TRAINED = {name: _DENSITY[name] for name in _DENSITY if name != "method"}
_RATE = {"lr_base": LearningConfig().lr}
"""The published learning rate of a detector alone is a tenth of that of AHL's unified one."""

METHODS = {
    "Gaussian": Method({**_FEATURES, "detector": "gaussian", "method": "fit"}),
    "PatchCore": Method({"detector": "patchcore", "method": "fit"}),
    "SAOE": Method({"detector": "saoe", "method": "base"}),
    "MLEP": Method({"detector": "mlep", "method": "base"}),
    "FLOS": Method({"detector": "flos", "method": "base"}),
    "DevNet": Method({"detector": "devnet", "method": "base"}),
    "DevNet, rate of AHL": Method({"detector": "devnet", "method": "base", **_RATE}),
    "Ensemble of DevNets": Method(
        {"detector": "devnet", "method": "ensemble", **_RATE}, ("DevNet, rate of AHL",)
    ),
    "AHL(DevNet)": Method({"detector": "devnet"}, ("DevNet",)),
    "AHL(DevNet), 20 updates per epoch": Method(
        {"detector": "devnet", "updates_per_epoch": 20},
        ("DevNet, rate of AHL", "DevNet", "Ensemble of DevNets"),
    ),
    "DRA": Method({"detector": "dra", "method": "base"}),
    "DRA, rate of AHL": Method({"detector": "dra", "method": "base", **_RATE}),
    "Ensemble of DRAs": Method(
        {"detector": "dra", "method": "ensemble", **_RATE}, ("DRA, rate of AHL",)
    ),
    "AHL(DRA)": Method({"detector": "dra"}, ("DRA",)),
    "AHL(DRA), 20 updates per epoch": Method(
        {"detector": "dra", "updates_per_epoch": 20},
        ("DRA, rate of AHL", "DRA", "Ensemble of DRAs"),
    ),
    "Density": Method(_DENSITY),
    "Density, one view": Method({**_DENSITY, "views": 1}, ("Density",)),
    "Density, eight views": Method({**_DENSITY, "views": 8}, ("Density",)),
    "Density, last level": Method({**_DENSITY, "levels": 1}, ("Density",)),
    "Density, trained": Method({**_TRAINED, "method": "base"}, ("Density",)),
    "AHL(Density)": Method(_TRAINED, ("Density, trained", "Density")),
}
"""Tables 1 and 2; a detector more is a line more. Names that the paper has are spelt as there."""

SUPERVISION = {
    name: METHODS[name] for name in ("PatchCore", "Gaussian", "AHL(DRA)", "Density", "AHL(Density)")
} | {
    "FS-DRA": Method({"detector": "dra", "method": "base", "setting": "full"}),
    "FS-Density": Method({**_DENSITY, "setting": "full"}),
}
"""Table 4: from no anomaly to M of every class."""

COMPONENTS = {
    "DRA": METHODS["DRA"],
    "+Ensemble": Method({"detector": "dra", "method": "ensemble"}, ("DRA",)),
    "+CDL": Method({"detector": "dra", "grouping": "random", "importance": "uniform"}, ("DRA",)),
    "+HADG+CDL": Method({"detector": "dra", "importance": "uniform"}, ("DRA",)),
    "+HADG+CDL-": Method({"detector": "dra", "importance": "accuracy"}, ("DRA",)),
    "+HADG+CDL+": METHODS["AHL(DRA)"],
}
"""Table 5: the gain of each component of AHL over DRA."""


def varied(start: Method, setting: str, values: Sequence[Any]) -> dict[str, Method]:
    """A row for each value of a setting, named such as ``C = 3`` or ``lr base = 0.002``."""
    symbols = {name: symbol for symbol, name in SHORT.items()}
    symbol = symbols.get(setting, setting.replace("_", " "))
    return {
        f"{symbol} = {in_words(value)}": Method({**start.settings, setting: value}, start.against)
        for value in values
    }


def in_words(value: Any) -> str:
    """A setting's value as a table names it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(value) if isinstance(value, tuple) else str(value).replace("_", " ")
