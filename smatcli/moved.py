"""Errors that name the new place of a module of version 0.1. They go in version 0.3.

`moved.tsv` maps old module names to new ones. It is read only when an import fails.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

TABLE = Path(__file__).with_suffix(".tsv")


def table() -> dict[str, str]:
    """Map each old module name to its new one, or to several names separated by ", "."""
    rows = (line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return dict(rows)


class MovedFinder:
    """Last entry of `sys.meta_path`: raise an ImportError that names the new module of an old one."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raise ModuleNotFoundError for an old module name; return None for every other name."""
        if name.startswith("smatcli.") and (new := table().get(name)):
            raise ModuleNotFoundError(f"{name} moved to {new} in smatcli 0.2; see 'Moved modules' in CHANGELOG.md", name=name)
        return None


def install() -> None:
    """Add the finder to `sys.meta_path`, once."""
    if not any(isinstance(finder, type) and finder.__name__ == MovedFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder)


def attribute_error(package: str) -> Callable[[str], NoReturn]:
    """Return the `__getattr__` of a package that was a module in version 0.1.

    For `from package import name` with a public name, it raises an ImportError that names the new module; else an AttributeError.
    """

    def missing(name: str) -> NoReturn:
        here = Path(sys.modules[package].__file__ or "").parent
        imported = sys._getframe(1).f_code.co_name == "_handle_fromlist"  # pickle looks for names in all modules and expects AttributeError
        if not imported or name.startswith("_") or (here / f"{name}.py").exists() or (here / name).is_dir():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        raise ImportError(
            f"cannot import {name!r} from {package}, a package since smatcli 0.2: look in {table()[package]} "
            "(see 'Moved modules' in CHANGELOG.md)",
            name=package,
        )

    return missing
