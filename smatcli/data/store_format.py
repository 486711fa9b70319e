"""What reading and writing a store have in common: format version, split names, content hash."""

import hashlib
import json
from collections.abc import Sequence

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")


def hash_content(image_digest: bytes, image_size: int, names: Sequence[str], offsets: Sequence[int], split: Sequence[int]) -> str:
    """SHA-256 (hex) over a JSON line of image size, class names, offsets and splits, followed by the SHA-256 digest of all image bytes."""
    head = json.dumps(
        [image_size, list(names), [int(o) for o in offsets], [int(s) for s in split]], ensure_ascii=True, separators=(",", ":")
    )
    return hashlib.sha256(head.encode() + b"\n" + image_digest).hexdigest()
