"""Graphs of a DAG specification: nodes by id, and the leaves below each node."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

Fail = Callable[[str], NoReturn]


@dataclass(frozen=True)
class GraphNode:
    """A WordNet node of a split's graph."""

    words: str
    children: tuple[str, ...]


Graph = dict[str, GraphNode]


def split_graphs(raw: Mapping[str, Any], fail: Fail) -> dict[str, Graph]:
    """Return the graph (wn_id -> node) of each split in the decoded `split_subgraphs`; `fail` is called with the reason of an error."""
    graphs: dict[str, Graph] = {}
    seen: dict[str, str] = {}
    for split, listed in raw.items():
        where = f"split_subgraphs, {split.upper()}"
        if not isinstance(listed, list):
            fail(f"{where} is not a list of nodes")
        graph: Graph = {}
        for position, item in enumerate(listed):
            name, node = _node(item, f"{where}, node {position}", fail)
            if name in seen:
                fail(f"{where}: the node {name!r} occurs twice (also in {seen[name].upper()})")
            seen[name], graph[name] = split, node
        for name, node in graph.items():
            for child in node.children:
                if child not in graph:
                    fail(f"{where}: {name!r} has the child {child!r}, which is not a node of this split")
        graphs[split] = graph
    return graphs


def leaf_classes(graph: Graph, fail: Fail) -> dict[str, frozenset[str]]:
    """Return the distinct leaves below each node (the node itself for a leaf); `fail` is called for a cycle."""
    below: dict[str, frozenset[str]] = {}
    for root in graph:
        path = {root: iter(graph[root].children)} if root not in below else {}
        while path:
            name, children = next(reversed(path.items()))
            child = next(children, None)
            if child is None:
                own = graph[name].children
                below[name] = frozenset().union(*(below[c] for c in own)) if own else frozenset([name])
                del path[name]
            elif child in path:
                fail(f"split_subgraphs: the node {child!r} is its own descendant")
            elif child not in below:
                path[child] = iter(graph[child].children)
    return below


def _node(item: Any, where: str, fail: Fail) -> tuple[str, GraphNode]:
    if not isinstance(item, dict):
        fail(f"{where} is not an object")
    name, words, children = item.get("wn_id"), item.get("words", ""), item.get("children_ids")
    if not isinstance(name, str) or not name:
        fail(f"{where} has no wn_id")
    if not isinstance(children, list) or not all(isinstance(child, str) for child in children):
        fail(f"{where} ({name}): children_ids is not a list of ids")
    if len(set(children)) < len(children):
        fail(f"{where} ({name}): a child is listed twice")
    return name, GraphNode(words if isinstance(words, str) else "", tuple(children))
