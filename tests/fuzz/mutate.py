"""Mutations of valid files: flip, insert, delete and repeat bytes, insert words. Equal seeds give equal mutations."""

import random

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**62, 2**63, 2**64 - 1)
WORDS = tuple(
    word.encode()
    for word in (
        "null", "true", "-1", "0", "1e999", "NaN", "Infinity", "9" * 25, "[]", "{}", '""', "[" * 40, '{"a":' * 40, "../../x", "/etc/x",
        "\\u0000", "\x00", "\n", "\r\n", "\t", "\xff", "&a", "*a", "<<: *a", "!!python/object:os.x",
        "!!binary x", "? ", "- ", ": ", "#", "%", "\u202e", "\ufeff", "'", '"', ",", ".", "=",
    )
)  # fmt: skip


def mutated(data: bytes, chance: random.Random, other: bytes = b"") -> bytes:
    """Return `data` with a few random changes; pieces to insert come from `other`."""
    buffer = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        _CHANGES[chance.randrange(len(_CHANGES))](buffer, chance, other or data)
    return bytes(buffer)


def _place(buffer: bytearray, chance: random.Random) -> int:
    """Return a random position, more often near either end, where headers and directories are."""
    kind = chance.random()
    if kind < 0.6 or len(buffer) < 512:
        return chance.randrange(len(buffer) + 1)
    return chance.randrange(512) if kind < 0.85 else len(buffer) - chance.randrange(512)


def _flip(buffer: bytearray, chance: random.Random, other: bytes) -> None:
    if buffer:
        at = min(_place(buffer, chance), len(buffer) - 1)
        buffer[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, buffer[at] ^ (1 << chance.randrange(8)), chance.randrange(256)))


def _number(buffer: bytearray, chance: random.Random, other: bytes) -> None:
    at, size = _place(buffer, chance), chance.choice((1, 2, 4, 8))
    buffer[at : at + size] = (chance.choice(NUMBERS) % 256**size).to_bytes(size, chance.choice(("little", "big")))


def _word(buffer: bytearray, chance: random.Random, other: bytes) -> None:
    at = _place(buffer, chance)
    buffer[at : at + chance.choice((0, 0, 1, 3, 8))] = chance.choice(WORDS)


def _cut(buffer: bytearray, chance: random.Random, other: bytes) -> None:
    at = _place(buffer, chance)
    del buffer[at : at + chance.choice((1, 2, 8, 64, len(buffer)))]


def _repeat(buffer: bytearray, chance: random.Random, other: bytes) -> None:
    at = _place(buffer, chance)
    piece = bytes(buffer[at : at + chance.choice((1, 4, 16, 256))])
    buffer[at:at] = piece * chance.choice((1, 2, 50))


def _borrow(buffer: bytearray, chance: random.Random, other: bytes) -> None:
    start, at = chance.randrange(len(other) + 1), _place(buffer, chance)
    piece = other[start : start + chance.choice((1, 4, 16, 64))]
    buffer[at : at + chance.choice((0, len(piece)))] = piece


_CHANGES = (_flip, _flip, _flip, _number, _number, _word, _word, _cut, _repeat, _borrow)
