"""Rules for the sources, checked on the syntax tree of every file: no pickle, no shell, no unbounded reader."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("smatcli", "benchmarks", "tests")
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "pandas.read_pickle"}
# Files that write pickles to test that they are rejected, or that a store is sent to a loader worker without its images.
MAY_WRITE = {
    "tests/backbones/test_weights.py",
    "tests/data/stores/test_store.py",
    "tests/data/stores/test_format.py",
    "tests/data/torchvision_files.py",
    "tests/importing/test_bad_files.py",
}
MAY_EXEC = {"tests/docs/test_use_example.py"}  # the example of the documentation
MAY_SHELL = {"tests/cli/test_frame.py"}  # a pipe that is closed early
HDF5, TEXT = {"smatcli/safe/hdf5.py", "smatcli/safe/probe.py"}, {"smatcli/safe/text.py"}


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for a chain of names, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}".lstrip(".") if isinstance(node, ast.Attribute) else ""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, dict[str, ast.expr]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func), {k.arg: k.value for k in node.keywords if k.arg}


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, each.name) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, name) for name in (node.module, *(f"{node.module}.{each.name}" for each in node.names)))


def problems() -> Iterator[str]:
    for name, tree in trees():
        for line, module in imports(tree):
            if (module in PICKLES or module.split(".")[0] in PICKLES) and name not in MAY_WRITE:
                yield f"{name}:{line}: imports {module}"
        for node, function, options in calls(tree):
            where, last = f"{name}:{node.lineno}", function.rpartition(".")[2]
            if function == "torch.load" and not is_true(options.get("weights_only")):
                yield f"{where}: torch.load without weights_only=True"
            if function.startswith("yaml.") and last in ("load", "load_all", "unsafe_load", "full_load"):
                yield f"{where}: {function}; smatcli.safe.text.yaml_value is bounded"
            if (last == "load" and is_true(options.get("allow_pickle"))) or last in ("read_pickle", "to_pickle"):
                yield f"{where}: {function} with a pickle"
            if function in ("np.load", "numpy.load") and name.startswith("smatcli/") and "allow_pickle" not in options:
                yield f"{where}: {function} without allow_pickle=False"
            if isinstance(node.func, ast.Name) and function in ("eval", "exec", "compile") and name not in MAY_EXEC:
                yield f"{where}: {function}()"
            if (is_true(options.get("shell")) or function in ("os.system", "os.popen")) and name not in MAY_SHELL:
                yield f"{where}: a shell"
            if function == "tempfile.mktemp":
                yield f"{where}: tempfile.mktemp"
            if last in ("extractall", "unpack_archive"):
                yield f"{where}: {last} writes where the archive says"
            if not name.startswith("smatcli/"):
                continue
            if function == "json.loads" and name not in TEXT and not _own_text(node) and not _guarded(tree, node):
                yield f"{where}: json.loads; smatcli.safe.text.parse_json knows too deep ones"
            if function == "json.load":
                yield f"{where}: json.load; smatcli.safe.text.read_json is bounded"
            if function == "h5py.File" and name not in HDF5 and _reads(node, options) and name not in CHECKED:
                yield f"{where}: h5py.File to read; smatcli.safe.hdf5.opened is bounded"
            if function.startswith("pickle."):
                yield f"{where}: {function}"
        for each in ast.walk(tree) if name.startswith("smatcli/") else ():
            if isinstance(each, ast.List) and [dotted(item) for item in each.elts[:1]] == ["sys.executable"] and not _safe_path(each):
                yield f"{name}:{each.lineno}: a Python process without -P imports from the current folder"


# The structure of these files was checked before (by `Store.open`), or is checked there (`ForeignHdf5`).
CHECKED = {"smatcli/data/stores/verify.py", "smatcli/data/sources/foreign_hdf5.py"}


def _own_text(node: ast.Call) -> bool:
    """Return whether the text comes from json.dumps, directly or through a local variable `text`."""
    argument = node.args[0] if node.args else None
    return (isinstance(argument, ast.Call) and dotted(argument.func) == "json.dumps") or (
        isinstance(argument, ast.Name) and argument.id == "text"
    )


def _safe_path(command: ast.List) -> bool:
    return any(isinstance(item, ast.Constant) and item.value == "-P" for item in command.elts[1:2])


def _guarded(tree: ast.AST, call: ast.Call) -> bool:
    """Return whether the call is inside a `try` whose handlers catch RecursionError or Exception."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(call is inner for part in node.body for inner in ast.walk(part)):
            for handler in node.handlers:
                kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
                if {dotted(kind) for kind in kinds if kind} & {"RecursionError", "Exception"}:
                    return True
    return False


def _reads(node: ast.Call, options: dict[str, ast.expr]) -> bool:
    mode = options.get("mode", node.args[1] if len(node.args) > 1 else None)
    return not (isinstance(mode, ast.Constant) and str(mode.value) in ("w", "w-", "x"))


def test_no_pickle_no_shell_no_unbounded_reader():
    assert not list(problems())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("torch.load(p)", "without weights_only"),
        ("torch.load(p, weights_only=False)", "without weights_only"),
        ("yaml.load(t, Loader=L)", "yaml_value"),
        ("np.load(p, allow_pickle=True)", "with a pickle"),
        ("np.load(p)", "without allow_pickle=False"),
        ("eval(x)", "eval()"),
        ("subprocess.run(c, shell=True)", "a shell"),
        ("archive.extractall(p)", "writes where"),
        ("json.loads(line)", "parse_json"),
        ("h5py.File(p)", "safe.hdf5"),
        ("subprocess.run([sys.executable, '-m', 'x'])", "without -P"),
    ],
)
def test_the_walk_finds(source, found, monkeypatch):
    import tests.layout.test_source as here

    monkeypatch.setattr(here, "trees", lambda: iter([("smatcli/x.py", ast.parse(source))]))
    assert [line for line in here.problems() if found in line]
