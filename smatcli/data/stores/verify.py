"""Verification of a whole store against its content hash."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from smatcli.data.stores.store import Store, hash_content
from smatcli.errors import UserError

_BLOCK = 2**22


def verify_store(path: str | Path, progress: Callable[[int], None] = lambda images: None) -> str | None:
    """Read and hash everything in a store; return a description of the problem, or None. `progress` gets the number of images read.

    Encoded images are not decoded: each was decoded when the store was written, and the hash covers their bytes.
    """
    try:
        store = Store.open(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    each = store.image_bytes / len(store)
    digest, left = hashlib.sha256(), store.image_bytes
    try:
        with store.path.open("rb") as file:
            file.seek(store.offset)
            while left > 0:
                block = file.read(min(_BLOCK, left))
                if not block:
                    return f"truncated: {left:,} bytes of images are missing"
                digest.update(block)
                left -= len(block)
                progress(int((store.image_bytes - left) / each))
        extras = _extras(store)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    content = hash_content(
        digest.digest(), store.image_size, store.class_names, store.class_offsets.tolist(), store.class_split.tolist(), extras
    )
    if content != store.content_hash:
        return f"damaged: the content hash is {content[:12]}..., recorded was {store.content_hash[:12]}..."
    return None


def _extras(store: Store) -> dict[str, str]:
    """Return encoding and hashes of optional datasets, as in the content hash."""
    extras: dict[str, str] = {}
    with h5py.File(store.path, "r", locking=False) as file:
        if store.encoding != "raw":
            extras = {"encoding": store.encoding, "image_offsets": _hash(file["image_offsets"])}
        if store.image_split is not None:
            extras["image_split"] = _hash(file["image_split"])
    if store.ontology_text is not None:
        extras["ontology"] = hashlib.sha256(store.ontology_text.encode()).hexdigest()
    return extras


def _hash(data: Any) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(data), _BLOCK):
        digest.update(data[start : start + _BLOCK])
    return digest.hexdigest()
