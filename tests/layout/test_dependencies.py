"""The declared dependencies are the imported ones: every import is declared, and every declared package is imported.

Imports are `import` statements at any depth, and names given to `import_module`, `find_spec`, `importorskip` and `__import__`. Where such a
call takes a variable, each string of the file that names a declared package counts as well.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Names under which a distribution is imported, where they differ from its own.
IMPORTED_AS = {"pyyaml": "yaml", "pillow": "PIL", "fonttools": "fontTools", "mkdocs-material": "material"}
# Files that may import an extra's packages. Everywhere else an extra's package must not be imported.
EXTRAS = {
    "cluster": ("smatcli/launch/",),
    "onnx": ("smatcli/deploy/onnx_file.py",),
    "trackers": ("smatcli/runs/tracking.py",),
    "llm": ("smatcli/llm/",),
    "docs": (),
}
# Imported without being declared: the reason.
UNDECLARED = {
    "triton": "part of torch's CUDA builds; the import may fail",
    "mkdocs": "required by mkdocs-material",
    "transformers": "required by peft",
}
# Declared without being imported: the reason.
UNUSED = {
    "ruff": "a tool",
    "mypy": "a tool",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "types-PyYAML": "read by mypy",
    "pandas-stubs": "read by mypy",
    "mkdocs-material": "a theme, named in mkdocs.yml",
    "accelerate": "for smatcli.llm",
    "datasets": "for smatcli.llm",
    "transformers": "for smatcli.llm",
    "click": "the base of typer; from 8.2 on a command without arguments exits with 2",
    "pandas": "the tables of reports are moving to it",
}
LOADERS = ("import_module", "find_spec", "importorskip", "__import__")


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return match[0]


def module_of(distribution: str) -> str:
    return IMPORTED_AS.get(distribution.lower(), distribution.replace("-", "_"))


DECLARED = {name_of(line) for line in PROJECT["dependencies"]}
DECLARED_EXTRAS = {extra: {name_of(line) for line in lines} for extra, lines in PROJECT["optional-dependencies"].items()}
MODULES = {module_of(name) for names in (DECLARED, *DECLARED_EXTRAS.values()) for name in names}


def modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of each module that a file imports, absolute imports only."""
    dynamic = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, each.name) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in LOADERS and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)
            else:
                dynamic = True
    for node in ast.walk(tree) if dynamic else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(".")[0] in MODULES:
            yield node.lineno, node.value


def imported(folder: str) -> dict[str, list[str]]:
    """`file:line` of the imports of each foreign package in a folder of the source tree."""
    places: dict[str, list[str]] = {}
    siblings = {path.stem for path in (ROOT / folder).glob("*.py")} | {"smatcli", "tests", "benchmarks"}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, module in modules(ast.parse(path.read_text(encoding="utf-8"))):
            top = module.split(".")[0]
            if top and top not in sys.stdlib_module_names and top not in siblings:
                places.setdefault(top, []).append(f"{path.relative_to(ROOT).as_posix()}:{line}")
    return places


def undeclared(places: Mapping[str, list[str]], extras: Mapping[str, Any] = EXTRAS) -> Iterator[str]:
    """Imports of the package that neither the dependencies nor the extra of their file declare."""
    for module, where in places.items():
        if module in {module_of(name) for name in DECLARED} or module in UNDECLARED:
            continue
        for place in where:
            allowed = [extra for extra, files in extras.items() if place.startswith(files)]
            if not any(module == module_of(name) for extra in allowed for name in DECLARED_EXTRAS[extra]):
                yield f"{place}: {module} is in no dependency{''.join(f' and not in the extra {extra}' for extra in allowed)}"


def test_what_the_package_imports_is_declared() -> None:
    assert list(undeclared(imported("smatcli"))) == []


def test_what_the_tests_and_benchmarks_import_is_declared() -> None:
    places = imported("tests") | imported("benchmarks")
    assert sorted(set(places) - MODULES - set(UNDECLARED)) == []


def test_what_is_declared_is_imported() -> None:
    package = set(imported("smatcli"))
    everywhere = package | set(imported("tests"))
    assert sorted(name for name in DECLARED - set(UNUSED) if module_of(name) not in package) == []
    for extra, names in DECLARED_EXTRAS.items():
        assert sorted(name for name in names - set(UNUSED) if module_of(name) not in everywhere) == [], f"extra {extra}"


def test_every_extra_but_dev_is_assigned_to_files() -> None:
    assert set(DECLARED_EXTRAS) - {"dev"} == set(EXTRAS)


def test_the_tools_of_an_extra_have_one_lower_bound() -> None:
    """`dev` repeats packages of other extras for the tests: with the same version."""
    lines = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    for line in PROJECT["optional-dependencies"]["dev"]:
        assert {other for other in lines if name_of(other) == name_of(line)} == {line}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    import onnx.helper", [(2, "onnx.helper")]),
        ("from . import x\nfrom .onnx import y", []),
        ("importlib.import_module('wandb.sdk')", [(1, "wandb.sdk")]),
        ("P = ('onnx', 'other')\nfind_spec(P[0])", [(1, "onnx")]),
        ("P = ('onnx', 'other')", []),
    ],
)
def test_the_walk_finds(source: str, expected: list[tuple[int, str]]) -> None:
    assert list(modules(ast.parse(source))) == expected


def test_an_import_outside_of_its_extra_is_found() -> None:
    places = {"wandb": ["smatcli/runs/tracking.py:3", "smatcli/cli/train.py:4"], "nowhere": ["smatcli/launch/x.py:1"], "torch": ["a.py:1"]}
    assert list(undeclared(places)) == [
        "smatcli/cli/train.py:4: wandb is in no dependency",
        "smatcli/launch/x.py:1: nowhere is in no dependency and not in the extra cluster",
    ]
