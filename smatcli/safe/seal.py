"""A seal after the end of an HDF5 file, where HDF5 ignores it: a checksum of the file's structure.

The HDF5 library can loop forever on a damaged structure, so the seal is checked before the library opens the file. The seal detects damage,
not malice: anyone can compute it, and a forged file can at worst hang the reader until it is interrupted. A secret key, or a list of the
stores prepared on this machine, would gain nothing else and would also reject stores that were copied from a colleague.
Layout: magic, first and last byte of the excluded range (images have a separate hash), SHA-256 of all other bytes.
"""

import hashlib
import struct
from pathlib import Path
from typing import IO

_SEAL = struct.Struct("<8sQQ32s")
_MAGIC = b"SMATSEAL"


def seal(path: Path, start: int = 0, stop: int = 0) -> None:
    """Append the seal of the file without the bytes `start` to `stop`."""
    with path.open("r+b") as file:
        digest = _structure(file, start, stop, file.seek(0, 2))
        file.seek(0, 2)
        file.write(_SEAL.pack(_MAGIC, start, stop, digest))


def is_sealed(path: Path) -> bool:
    """Return whether the file ends with a seal, broken or intact."""
    with path.open("rb") as file:
        return _read(file) is not None


def seal_is_broken(path: Path) -> bool:
    """Return whether the file has a seal that does not match its structure. False for a file without a seal (from another program)."""
    with path.open("rb") as file:
        fields = _read(file)
        if fields is None:
            return False
        start, stop, end, digest = fields
        return not (start <= stop <= end and _structure(file, start, stop, end) == digest)


def _read(file: IO[bytes]) -> tuple[int, int, int, bytes] | None:
    """Return first and last byte of the excluded range, the end of the sealed bytes, and the digest."""
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
