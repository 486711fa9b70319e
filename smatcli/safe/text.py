"""Readers of untrusted text: JSON and YAML with bounded size, depth and aliases; cells of CSV files."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smatcli.errors import UserError

MAX_JSON = 64 * 2**20  # bytes; the largest files that smat writes (search, settings, state) have about 100 KB
MAX_NODES = 100_000  # values of a YAML document with its aliases expanded; a recipe has about 300
MAX_DEPTH = 50
TAGS = frozenset({"str", "int", "float", "bool", "null", "seq", "map", "merge"})
_CORE = "tag:yaml.org,2002:"
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def parse_json(text: str | bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse a JSON text. Raises ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(text, object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_bytes(path: Path, limit: int = MAX_JSON) -> bytes:
    """Return the content of a regular file. Raises ValueError for more than `limit` bytes and for pipes and devices, OSError as usual."""
    if not path.is_file() and path.exists() and not path.is_dir():
        raise ValueError("is not a regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return data


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """Parse a JSON file in UTF-8. Raises ValueError if it is damaged, too deep or longer than `limit` bytes, OSError as usual."""
    return parse_json(read_bytes(path, limit).decode("utf-8"))


def yaml_value(loader: Any, tags: frozenset[str] = frozenset()) -> Any:
    """Return the value of the only document of a PyYAML loader. Raises `yaml.YAMLError` if it is huge or deep with its aliases expanded.

    Only `tags` and YAML's core tags (text, numbers, lists, ...) are allowed, not bytes, sets or objects.
    """
    import yaml

    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, TAGS | tags)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.composer.ComposerError(problem="nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # an invalid value of a tag: `!!int x`
        problem = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise yaml.constructor.ConstructorError(problem=problem) from None
    finally:
        loader.dispose()


def _measure(root: Any, tags: frozenset[str]) -> None:
    """Raise YAMLError if the document is too large or too deep (each alias counts as its content), or has a tag that is not in `tags`."""
    import yaml

    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: Any, depth: int) -> int:
        if id(node) in open_nodes:
            raise yaml.composer.ComposerError(problem="an alias (*name) contains itself; write it out", problem_mark=node.start_mark)
        if depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=node.start_mark)
        if id(node) in sizes:
            return sizes[id(node)]
        if node.tag.removeprefix(_CORE) not in tags:
            raise yaml.constructor.ConstructorError(problem=f"the tag {node.tag[:60]!r} is not allowed here", problem_mark=node.start_mark)
        open_nodes.add(id(node))
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(size_of(item, depth + 1) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            total += sum(size_of(key, depth + 1) + size_of(value, depth + 1) for key, value in node.value)
        if total > MAX_NODES:
            raise yaml.composer.ComposerError(
                problem=f"more than {MAX_NODES:,} values with its aliases (*name) expanded", problem_mark=node.start_mark
            )
        open_nodes.discard(id(node))
        sizes[id(node)] = total
        return total

    size_of(root, 0)


def refuse_special(path: Path) -> None:
    """Raise UserError for a pipe, a socket or a device, where reading might never end; accept files, folders and missing paths."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is a pipe or a device, not a file")


def read_own_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run. Raises UserError if it is damaged."""
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({str(error)[:100]}); move it away and run the command again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is damaged (not an object); move it away and run the command again")
    return value


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if the file is missing, damaged or contains something else."""
    try:
        body = read_json(path)
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def csv_cell(text: str) -> str:
    """Escape `text` for spreadsheets: put an apostrophe before a text that they would parse as a formula (a leading `=`)."""
    if text[:1] in ("=", "@", "\t", "\r"):
        return f"'{text}"
    if text[:1] not in ("+", "-") or len(text) == 1:
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def shown(text: str) -> str:
    """Escape `text` for a terminal: control characters and those that change the writing direction become escape sequences."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def csv_number(value: float | None, digits: int) -> str:
    """Format a number with `digits` decimals; empty if it is unknown."""
    return "" if value is None or not math.isfinite(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def write_csv(lines: Sequence[Sequence[str]]) -> str:
    """Format rows of text as CSV with Unix line ends, with `csv_cell` applied to every cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([[csv_cell(text) for text in line] for line in lines])
    return buffer.getvalue()
