"""A seal behind the end of an HDF5 file, where HDF5 ignores it: whether the file's structure is what was written.

The HDF5 library can loop for ever on a damaged structure, so the seal is checked before the library sees the file. It tells damage, not
malice. Layout: magic, first and last byte of what it leaves out (images have a hash of their own), SHA-256 of all other bytes.
"""

import hashlib
import struct
from pathlib import Path
from typing import IO

_SEAL = struct.Struct("<8sQQ32s")
_MAGIC = b"SMATSEAL"


def seal(path: Path, start: int = 0, stop: int = 0) -> None:
    """Append the seal of everything in the file but the bytes `start` to `stop`."""
    with path.open("r+b") as file:
        digest = _structure(file, start, stop, file.seek(0, 2))
        file.seek(0, 2)
        file.write(_SEAL.pack(_MAGIC, start, stop, digest))


def is_sealed(path: Path) -> bool:
    """Whether the file ends with a seal, broken or not."""
    with path.open("rb") as file:
        return _read(file) is not None


def seal_is_broken(path: Path) -> bool:
    """Whether the file has a seal that does not fit; a file without one (another program's) passes."""
    with path.open("rb") as file:
        found = _read(file)
        if found is None:
            return False
        start, stop, end, digest = found
        return not (start <= stop <= end and _structure(file, start, stop, end) == digest)


def _read(file: IO[bytes]) -> tuple[int, int, int, bytes] | None:
    """First and last byte that is left out, the end of what is sealed, and the digest."""
    end = file.seek(0, 2) - _SEAL.size
    if end < 0:
        return None
    file.seek(end)
    magic, start, stop, digest = _SEAL.unpack(file.read(_SEAL.size))
    return (start, stop, end, digest) if magic == _MAGIC else None


def _structure(file: IO[bytes], start: int, stop: int, end: int) -> bytes:
    digest = hashlib.sha256(struct.pack("<QQ", start, stop))
    for first, last in ((0, start), (stop, end)):
        file.seek(first)
        left = last - first
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
    return digest.digest()
