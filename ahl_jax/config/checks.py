"""Which settings a run may have."""

import dataclasses
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from tyro import MISSING

from ahl_jax.common.errors import UserError

if TYPE_CHECKING:
    from ahl_jax.config.settings import Config


def check_types(config: "Config") -> None:
    """Refuse values of another type or choice than a setting's, as Python code may give them.

    Raises:
        UserError: for the first one, by the name of its option.
    """
    for part in vars(config).values():
        if not dataclasses.is_dataclass(part):
            continue
        for name, hint in get_type_hints(type(part)).items():
            value, option = getattr(part, name), f"--{name.replace('_', '-')}"
            kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            if (value is None and NoneType in kinds) or value is MISSING:
                continue
            kind = next(k for k in kinds if k is not NoneType)
            if get_origin(kind) is Literal:
                if value not in get_args(kind) or isinstance(value, bool):
                    choices = ", ".join(map(str, get_args(kind)))
                    raise UserError(f"{option} is {value!r}; choose from {choices}")
            elif not _is(value, kind):
                raise UserError(f"{option} is {value!r}; it must be {_IN_WORDS[kind]}")


_IN_WORDS: dict[Any, str] = {
    bool: "a bool",
    int: "an int",
    float: "a float",
    str: "a str",
    Path: "a pathlib.Path",
    tuple[str, ...]: "a tuple of str",
}


def _is(value: Any, kind: Any) -> bool:
    """Whether the value is of a setting's type, which is one that JSON keeps."""
    if kind == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def check(config: "Config") -> None:
    """Range checks.

    Raises:
        UserError: for the first setting out of range, by the name of its option.
    """
    d, s, det = config.data, config.subsets, config.detector
    lrn, imp, one = config.learning, config.importance, config.stage_one
    # Fine-tuning and what trains nothing may have normals alone.
    fewest = 0 if config.source or lrn.method == "fit" else 1
    at_least = [
        ("shots", d.shots, fewest), ("subsets", s.subsets, 1), ("clusters", s.clusters, 2),
        ("image-size", config.features.image_size, 192),
        ("image-batch", config.features.image_batch, 1),
        ("pseudo-per-generator", config.pseudo.pseudo_per_generator, fewest),
        ("references", det.references, 1), ("hidden", det.hidden, 1),
        ("groups", det.groups, 1), ("coreset", det.coreset, 1),
        ("epochs", lrn.epochs, 1), ("steps", lrn.steps, 1), ("batch", lrn.batch, 3),
        ("passes", lrn.passes, 1), ("decay-every", lrn.decay_every, 1),
        ("history", imp.history, 1), ("psi-passes", imp.psi_passes, 1),
        ("psi-batch", imp.psi_batch, 1),
        ("stage-one-epochs", one.stage_one_epochs, 1), ("stage-one-steps", one.stage_one_steps, 1),
        ("stage-one-batch", one.stage_one_batch, 3),
    ]  # fmt: skip
    if d.limit is not None:
        at_least.append(("limit", d.limit, 3))
    for name, value, low in at_least:
        if value < low:
            message = f"--{name} is {value}; it must be {low} or more"
            if (name, value) == ("shots", 0):
                message += ", or train nothing: --method fit --detector patchcore"
            raise UserError(message)
    above_zero = [
        ("lr", lrn.lr),
        ("lr-base", lrn.lr_base),
        ("clip", lrn.clip),
        ("psi-lr", imp.psi_lr),
        ("margin", det.margin),
        ("stage-one-lr", one.stage_one_lr),
    ]
    for name, rate in above_zero:
        if not rate > 0:
            raise UserError(f"--{name} is {rate}; it must be above 0")
    for name, fraction in (("top-k", det.top_k), ("decay", lrn.decay)):
        if not 0 < fraction <= 1:
            raise UserError(f"--{name} is {fraction}; it must be above 0 and at most 1")
    if not 0 <= d.held_out <= 0.5:
        raise UserError(f"--held-out is {d.held_out}; it must be from 0 to 0.5")
    if one.weight_decay < 0:
        raise UserError(f"--weight-decay is {one.weight_decay}; it must be 0 or more")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"--seed is {config.seed}; it must be from 0 to {2**31 - 1}")
    size = config.features.image_size
    if size % 64:  # Both scales must divide by the trunk's stride.
        raise UserError(f"--image-size is {size}; it must be a multiple of 64")
    names = config.pseudo.generators
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(
            "--generators needs two or more different generators, because the support and the "
            "query set of a subset never share one"
        )
    if lrn.steps % lrn.updates_per_epoch or lrn.updates_per_epoch < 1:
        raise UserError(
            f"--updates-per-epoch is {lrn.updates_per_epoch}; it must divide --steps ({lrn.steps})"
        )
    if not d.shots and d.setting != "general":
        raise UserError(f"no anomaly is drawn from normals only; leave out --setting {d.setting}")
    if d.setting == "hard" and d.seen_class is None:
        raise UserError("the hard setting needs --seen-class, the anomaly class seen in training")
    if d.setting != "hard" and d.seen_class is not None:
        raise UserError("--seen-class belongs to the hard setting; add --setting hard")
