"""Finding stores by name below a folder."""

import os
from pathlib import Path

from smatcli.errors import UserError, nearest

ROOT_VARIABLE = "SMAT_DATA"


def default_root() -> Path:
    """The folder of all stores: $SMAT_DATA, else `data` in the current folder."""
    return Path(os.environ.get(ROOT_VARIABLE) or "data")


def all_stores(root: str | Path) -> list[Path]:
    """Every store file below `root` (also in its subfolders), sorted by path."""
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; `smat data prepare folder SRC... --out {root}` makes one")
    return sorted(p for p in root.rglob("*.h5") if not p.name.startswith("."))


def find_store(name: str, root: str | Path | None = None) -> Path:
    """The store file called `name`: a path, a dataset name, or folder/dataset below `root`. UserError if there is none, or several."""
    path = Path(name)
    if path.is_file() or path.suffix == ".h5":
        return path
    root = Path(root) if root is not None else default_root()
    wanted = path.as_posix().strip("/")
    found: dict[str, Path] = {p.relative_to(root).with_suffix("").as_posix(): p for p in all_stores(root)}
    hits = [p for key, p in found.items() if key == wanted or key.endswith(f"/{wanted}")]
    if len(hits) > 1:
        raise UserError(f"{name}: there are several below {root}: {', '.join(map(str, hits[:5]))}; give the path")
    if not hits:
        hint = nearest(wanted, [key.rsplit("/", 1)[-1] for key in found]) or f"; `smat data ls {root}` lists what is there"
        raise UserError(f"{name}: no such dataset below {root}{hint}")
    return hits[0]
