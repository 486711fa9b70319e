"""docs/architecture.md names every package, in the order of tests/layout/test_imports.py, and only paths that exist."""

import re

from tests.docs.pages import ROOT
from tests.layout.test_imports import rank

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROWS = re.findall(r"(?m)^\| (`[^|]+) \|", PAGE.partition("## Packages")[2].partition("### Data")[0])
NAMES = [name.removesuffix("/").removesuffix(".py") for row in ROWS for name in re.findall(r"`([^`]+)`", row) if "planned" not in row]


def test_every_package_is_listed():
    package = ROOT / "smatcli"
    modules = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert set(NAMES) == modules - {"__init__", "__main__"}


def test_the_order_is_that_of_the_imports():
    ranks = [rank(f"smatcli.{name}") for name in NAMES]
    assert ranks == sorted(ranks)


def test_planned_packages_do_not_exist_yet():
    planned = [name for row in re.findall(r"(?m)^\| (`[^|]+ \(planned\)) \|", PAGE) for name in re.findall(r"`([^`/]+)/?`", row)]
    assert not [name for name in planned if (ROOT / "smatcli" / name).exists()]


def test_paths_exist():
    paths = re.findall(r"`((?:[\w-]+/)+[\w-]+\.py|[\w-]+/[\w-]+/)`", PAGE)
    roots = (ROOT, ROOT / "smatcli", ROOT / "smatcli/data")
    assert paths
    assert not [path for path in paths if not any((root / path).exists() for root in roots)]
