"""Reads the pickle stream of a torch checkpoint as data: no import, no call, no unpickler.

A pickle is a program for a small stack machine. This module steps through its opcodes and knows
only those that build plain values (numbers, strings, tuples, lists, dicts). A global name becomes
an inert ``GlobalName`` and must be in a closed table; the REDUCE opcode is understood for three
constructors, each of which builds a record in this file. Nothing in a stream can therefore run,
import or look up anything. Every size is bounded, because a file may claim any.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

# 25 opcodes describe a tensor, so this admits 80,000 of them, in at most a few hundred megabytes.
MAX_OPCODES = 2_000_000

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = "torch._utils._rebuild_parameter"
_GLOBALS = {_ORDERED_DICT, *_TENSOR, _PARAMETER, *(f"torch.{name}" for name in STORAGES)}


class FormatError(ValueError):
    """The stream is damaged, or asks for more than plain tensors; the message is a clause."""


@dataclass(frozen=True)
class GlobalName:
    """A name such as ``torch.FloatStorage``; only ever compared with the table above."""

    name: str


@dataclass(frozen=True)
class StorageRef:
    """A run of ``numel`` numbers elsewhere in the file, under ``key``."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A strided window on a storage; offset and strides count elements, unchecked."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """The stack's mark."""


_MARK = _Mark()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NO_EFFECT = {"PROTO", "FRAME"}


def read_value(stream: BinaryIO) -> tuple[Any, dict[str, StorageRef]]:
    """Reads one pickled value, up to its STOP opcode, where the stream is left.

    Args:
        stream: a seekable in-memory stream.

    Returns:
        Plain Python values, with ``TensorRef``, ``StorageRef`` and ``GlobalName`` inside; and every
        storage they name, by key.

    Raises:
        FormatError: if the stream is damaged or holds anything but plain values and tensors.
    """
    machine = _Machine()
    try:
        # genops decodes the arguments of opcodes and does nothing with them.
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise FormatError("describes far more values than a network has")
            machine.step(opcode.name, argument)
        return machine.pop(), machine.storages
    except FormatError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise FormatError("is damaged or is not a torch weights file") from error


class _Machine:
    """The stack and the memo; ``step`` applies one opcode."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise FormatError("is damaged or is not a torch weights file")
        return value

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise FormatError("is damaged or is not a torch weights file")

    def step(self, opcode: str, argument: Any) -> None:
        push = self.stack.append
        if opcode in _LITERALS:
            push(argument)
        elif opcode in _CONSTANTS:
            push(_CONSTANTS[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif opcode in _TUPLES:
            push(tuple([self.pop() for _ in range(_TUPLES[opcode])][::-1]))
        elif opcode == "TUPLE":
            push(tuple(self.pop_to_mark()))
        elif opcode in ("SETITEM", "SETITEMS"):
            pairs = [self.pop(), self.pop()][::-1] if opcode == "SETITEM" else self.pop_to_mark()
            _update(self.stack[-1], pairs[::2], pairs[1::2])
        elif opcode in ("APPEND", "APPENDS"):
            items = [self.pop()] if opcode == "APPEND" else self.pop_to_mark()
            if type(self.stack[-1]) is not list:
                raise FormatError("is damaged or is not a torch weights file")
            self.stack[-1].extend(items)
        elif opcode == "GLOBAL":
            push(_global(argument.replace(" ", ".", 1)))
        elif opcode == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
            if type(name) is not str or type(module) is not str:
                raise FormatError("is damaged or is not a torch weights file")
            push(_global(f"{module}.{name}"))
        elif opcode == "REDUCE":
            arguments, name = self.pop(), self.pop()
            push(_construct(name, arguments))
        elif opcode == "BUILD":
            # State of an OrderedDict: torch's version numbers of modules. Not needed, so dropped.
            self.pop()
            if type(self.stack[-1]) is not dict:
                raise FormatError("holds an object with state of its own, not only tensors")
        elif opcode == "BINPERSID":
            storage = _storage(self.pop())
            if self.storages.setdefault(storage.key, storage) != storage:
                raise FormatError("describes one storage in two ways")
            push(storage)
        elif opcode not in _NO_EFFECT and opcode != "STOP":
            raise FormatError(f"uses the pickle opcode {opcode}, which no weights need")


def _update(target: Any, keys: list[Any], values: list[Any]) -> None:
    # Keys are restricted because hashing a deeply nested tuple can exhaust the C stack.
    if type(target) is not dict or not all(type(key) in (str, int) for key in keys):
        raise FormatError("holds something other than a dict of named tensors")
    target.update(zip(keys, values, strict=True))


def _global(name: str) -> GlobalName:
    if name not in _GLOBALS:
        raise FormatError(
            f"asks for {name[:80]!a}, which is code and not a tensor, and was not run"
        )
    return GlobalName(name)


def _construct(function: Any, arguments: Any) -> Any:
    """The value that one of the three known constructors means; ``function`` is never called."""
    if not isinstance(function, GlobalName) or type(arguments) is not tuple:
        raise FormatError("calls something that is not a tensor constructor")
    if function.name == _ORDERED_DICT and not arguments:
        return {}
    if function.name in _TENSOR and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, StorageRef) and _sizes((offset,)) and _sizes(shape, strides):
            return TensorRef(storage, offset, shape, strides)
    if function.name == _PARAMETER and arguments and isinstance(arguments[0], TensorRef):
        return arguments[0]
    raise FormatError("has a tensor description that makes no sense")


def _storage(identity: Any) -> StorageRef:
    """The persistent id ("storage", type, key, location, numel, and in old files a view)."""
    if type(identity) is not tuple or not 5 <= len(identity) <= 6 or identity[0] != "storage":
        raise FormatError("has a storage description that makes no sense")
    kind, key, numel = identity[1], identity[2], identity[4]
    dtype = STORAGES.get(kind.name.removeprefix("torch.")) if isinstance(kind, GlobalName) else None
    if dtype is None or type(key) is not str or not _sizes((numel,)):
        raise FormatError("has a storage description that makes no sense")
    if len(identity) == 6 and identity[5] is not None:
        raise FormatError("has storages that are views, as torch before 0.4 wrote them")
    return StorageRef(dtype, key, numel)


def _sizes(*values: Any) -> bool:
    """Whether all are tuples of integers from 0 to below 2**48 (bool is not one of them)."""
    return all(
        type(value) is tuple and all(type(n) is int and 0 <= n < 2**48 for n in value)
        for value in values
    )
