"""What reading and writing a store have in common: format version, names of splits and encodings, content hash, seal."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
SPLITS = ("train", "valid", "test")
ENCODINGS = ("raw", "jpeg")


def hash_content(
    image_digest: bytes,
    image_size: int,
    names: Sequence[str],
    offsets: Sequence[int],
    split: Sequence[int],
    extras: Mapping[str, str] | None = None,
) -> str:
    """SHA-256 (hex) over a JSON line of image size, class names, offsets and splits, followed by the SHA-256 digest of all image bytes.

    `extras`, when there are any, are a fifth element of the line: encoding "jpeg", and SHA-256 of the optional datasets (hex).
    """
    facts: list[object] = [image_size, list(names), [int(o) for o in offsets], [int(s) for s in split]]
    head = json.dumps(facts + ([dict(sorted(extras.items()))] if extras else []), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(head.encode() + b"\n" + image_digest).hexdigest()


# The HDF5 library can loop for ever on a damaged structure, so the bytes around the images are sealed behind the end of the HDF5 data
# (where HDF5 ignores them) and checked before the library sees the file: magic, first and last byte of the images, SHA-256.
_SEAL = struct.Struct("<8sQQ32s")
_MAGIC = b"SMATSEAL"


def seal(path: Path, start: int, stop: int) -> None:
    """Append the seal of everything in the file but the images, bytes `start` to `stop`."""
    with path.open("r+b") as file:
        digest = _structure(file, start, stop, file.seek(0, 2))
        file.seek(0, 2)
        file.write(_SEAL.pack(_MAGIC, start, stop, digest))


def seal_is_broken(path: Path) -> bool:
    """Whether the file has a seal that does not fit; a file without one (another program's) passes."""
    with path.open("rb") as file:
        end = file.seek(0, 2) - _SEAL.size
        if end < 0:
            return False
        file.seek(end)
        magic, start, stop, digest = _SEAL.unpack(file.read(_SEAL.size))
        return magic == _MAGIC and not (start <= stop <= end and _structure(file, start, stop, end) == digest)


def _structure(file: IO[bytes], start: int, stop: int, end: int) -> bytes:
    digest = hashlib.sha256(struct.pack("<QQ", start, stop))
    for first, last in ((0, start), (stop, end)):
        file.seek(first)
        left = last - first
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
    return digest.digest()
