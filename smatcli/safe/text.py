"""Text from strangers: JSON and YAML whose size, depth and aliases are bounded before anything is made of them."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smatcli.errors import UserError

MAX_JSON = 64 * 2**20  # bytes; the largest that smat writes (search, settings, state) have some 100 KB
MAX_NODES = 100_000  # of a YAML document with its aliases written out; a recipe has some 300
MAX_DEPTH = 50
TAGS = frozenset({"str", "int", "float", "bool", "null", "seq", "map", "merge"})
_CORE = "tag:yaml.org,2002:"
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def parse_json(text: str | bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text; ValueError for whatever is wrong with it, lists nested too deeply included."""
    try:
        return json.loads(text, object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_bytes(path: Path, limit: int = MAX_JSON) -> bytes:
    """What a regular file holds; ValueError for one of more than `limit` bytes and for pipes and devices, OSError as usual."""
    if not path.is_file() and path.exists() and not path.is_dir():
        raise ValueError("is not a regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return data


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """The value of a JSON file in UTF-8; ValueError for one that is damaged, too deep or longer than `limit` bytes, OSError as usual."""
    return parse_json(read_bytes(path, limit).decode("utf-8"))


def yaml_value(loader: Any, tags: frozenset[str] = frozenset()) -> Any:
    """The value of the one document of a PyYAML loader; `yaml.YAMLError` if it would be huge or deep once its aliases are written out.

    Beside the tags of YAML's core (text, numbers, lists, ...) only `tags` are allowed: no bytes, sets or objects.
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
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # a tag's value that is none: `!!int x`
        problem = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise yaml.constructor.ConstructorError(problem=problem) from None
    finally:
        loader.dispose()


def _measure(root: Any, tags: frozenset[str]) -> None:
    """YAMLError unless the document is of bounded size and depth, each alias counted as what it stands for, and has tags of `tags`."""
    import yaml

    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: Any, depth: int) -> int:
        if id(node) in open_nodes:
            raise yaml.composer.ComposerError(problem="an alias (*name) contains itself; write the value out", problem_mark=node.start_mark)
        if depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=node.start_mark)
        if id(node) in sizes:
            return sizes[id(node)]
        if node.tag.removeprefix(_CORE) not in tags:
            raise yaml.constructor.ConstructorError(problem=f"the tag {node.tag[:60]!r} has no meaning here", problem_mark=node.start_mark)
        open_nodes.add(id(node))
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(size_of(item, depth + 1) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            total += sum(size_of(key, depth + 1) + size_of(value, depth + 1) for key, value in node.value)
        if total > MAX_NODES:
            raise yaml.composer.ComposerError(
                problem=f"more than {MAX_NODES:,} values once its aliases (*name) are written out", problem_mark=node.start_mark
            )
        open_nodes.discard(id(node))
        sizes[id(node)] = total
        return total

    size_of(root, 0)


def refuse_special(path: Path) -> None:
    """UserError for a pipe, a socket or a device, where reading might never end; nothing for files, folders and what is not there."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is a pipe or a device, not a file")


def read_own_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run; UserError when it is damaged."""
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({str(error)[:100]}); move it away to make it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: is damaged (no object); move it away to make it again")
    return found


def csv_cell(text: str) -> str:
    """`text` as spreadsheets show it: what they would take for a formula (a name that begins with `=`) gets an apostrophe in front."""
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
    """`text` for a terminal: control characters and those that turn the direction of writing are spelled out (a name may hold them)."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def csv_number(value: float | None, digits: int) -> str:
    """A number with fixed digits, empty if unknown."""
    return "" if value is None or not math.isfinite(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def write_csv(lines: Sequence[Sequence[str]]) -> str:
    """Lines of text as CSV with Unix line ends; no cell is a spreadsheet's formula."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([[csv_cell(text) for text in line] for line in lines])
    return buffer.getvalue()
