"""Read and validate Meta-Dataset's `dataset_spec.json` (Triantafillou et al., ICLR 2020): classes, splits, image counts and ontology.

There are three kinds: flat, bilevel (Omniglot: superclasses of classes) and DAG (ImageNet: a graph of WordNet nodes per split). Class ids
are consecutive from 0 over all splits: first TRAIN, then VALID, then TEST.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from smatcli.data.metadataset.graph import leaf_classes, split_graphs
from smatcli.data.stores.format import SPLITS
from smatcli.data.stores.ontology import Node, Ontology
from smatcli.errors import UserError, nearest
from smatcli.safe.files import pointer_kind
from smatcli.safe.text import refuse_special

SPEC_FILE = "dataset_spec.json"
MAX_SPEC_BYTES = 256 * 2**20
_KINDS = {"DatasetSpecification": "flat", "BiLevelDatasetSpecification": "bilevel", "HierarchicalDatasetSpecification": "dag"}
_NAMES = {split.upper(): split for split in SPLITS}


@dataclass(frozen=True)
class SpecClass:
    """A class: its name, split ('train', 'valid', 'test') and number of images. Its id is its position in `Spec.classes`."""

    name: str
    split: str
    images: int


@dataclass(frozen=True)
class Spec:
    """Specification of a dataset. `pattern` is the file name of a class with "{}" for its id; `kind` is 'flat', 'bilevel' or 'dag'."""

    name: str
    kind: str
    classes: tuple[SpecClass, ...]
    ontology: Ontology | None
    pattern: str

    def file(self, class_id: int, suffix: str | None = None) -> str:
        """File name of a class, optionally with another `suffix` (".h5")."""
        return f"{class_id}{suffix}" if suffix else self.pattern.replace("{}", str(class_id))


def read_spec(path: str | Path) -> Spec:
    """Read the specification in a folder or file.

    Raises UserError, with the file and the byte or key, if it is missing, not JSON, or inconsistent.
    """
    path = Path(path)
    if path.is_dir():
        path = path / SPEC_FILE
    return parse_spec(_load(path), str(path))


def parse_spec(raw: Any, where: str) -> Spec:
    """Parse the specification from decoded JSON; every UserError starts with `where` (the file)."""
    reader = _SpecReader(where)
    raw = reader.mapping(raw, "the specification")
    kind = _KINDS.get(given := str(raw.get("__class__")))
    if kind is None:
        hint = "" if "__class__" in raw else " (the key is missing)"
        reader.fail(f"__class__ is {given!r}, expected one of {', '.join(_KINDS)}{hint}{nearest(given, list(_KINDS))}")
    pattern = reader.pattern(raw.get("file_pattern", "{}.tfrecords"))
    names = reader.names(raw, "class_names")
    build = {"flat": _flat, "bilevel": _bilevel, "dag": _dag}[kind]
    splits, counts, ontology = build(reader, raw, names)
    classes = tuple(SpecClass(*facts) for facts in zip(names, splits, counts, strict=True))
    return Spec(reader.text(raw.get("name"), "name"), kind, classes, ontology, pattern)


_Parts = tuple[list[str], list[int], Ontology | None]  # split and images of each class


def _flat(reader: "_SpecReader", raw: Mapping[str, Any], names: list[str]) -> _Parts:
    sizes = reader.per_split(raw, "classes_per_split")
    splits = [split for split in SPLITS for _ in range(sizes[split])]
    reader.agree("classes_per_split", len(splits), "class_names", len(names), "classes")
    return splits, reader.by_id(raw, "images_per_class", len(names)), None


def _bilevel(reader: "_SpecReader", raw: Mapping[str, Any], names: list[str]) -> _Parts:
    sizes = reader.per_split(raw, "superclasses_per_split")
    groups = [split for split in SPLITS for _ in range(sizes[split])]
    titles = reader.names(raw, "superclass_names")
    reader.agree("superclasses_per_split", len(groups), "superclass_names", len(titles), "superclasses")
    members = reader.by_id(raw, "classes_per_superclass", len(groups))
    reader.agree("classes_per_superclass", sum(members), "class_names", len(names), "classes")
    nodes: dict[str, list[Node]] = {split: [] for split in SPLITS}
    if 0 in members:
        reader.fail(f"classes_per_superclass, {members.index(0)} is 0; a superclass needs at least one class")
    first = 0
    for split, title, size in zip(groups, titles, members, strict=True):
        nodes[split].append(Node(title, title, tuple(range(first, first + size))))
        first += size
    splits = [split for split, size in zip(groups, members, strict=True) for _ in range(size)]
    ontology = Ontology("bilevel", {split: tuple(listed) for split, listed in nodes.items()})
    return splits, reader.by_id(raw, "images_per_class", len(names)), ontology


def _dag(reader: "_SpecReader", raw: Mapping[str, Any], names: list[str]) -> _Parts:
    graphs = split_graphs(reader.keyed_by_split(raw, "split_subgraphs"), reader.fail)
    images = reader.keyed_by_split(raw, "images_per_class")
    ids = {name: i for i, name in enumerate(names)}
    splits: list[str] = []
    counts: list[int] = []
    nodes: dict[str, tuple[Node, ...]] = {}
    for split, graph in graphs.items():
        where = f"images_per_class, {split.upper()}"
        listed = reader.mapping(images[split], where)
        leaves = sorted(name for name, node in graph.items() if not node.children)
        own = range(len(splits), len(splits) + len(leaves))
        for name in leaves:
            if name not in ids:
                reader.fail(f"class_names has no class {name!r}, a leaf of split_subgraphs, {split.upper()}")
            if ids[name] not in own:
                reader.fail(f"class_names: {ids[name]} is {name!r}, a leaf of {split.upper()}, whose ids are {own.start} to {own.stop - 1}")
            if name not in listed:
                reader.fail(f"{where} has no count for {name!r}")
        counts.extend(reader.count(listed[names[i]], f"{where}, {names[i]}") for i in own if i < len(names))
        splits.extend(split for _ in own)
        below = leaf_classes(graph, reader.fail)
        nodes[split] = tuple(
            Node(name, graph[name].words, tuple(ids[leaf] for leaf in sorted(below[name])))
            for name in sorted(graph)
            if graph[name].children
        )
    reader.agree("split_subgraphs", len(splits), "class_names", len(names), "classes")
    return splits, counts, Ontology("dag", nodes)


class _SpecReader:
    """Typed access to the parts of a specification; errors name the file and the key."""

    def __init__(self, where: str):
        self.where = where

    def fail(self, reason: str) -> NoReturn:
        raise UserError(f"{self.where}: {reason}")

    def mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.fail(f"{where} is {_kind(value)}, expected an object")
        return value

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self.fail(f"{where} is {_kind(value)}, expected a name")
        return value

    def count(self, value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
            self.fail(f"{where} is {str(value)[:40]!r}, expected a whole number of 0 or more")
        return value

    def pattern(self, value: Any) -> str:
        text = self.text(value, "file_pattern")
        if text.count("{}") != 1:
            self.fail(f'file_pattern {text!r}: must have exactly one {{}}, for the class id ("{{}}.tfrecords")')
        if "/" in text or "\\" in text or text.startswith("."):
            self.fail(f"file_pattern {text!r}: refused, it points outside the dataset's folder or to hidden files")
        return text

    def part(self, raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        if key not in raw:
            self.fail(f"{key} is missing{nearest(key, list(raw))}")
        return self.mapping(raw[key], key)

    def keyed_by_split(self, raw: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Return a mapping from split ('train', 'valid', 'test', in this order) to value."""
        part = self.part(raw, key)
        if sorted(part) != sorted(_NAMES):
            self.fail(f"{key} has {', '.join(sorted(part)) or 'no key'}, expected {', '.join(_NAMES)}")
        return {split: part[name] for name, split in _NAMES.items()}

    def per_split(self, raw: Mapping[str, Any], key: str) -> dict[str, int]:
        return {split: self.count(value, f"{key}, {split.upper()}") for split, value in self.keyed_by_split(raw, key).items()}

    def by_id(self, raw: Mapping[str, Any], key: str, expected: int) -> list[int]:
        """Return the counts of the ids "0", "1", ..., `expected` of them."""
        part = self.part(raw, key)
        self.agree(key, len(part), "class_names" if key == "images_per_class" else "superclass_names", expected, "entries")
        return [self.count(self._of(part, key, i), f"{key}, {i}") for i in range(expected)]

    def names(self, raw: Mapping[str, Any], key: str) -> list[str]:
        """Return the names of the ids "0", "1", ...; they must be unique."""
        part = self.part(raw, key)
        names = [self.text(self._of(part, key, i), f"{key}, {i}") for i in range(len(part))]
        first: dict[str, int] = {}
        for i, name in enumerate(names):
            if first.setdefault(name, i) != i:
                self.fail(f"{key}: {first[name]} and {i} have the same name {name!r}")
        return names

    def agree(self, key: str, actual: int, other: str, expected: int, what: str) -> None:
        if actual != expected:
            self.fail(f"{key} has {actual:,} {what}, {other} has {expected:,}")

    def _of(self, part: Mapping[str, Any], key: str, i: int) -> Any:
        if str(i) not in part:
            self.fail(f"{key} has {len(part)} entries, but none for {i}; ids must be consecutive from 0")
        return part[str(i)]


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: f"{str(value)[:40]!r}", type(None): "missing", bool: "true or false"}
    return kinds.get(type(value), f"the number {str(value)[:40]}")


def _load(path: Path) -> Any:
    refuse_special(path)
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise UserError(f"{path}: larger than {MAX_SPEC_BYTES:,} bytes, not a specification")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(_missing(path)) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    if kind := pointer_kind(data[:1000]):
        raise UserError(f"{path}, byte 0: is a {kind} pointer, not the data; fetch it first")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, byte {error.start}: not UTF-8; expected JSON") from None
    except json.JSONDecodeError as error:
        at = len(data.decode("utf-8")[: error.pos].encode())
        raise UserError(f"{path}, byte {at} (line {error.lineno}): not JSON ({error.msg})") from None
    except _DuplicateKeyError as error:
        raise UserError(f"{path}: the key {str(error)!r} occurs twice in one object") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be parsed as JSON ({str(error)[:80]})") from None


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent}: folder does not exist"
    if path.with_suffix(".pkl").exists():
        return (
            f"{path}: does not exist; {path.with_suffix('.pkl').name} exists, but pickled files can run code and are not read: "
            "get the JSON file, which the official conversion writes too"
        )
    return f"{path}: does not exist; expected a folder written by Meta-Dataset's conversion"


class _DuplicateKeyError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise _DuplicateKeyError(name)
        entries[name] = value
    return entries
