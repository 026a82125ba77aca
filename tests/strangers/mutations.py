"""Damage as a stranger may do it on purpose: seeded, so that a failure can be had again."""

import random
import re
from collections.abc import Callable

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]
_WORDS = [
    b"-1", b"0", b"99999999999999999999", b"1e999", b"NaN", b"null", b'"x"', b"[]", b"{}", b"\0",
    b"../../etc/passwd", b"/dev/zero", b'","', b"\n", b"=1+1", b"[" * 100_000, b"9" * 5000,
]  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four changes."""
    for _ in range(draw.randint(1, 4)):
        content = draw.choice(_CHANGES)(content, draw)
    return content


def _place(content: bytes, draw: random.Random) -> int:
    # Heads decide more than what follows.
    most = draw.choice([len(content), min(len(content), 128)])
    return draw.randrange(max(most, 1))


def _byte(content: bytes, draw: random.Random) -> bytes:
    i = _place(content, draw)
    return content[:i] + bytes([draw.randrange(256)]) + content[i + 1 :]


def _bit(content: bytes, draw: random.Random) -> bytes:
    i = _place(content, draw)
    old = content[i] if content else 0
    return content[:i] + bytes([old ^ 1 << draw.randrange(8)]) + content[i + 1 :]


def _number(content: bytes, draw: random.Random) -> bytes:
    size, order = draw.choice([1, 2, 4, 8]), draw.choice(["little", "big"])
    i, number = _place(content, draw), draw.choice(_NUMBERS) % 256**size
    return content[:i] + number.to_bytes(size, order) + content[i + size :]


def _word(content: bytes, draw: random.Random) -> bytes:
    """Another value in the place of a number or a string of a text."""
    found = [*re.finditer(rb'"[^"]*"|[0-9.]+|\w+', content[:100_000])]
    start, end = draw.choice(found).span() if found else (0, 0)
    return content[:start] + draw.choice(_WORDS) + content[end:]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: _place(content, draw)]


def _without(content: bytes, draw: random.Random) -> bytes:
    i = _place(content, draw)
    return content[:i] + content[i + draw.randint(1, 64) :]


def _repeated(content: bytes, draw: random.Random) -> bytes:
    i, length = _place(content, draw), draw.randint(1, 64)
    return content[:i] + content[i : i + length] * draw.choice([2, 3, 100]) + content[i + length :]


_CHANGES: list[Callable[[bytes, random.Random], bytes]] = [
    _byte, _bit, _number, _word, _cut, _without, _repeated,
]  # fmt: skip
