"""Finding and opening stores, with a check of their content: a flipped bit in an image would change a result.

A store up to `LARGE` bytes is hashed on every opening (a tenth of a second). A larger one is hashed once and after each change of its
file (size, time, inode), which is recorded in the user's cache folder. SMAT_TRUST_STORES=1 skips the check.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from smatcli.data.stores.store import Store
from smatcli.data.stores.verify import verify_store
from smatcli.errors import UserError, nearest

LARGE = 1 << 26  # bytes


def verify_once(stores: Mapping[str, Store], say: Callable[[str], None] = lambda text: None) -> None:
    """Raise UserError for the first store whose content changed since it was prepared; `say` gets a line per slow check."""
    if os.environ.get("SMAT_TRUST_STORES", "") not in ("", "0"):
        return
    verified = _verified()
    for store in stores.values():
        facts = store.path.stat()
        stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ino, store.content_hash]
        if facts.st_size > LARGE:
            if verified.get(_key(store)) == stamp:
                continue
            say(f"{store.path}: checking its content, once ({facts.st_size / 1e9:.1f} GB)")
        if problem := verify_store(store.path):
            raise UserError(f"{store.path}: {problem}; prepare it again")
        if facts.st_size > LARGE:
            _remember(_key(store), stamp)


def _key(store: Store) -> str:
    return str(store.path.resolve())


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smat" / "verified.json"


def _verified() -> dict[str, Any]:
    try:
        stamps = json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, RuntimeError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _remember(key: str, stamp: list[Any]) -> None:
    """Record a verified store; a cache that cannot be written only costs time."""
    with suppress(OSError, RuntimeError):
        cache = _cache()
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_name(f".{cache.name}.{os.getpid()}")
        draft.write_text(json.dumps({**_verified(), key: stamp}), encoding="utf-8")
        draft.replace(cache)


def store_files(root: str | Path) -> dict[str, Path]:
    """Map name (file stem) to path for every store file in a folder, sorted, without temporary files."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: folder of stores does not exist; `smat data prepare folder SRC... --out {root}` creates it")
    return {p.stem: p for p in sorted(root.glob("*.h5")) if not p.name.startswith(".")}


def open_stores(root: str | Path, names: Sequence[str], say: Callable[[str], None] = lambda text: None) -> dict[str, Store]:
    """Open the named stores of a folder, in the order of `names`, and check their content (see the module).

    Raises UserError, with the nearest name, for an unknown store, and for one whose content changed; `say` gets a line per slow check.
    """
    files = store_files(root)
    missing = [name for name in names if name not in files]
    if missing:
        there = f"there: {', '.join(list(files)[:30])}" if files else "it has no store"
        raise UserError(f"{root}: no dataset {', '.join(map(repr, missing))}{nearest(missing[0], list(files))} ({there})")
    stores = {name: Store.open(files[name]) for name in dict.fromkeys(names)}
    verify_once(stores, say)
    return stores


ROOT_VARIABLE = "SMAT_DATA"


def default_root() -> Path:
    """Return the folder of all stores: $SMAT_DATA, else `data` in the current folder."""
    return Path(os.environ.get(ROOT_VARIABLE) or "data")


def all_stores(root: str | Path) -> list[Path]:
    """Return every store file below `root` (including subfolders), sorted by path."""
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f"{root}: does not exist; `smat data prepare folder SRC... --out {root}` creates it")
    return sorted(p for p in root.rglob("*.h5") if not p.name.startswith("."))


def find_store(name: str, root: str | Path | None = None) -> Path:
    """Find the store file `name`: a path, a dataset name, or folder/dataset below `root`. UserError unless there is exactly one."""
    path = Path(name)
    if path.is_file() or path.suffix == ".h5":
        return path
    root = Path(root) if root is not None else default_root()
    wanted = path.as_posix().strip("/")
    stores: dict[str, Path] = {p.relative_to(root).with_suffix("").as_posix(): p for p in all_stores(root)}
    hits = [p for key, p in stores.items() if key == wanted or key.endswith(f"/{wanted}")]
    if len(hits) > 1:
        raise UserError(f"{name}: several stores below {root}: {', '.join(map(str, hits[:5]))}; give the path")
    if not hits:
        hint = nearest(wanted, [key.rsplit("/", 1)[-1] for key in stores]) or f"; `smat data ls {root}` lists what is there"
        raise UserError(f"{name}: no such dataset below {root}{hint}")
    return hits[0]
