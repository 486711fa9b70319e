"""Whether stores hold what was prepared, asked before they are computed with: a flipped bit in an image would be a wrong number.

A store up to `LARGE` bytes is hashed every time (a tenth of a second). A larger one is hashed once, and again when its file changed (size,
time, inode): that is remembered in the user's cache folder. SMAT_TRUST_STORES=1 leaves the check out.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from smatcli.data.store import Store
from smatcli.data.verify import verify_store
from smatcli.errors import UserError

LARGE = 1 << 26  # bytes


def verify_once(stores: Mapping[str, Store], say: Callable[[str], None] = lambda text: None) -> None:
    """UserError for the first store whose content is not what was prepared; `say` tells of those that take a while."""
    if os.environ.get("SMAT_TRUST_STORES", "") not in ("", "0"):
        return
    known = _known()
    for store in stores.values():
        facts = store.path.stat()
        stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ino, store.content_hash]
        if facts.st_size > LARGE:
            if known.get(_key(store)) == stamp:
                continue
            say(f"{store.path}: its content is checked, once ({facts.st_size / 1e9:.1f} GB)")
        if problem := verify_store(store.path):
            raise UserError(f"{store.path}: {problem}; prepare it again")
        if facts.st_size > LARGE:
            _remember(_key(store), stamp)


def _key(store: Store) -> str:
    return str(store.path.resolve())


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smat" / "verified.json"


def _known() -> dict[str, Any]:
    try:
        found = json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, RuntimeError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(key: str, stamp: list[Any]) -> None:
    """A cache that cannot be written costs time, no more."""
    with suppress(OSError, RuntimeError):
        cache = _cache()
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_name(f".{cache.name}.{os.getpid()}")
        draft.write_text(json.dumps({**_known(), key: stamp}), encoding="utf-8")
        draft.replace(cache)
