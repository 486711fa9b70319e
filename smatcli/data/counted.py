"""Counter-based random numbers: a seed is a hash of names and counters."""

import hashlib

import numpy as np


def counted_key(*parts: str | int | tuple[str, ...]) -> int:
    """128-bit key of the parts (SHA-256 of their text): equal parts give equal keys on every machine."""
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in parts)
    return int.from_bytes(hashlib.sha256(repr(plain).encode()).digest()[:16], "little")


def counted_rng(*parts: str | int | tuple[str, ...]) -> np.random.Generator:
    """Return the generator that is keyed by the parts, independent of all earlier draws."""
    return np.random.Generator(np.random.Philox(key=counted_key(*parts)))
