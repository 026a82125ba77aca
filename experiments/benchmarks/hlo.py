"""What a compiled program says about its own execution: pure functions of its HLO text.

A loop's body counts as often as the loop goes round, which is the constant that its condition
compares its counter with: the loops that JAX compiles begin at 0 and add 1. Of a conditional the
branch with the most cycles counts. The operations inside a fusion have no cycles of their own, but
a collective in there is executed all the same.
"""

import collections
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONSTANT = re.compile(r"[su]\d+\[\]\S* constant\((\d+)\)")
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|all-to-all|ragged-all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast)(-start)?"
)
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    opcode: str
    text: str
    """The whole line."""

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one execution; 0 where it makes none."""
        found = _CYCLES.search(self.text)
        return int(found[1]) if found else 0

    @property
    def shape(self) -> str:
        """The dtype and shape of its result, of several arrays the one with the most numbers."""
        result = self.text.split(" = ", 1)[1].split(f" {self.opcode}(", 1)[0]
        sizes = [
            (math.prod(int(side) for side in sides.split(",") if side), f"{dtype}[{sides}]")
            for dtype, sides in _SHAPE.findall(result)
        ]
        return max(sizes, default=(0, ""))[1]

    @property
    def collective(self) -> str | None:
        """Which kind of exchange between devices it begins, if any."""
        found = _COLLECTIVE.fullmatch(self.opcode)
        return found[1] if found else None

    @property
    def between_slices(self) -> str | None:
        """Which kind of exchange between slices of TPUs it begins, if any.

        The TPU's compiler has hosts send these; what is left of one within a slice is a collective.
        """
        found = _BETWEEN_SLICES.search(self.text) if self.opcode == "send" else None
        return found[1].lower().replace("_", "-") if found else None

    def computations(self, attribute: str) -> list[str]:
        """The names that an attribute such as ``body`` or ``calls`` gives."""
        found = re.search(rf"\b{attribute}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.text)
        if not found:
            return []
        return [name.strip().removeprefix("%") for name in (found[1] or found[2]).split(",")]


class Program(NamedTuple):
    """A module's computations by name, and the name of the one that runs first."""

    computations: dict[str, list[Instruction]]
    entry: str


class Totals(NamedTuple):
    """What one call of a program executes on each device."""

    cycles: int
    """By the compiler's estimate, loops included."""

    operations: dict[str, int]
    """Cycles of each instruction that has any, loops included, the largest first."""

    executions: dict[str, int]
    """How often each of those instructions is executed."""

    collectives: dict[str, int]
    """How many exchanges of each kind, loops included, in alphabetical order."""

    between_slices: dict[str, int]
    """The same of exchanges between slices, which ``collectives`` has not."""

    unknown_loops: int
    """How many loops do not tell how often they go round; each counts once."""


def parse(text: str) -> Program:
    """Read the text of a compiled module.

    Raises:
        ValueError: if it has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, own = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            own = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif own is not None and (found := _INSTRUCTION.match(line)):
            own.append(Instruction(found[1], found[2], line))
    if not entry:
        raise ValueError("the text has no entry computation; is it that of a compiled program?")
    return Program(computations, entry)


def trips(program: Program, condition: str) -> int | None:
    """How often the loop with this condition goes round; None if no single constant says it."""
    found: set[int] = set()
    further = 0
    for instruction in _with_fused(program, condition):
        found |= {int(number) for number in _CONSTANT.findall(instruction.text)}
        further += "direction=LE" in instruction.text
    return found.pop() + bool(further) if len(found) == 1 else None


def totals(text: str) -> Totals:
    """What one call of the program with this text executes.

    Raises:
        ValueError: if it is not the text of a compiled program.
    """
    program = parse(text)
    whole = _of(program, program.entry, {})
    operations = dict(sorted(whole.operations.items(), key=lambda item: (-item[1], item[0])))
    return Totals(
        sum(operations.values()),
        operations,
        {name: whole.executions[name] for name in operations},
        dict(sorted(whole.collectives.items())),
        dict(sorted(whole.between_slices.items())),
        whole.unknown_loops,
    )


class _Sums(NamedTuple):
    operations: collections.Counter[str]
    executions: collections.Counter[str]
    collectives: collections.Counter[str]
    between_slices: collections.Counter[str]
    unknown_loops: int

    def plus(self, other: "_Sums", times: int) -> "_Sums":
        for mine, others in zip(self[:4], other[:4], strict=True):
            for name, number in others.items():
                mine[name] += times * number
        return self._replace(unknown_loops=self.unknown_loops + other.unknown_loops)


def _of(program: Program, computation: str, known: dict[str, _Sums]) -> _Sums:
    """The sums of one execution of a computation; ``known`` keeps those of every computation."""
    if computation in known:
        return known[computation]
    sums = _Sums(*(collections.Counter[str]() for _ in range(4)), 0)
    for one in program.computations.get(computation, []):
        if one.cycles:
            sums.operations[one.name] += one.cycles
            sums.executions[one.name] += 1
        if one.collective:
            sums.collectives[one.collective] += 1
        if one.between_slices:
            sums.between_slices[one.between_slices] += 1
        if one.opcode == "while":
            times = trips(program, one.computations("condition")[0])
            (body,) = one.computations("body")
            sums = sums.plus(_of(program, body, known), 1 if times is None else times)
            sums = sums._replace(unknown_loops=sums.unknown_loops + (times is None))
        elif one.opcode == "conditional":
            names = [
                name
                for attribute in ("branch_computations", "true_computation", "false_computation")
                for name in one.computations(attribute)
            ]
            branches = [_of(program, name, known) for name in names]
            sums = sums.plus(max(branches, key=lambda branch: branch.operations.total()), 1)
        elif one.opcode in ("call", "async-start"):
            for name in one.computations("to_apply") or one.computations("calls"):
                sums = sums.plus(_of(program, name, known), 1)
        elif one.opcode == "fusion":
            sums.collectives.update(_begun_in(program, one))
    known[computation] = sums
    return sums


def _begun_in(program: Program, fusion: Instruction) -> list[str]:
    """The collectives that a fusion begins.

    The TPU's compiler lets an exchange go on behind other operations: one fusion begins it, another
    awaits it, and those between, each with a copy of the collective, are one and the same exchange.
    """
    begun: list[str] = []
    for name in fusion.computations("calls"):
        inside = _with_fused(program, name)
        awaits = any('"AsyncCollectiveDone"' in one.text for one in inside)
        if not awaits and not name.startswith("async_collective_fusion"):
            begun += [one.collective for one in inside if one.collective]
    return begun


def _with_fused(program: Program, computation: str) -> list[Instruction]:
    """A computation's instructions and those of the fusions in it."""
    found = list(program.computations.get(computation, []))
    for one in found[:]:
        if one.opcode == "fusion":
            for name in one.computations("calls"):
                found += _with_fused(program, name)
    return found
