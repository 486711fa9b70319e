"""Wording and names: no phrase that a native reader stumbles over, no opaque variable, no class name used twice. See CONTRIBUTING.md."""

import ast
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNITS = (
    "batch|block|call|class|column|core|dataset|domain|epoch|episode|expert|figure|file|fold|folder|group|image|job|kind|layer|line|method|model|"
    "name|node|point|process|row|run|sample|second|seed|set|split|step|store|table|task|token|tuner|update|verb"
)
PHRASES = (
    r"made again",
    r"\bleft out\b|\bleav(e|es|ing) (\w+ )?out\b",  # skip, omit, exclude
    r"\bsa(ys?|id) so\b|\bdo(es)? so\b(?! as)",
    r"\b(of|from|for) (which|whom)\b(?= (\w+ ){0,4}(is|are|has|have|was|were)\b)",
    r"that (is|are) none\b|(?<!there )\b(is|are) no (?!longer|more|less|doubt|different|later)[a-z]",  # is not a, invalid
    r"for want of|in good order|without a word|told apart|\bin their places\b",
    r"what (it|\w+|an? \w+|the \w+) makes? of\b",
    r"\bthe ones? (before|after)\b",  # the previous one
    r"\btells? of\b|\bto say of\b",
    rf"\b(once|twice|times|seconds?|ms|bytes?|(image|episode|step|update|number|line|row|file|value)s?) an? ({UNITS})\b",  # per
    rf"\bone (\w+ ){{1,2}}an? ({UNITS})\b",
)
PATTERN = re.compile("|".join(f"(?:{phrase})" for phrase in PHRASES), re.IGNORECASE)

# A bare participle says nothing about what a variable holds: name the thing.
OPAQUE = {"found", "made", "known", "one"}
MAY_BE_OPAQUE: dict[str, str] = {}  # "module:function:name" -> reason; at most 20


@cache
def modules() -> dict[str, ast.Module]:
    files = sorted((ROOT / "smatcli").rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def texts(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of docstrings, messages and help texts (strings of several words), and comments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, " ".join(node.value.split())
    with tokenize.open(ROOT / name) as file:
        yield from ((t.start[0], t.string) for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT)


def opaque_names(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Parameters with an opaque name, and variables with one that are used more than two lines below their first assignment."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        arguments = function.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.arg in OPAQUE:
                yield function.lineno, function.name, argument.arg
        uses: dict[str, list[int]] = defaultdict(list)
        stored = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in OPAQUE:
                uses[node.id].append(node.lineno)
                if isinstance(node.ctx, ast.Store):
                    stored.add(node.id)
        for variable in stored:
            if max(uses[variable]) - min(uses[variable]) > 2:
                yield min(uses[variable]), function.name, variable


def test_phrases():
    hits = [
        f"{name}:{line}: {match.group()!r} in {text[max(0, match.start() - 40) : match.end() + 40]!r}"
        for name, tree in modules().items()
        for line, text in texts(name, tree)
        for match in PATTERN.finditer(text)
    ]
    assert not hits


def test_opaque_names():
    hits = [
        f"{name}:{line}: {variable!r} in {function}()"
        for name, tree in modules().items()
        for line, function, variable in opaque_names(tree)
        if f"{name}:{function}:{variable}" not in MAY_BE_OPAQUE
    ]
    assert not hits
    assert len(MAY_BE_OPAQUE) <= 20


def test_one_name_for_one_thing():
    places: dict[str, list[str]] = defaultdict(list)
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(name)
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_every_public_thing_has_a_docstring():
    missing = []
    for name, tree in modules().items():
        if name.startswith("smatcli/data/synthetic/"):
            continue  # what a function draws is its name
        if not ast.get_docstring(tree) and tree.body:
            missing.append(name)
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                missing += [] if ast.get_docstring(node) else [f"{name}:{node.name}"]
    assert not missing
