"""Groups of classes of Meta-Dataset: superclasses (Omniglot's alphabets) or inner nodes of a graph (ImageNet's WordNet)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from smatcli.data.stores.format import SPLITS
from smatcli.errors import UserError

Kind = Literal["bilevel", "dag"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Node:
    """A superclass or an inner node: `name` (wn_id), `words` for readers, `leaves` class ids of the store (dag: in the order of wn_id)."""

    name: str
    words: str
    leaves: tuple[int, ...]


@dataclass(frozen=True)
class Ontology:
    """`nodes[split]`: bilevel, the split's superclasses; dag, every inner node of the split's graph in the order of wn_id.

    All nodes are listed; the sampler decides which of them are eligible, after it has dropped small classes.
    """

    kind: Kind
    nodes: Mapping[str, tuple[Node, ...]]

    def keep(self, indices: Sequence[int]) -> "Ontology":
        """Return the ontology restricted to the classes `indices`, renumbered 0, 1, ...; nodes without leaves are removed."""
        new = {int(old): position for position, old in enumerate(indices)}

        def kept(node: Node) -> Node:
            return Node(node.name, node.words, tuple(new[leaf] for leaf in node.leaves if leaf in new))

        return Ontology(self.kind, {split: tuple(n for n in map(kept, nodes) if n.leaves) for split, nodes in self.nodes.items()})

    def to_json(self) -> str:
        """Return the text that `from_json` reads; equal ontologies give equal text."""
        nodes = {
            s: [{"name": n.name, "words": n.words, "leaves": list(n.leaves)} for n in self.nodes[s]] for s in SPLITS if s in self.nodes
        }
        return json.dumps({"kind": self.kind, "nodes": nodes}, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, classes: int) -> "Ontology":
        """Read the text of `to_json` for a store with `classes` classes; UserError if it is invalid."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the ontology is not JSON ({str(error)[:100]}); prepare the dataset again") from None
        if (
            not isinstance(data, dict)
            or data.keys() != {"kind", "nodes"}
            or data["kind"] not in KINDS
            or not isinstance(data["nodes"], dict)
        ):
            raise UserError("the ontology is not an object with kind (bilevel or dag) and nodes; prepare the dataset again")
        if unknown := data["nodes"].keys() - set(SPLITS):
            raise UserError(f"the ontology has nodes of the split {min(unknown)!r} (train, valid, test); prepare the dataset again")
        nodes = {split: _nodes(entries, split, classes) for split, entries in data["nodes"].items()}
        return cls(data["kind"], nodes)


def _nodes(entries: Any, split: str, classes: int) -> tuple[Node, ...]:
    if not isinstance(entries, list):
        raise UserError(f"the ontology's {split} nodes are not a list; prepare the dataset again")
    return tuple(_node(node, f"{split} node {place}", classes) for place, node in enumerate(entries))


def _node(data: Any, where: str, classes: int) -> Node:
    if not isinstance(data, dict) or data.keys() != {"name", "words", "leaves"}:
        raise UserError(f"the ontology's {where} does not have the keys name, words, leaves; prepare the dataset again")
    name, words, leaves = data["name"], data["words"], data["leaves"]
    if not isinstance(name, str) or not isinstance(words, str) or not isinstance(leaves, list) or not leaves:
        raise UserError(f"the ontology's {where} does not have a name, words and a list of classes; prepare the dataset again")
    if not all(type(leaf) is int and 0 <= leaf < classes for leaf in leaves) or len(set(leaves)) != len(leaves):
        raise UserError(f"the ontology's {where} ({name[:60]}) names a class twice or an unknown class; prepare it again")
    return Node(name, words, tuple(leaves))
