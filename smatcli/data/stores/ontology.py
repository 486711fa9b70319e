"""Classes in groups, as Meta-Dataset draws them: superclasses (Omniglot's alphabets) or the inner nodes of a graph (ImageNet's WordNet)."""

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
    """A superclass or an inner node: `name` (wn_id), `words` for people, `leaves` class ids of the store (dag: in the order of wn_id)."""

    name: str
    words: str
    leaves: tuple[int, ...]


@dataclass(frozen=True)
class Ontology:
    """`nodes[split]`: bilevel, the split's superclasses; dag, every inner node of the split's graph in the order of wn_id.

    Nothing is left out here: which nodes an episode may be drawn from is decided by the sampler, after small classes were dropped.
    """

    kind: Kind
    nodes: Mapping[str, tuple[Node, ...]]

    def keep(self, indices: Sequence[int]) -> "Ontology":
        """The ontology of the classes `indices` alone, which become 0, 1, ...; nodes that lose all their leaves go."""
        new = {int(old): position for position, old in enumerate(indices)}

        def kept(node: Node) -> Node:
            return Node(node.name, node.words, tuple(new[leaf] for leaf in node.leaves if leaf in new))

        return Ontology(self.kind, {split: tuple(n for n in map(kept, nodes) if n.leaves) for split, nodes in self.nodes.items()})

    def to_json(self) -> str:
        """Text that `from_json` reads; equal ontologies give equal text."""
        nodes = {
            s: [{"name": n.name, "words": n.words, "leaves": list(n.leaves)} for n in self.nodes[s]] for s in SPLITS if s in self.nodes
        }
        return json.dumps({"kind": self.kind, "nodes": nodes}, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, classes: int) -> "Ontology":
        """Read the text of `to_json` for a store of `classes` classes; UserError that says what does not fit."""
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
            raise UserError("the ontology is no object with kind (bilevel or dag) and nodes; prepare the dataset again")
        if unknown := data["nodes"].keys() - set(SPLITS):
            raise UserError(f"the ontology has nodes of the split {min(unknown)!r} (train, valid, test); prepare the dataset again")
        nodes = {split: _nodes(found, split, classes) for split, found in data["nodes"].items()}
        return cls(data["kind"], nodes)


def _nodes(found: Any, split: str, classes: int) -> tuple[Node, ...]:
    if not isinstance(found, list):
        raise UserError(f"the ontology's {split} nodes are no list; prepare the dataset again")
    return tuple(_node(node, f"{split} node {place}", classes) for place, node in enumerate(found))


def _node(data: Any, where: str, classes: int) -> Node:
    if not isinstance(data, dict) or data.keys() != {"name", "words", "leaves"}:
        raise UserError(f"the ontology's {where} has not the keys name, words, leaves; prepare the dataset again")
    name, words, leaves = data["name"], data["words"], data["leaves"]
    if not isinstance(name, str) or not isinstance(words, str) or not isinstance(leaves, list) or not leaves:
        raise UserError(f"the ontology's {where} is no name, words and list of classes; prepare the dataset again")
    if not all(type(leaf) is int and 0 <= leaf < classes for leaf in leaves) or len(set(leaves)) != len(leaves):
        raise UserError(f"the ontology's {where} ({name[:60]}) names a class twice, or one that is none of the {classes}; prepare it again")
    return Node(name, words, tuple(leaves))
