"""Mutations of valid files: bytes flipped, put in, cut out, repeated, words exchanged; an equal seed gives equal ones."""

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
    """A few random changes of `data`; `other` lends pieces."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        _CHANGES[chance.randrange(len(_CHANGES))](made, chance, other or data)
    return bytes(made)


def _place(made: bytearray, chance: random.Random) -> int:
    """Anywhere, or near an end, where headers and directories are."""
    kind = chance.random()
    if kind < 0.6 or len(made) < 512:
        return chance.randrange(len(made) + 1)
    return chance.randrange(512) if kind < 0.85 else len(made) - chance.randrange(512)


def _flip(made: bytearray, chance: random.Random, other: bytes) -> None:
    if made:
        at = min(_place(made, chance), len(made) - 1)
        made[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, made[at] ^ (1 << chance.randrange(8)), chance.randrange(256)))


def _number(made: bytearray, chance: random.Random, other: bytes) -> None:
    at, size = _place(made, chance), chance.choice((1, 2, 4, 8))
    made[at : at + size] = (chance.choice(NUMBERS) % 256**size).to_bytes(size, chance.choice(("little", "big")))


def _word(made: bytearray, chance: random.Random, other: bytes) -> None:
    at = _place(made, chance)
    made[at : at + chance.choice((0, 0, 1, 3, 8))] = chance.choice(WORDS)


def _cut(made: bytearray, chance: random.Random, other: bytes) -> None:
    at = _place(made, chance)
    del made[at : at + chance.choice((1, 2, 8, 64, len(made)))]


def _repeat(made: bytearray, chance: random.Random, other: bytes) -> None:
    at = _place(made, chance)
    piece = bytes(made[at : at + chance.choice((1, 4, 16, 256))])
    made[at:at] = piece * chance.choice((1, 2, 50))


def _borrow(made: bytearray, chance: random.Random, other: bytes) -> None:
    start, at = chance.randrange(len(other) + 1), _place(made, chance)
    piece = other[start : start + chance.choice((1, 4, 16, 64))]
    made[at : at + chance.choice((0, len(piece)))] = piece


_CHANGES = (_flip, _flip, _flip, _number, _number, _word, _word, _cut, _repeat, _borrow)
