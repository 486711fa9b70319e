"""The order of the packages: no import circle, and no import of a higher package by a lower one, wherever the import stands."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Low to high: a module imports from its own line or from the lines above. The longest prefix that matches counts.
ORDER = (
    "version", "moved", "errors", "phases", "safe", "plugins", "config", "device", "experts", "seams",
    "data.counted data.images data.augment", "data.stores", "data.metadataset", "data.catalogue", "data.episodes", "data.sources", "data",
    "runs", "backbones", "heads", "methods", "adaptation", "tuning llm", "segmentation",
    "engine.loop", "engine.prepare", "engine.pretrain", "engine.train", "engine.evaluate", "engine.tune", "engine.segment",
    "engine.llm", "engine.analyze", "engine", "importing", "launch", "deploy",
    "report.results", "report.tables", "report.figures", "report.formats", "report", "cli", "",
)  # fmt: skip
RANKS = {prefix: rank for rank, line in enumerate(ORDER) for prefix in line.split(" ")}


@cache
def modules() -> dict[str, ast.Module]:
    trees = {}
    for path in sorted((ROOT / "smatcli").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def rank(module: str) -> int:
    parts = module.split(".")[1:]
    return next(RANKS[prefix] for n in range(len(parts), -1, -1) if (prefix := ".".join(parts[:n])) in RANKS)


def imports(name: str, tree: ast.Module, known: frozenset[str]) -> Iterator[str]:
    """Modules that a module imports: at the top, in functions, for types only, and by `import_module` of a string."""
    words = {w for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) for w in n.value.split(":")[:1]}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = name.split(".")
                base = ".".join([*parent[: len(parent) - node.level], *filter(None, [base])])
            for alias in node.names:
                yield from [m for m in (f"{base}.{alias.name}", base) if m in known][:1]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            target = node.args[0]
            if isinstance(target, ast.Constant):
                yield from {str(target.value)} & known
            elif isinstance(target, ast.JoinedStr) and isinstance(prefix := target.values[0], ast.Constant):
                # A registry: the children that the module names in its strings.
                yield from (child for word in words if (child := f"{prefix.value!s}{word}") in known)


@cache
def graph() -> dict[str, set[str]]:
    known = frozenset(modules())
    return {name: set(imports(name, tree, known)) - {name} for name, tree in modules().items()}


def test_no_circles():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_no_arrows_upward():
    upward = [f"{a} -> {b}" for a, targets in graph().items() for b in sorted(targets) if rank(b) > rank(a)]
    assert not upward


def test_packages_stay_small():
    sizes = {path.parent: len(list(path.parent.glob("*.py"))) for path in (ROOT / "smatcli").rglob("__init__.py")}
    registries = {"cli", "data/sources"}  # one file per entry
    large = {
        str(p.relative_to(ROOT)): n for p, n in sizes.items() if n > 25 and p.relative_to(ROOT / "smatcli").as_posix() not in registries
    }
    assert not large


def test_files_stay_short():
    files = [path for folder in ("smatcli", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name: n for name, n in lengths.items() if n > 400}
