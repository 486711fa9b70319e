"""Reading a whole store again and comparing it with its content hash."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from smatcli.data.store import Store, hash_content
from smatcli.errors import UserError

_BLOCK = 2**22


def verify_store(path: str | Path, progress: Callable[[int], None] = lambda images: None) -> str | None:
    """What is wrong with a store, or None: every image is read and everything is hashed again. `progress` gets the images done."""
    try:
        store = Store.open(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    image_bytes = store.image_size**2 * 3
    digest, left = hashlib.sha256(), len(store) * image_bytes
    try:
        with store.path.open("rb") as file:
            file.seek(store.offset)
            while left > 0:
                block = file.read(min(_BLOCK, left))
                if not block:
                    return f"truncated: {left:,} bytes of images are missing"
                digest.update(block)
                left -= len(block)
                progress(len(store) - -(-left // image_bytes))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    content = hash_content(digest.digest(), store.image_size, store.class_names, store.class_offsets.tolist(), store.class_split.tolist())
    if content != store.content_hash:
        return f"damaged: the content hash is {content[:12]}..., recorded was {store.content_hash[:12]}..."
    return None
