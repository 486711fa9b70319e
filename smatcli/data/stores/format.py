"""Shared by reader and writer of stores: format version, names of splits and encodings, content hash, seal."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from smatcli.safe.seal import seal, seal_is_broken

__all__ = ["ENCODINGS", "FORMAT_VERSION", "SPLITS", "hash_content", "seal", "seal_is_broken"]

FORMAT_VERSION = 2
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
    """Return the SHA-256 (hex) of a JSON line of image size, class names, offsets and splits, followed by the digest of all image bytes.

    Non-empty `extras` are a fifth element of the line: encoding "jpeg", and SHA-256 of the optional datasets (hex).
    """
    facts: list[object] = [image_size, list(names), [int(o) for o in offsets], [int(s) for s in split]]
    head = json.dumps(facts + ([dict(sorted(extras.items()))] if extras else []), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(head.encode() + b"\n" + image_digest).hexdigest()
