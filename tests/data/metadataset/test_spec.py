"""`dataset_spec.json` of each kind: its content, and a one-line error for every contradiction."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smatcli.data.metadataset.spec import SPEC_FILE, Spec, SpecClass, parse_spec, read_spec
from smatcli.data.stores.ontology import Node
from smatcli.errors import UserError
from tests.data.imagefiles import LFS
from tests.data.mdfiles import FIXTURE, bilevel, dag, flat, write_spec

SHARED = FIXTURE.parent
GRAPHS = {
    "TRAIN": {"root": ["left", "right"], "left": ["z", "b"], "right": ["b", "k"], "z": [], "b": [], "k": []},
    "VALID": {},
    "TEST": {"top": ["low"], "low": ["y", "c"], "y": [], "c": []},
}
LEAVES = ["z", "b", "k", "y", "c"]  # class ids need not follow the names


def test_flat():
    spec = parse_spec(flat((2, 1, 1), [5, 6, 7, 8]), "spec")
    assert (spec.name, spec.kind, spec.ontology) == ("toy", "flat", None)
    assert spec.classes == tuple(SpecClass(f"class {i}", s, 5 + i) for i, s in enumerate(["train", "train", "valid", "test"]))
    assert spec.file(3) == "3.tfrecords"
    assert spec.file(3, ".h5") == "3.h5"


def test_bilevel():
    spec = parse_spec(bilevel((2, 0, 1), [2, 3, 1], 4), "spec")
    assert [c.split for c in spec.classes] == ["train"] * 5 + ["test"]
    assert {c.images for c in spec.classes} == {4}
    assert spec.ontology
    assert spec.ontology.kind == "bilevel"
    assert spec.ontology.nodes == {
        "train": (Node("group 0", "group 0", (0, 1)), Node("group 1", "group 1", (2, 3, 4))),
        "valid": (),
        "test": (Node("group 2", "group 2", (5,)),),
    }


def test_dag():
    """Inner nodes are sorted by wn_id. Their leaves are unique class ids, sorted by wn_id."""
    spec = parse_spec(dag(GRAPHS, LEAVES, 3), "spec")
    assert [(c.name, c.split, c.images) for c in spec.classes] == [(n, "train" if n in "zbk" else "test", 3) for n in LEAVES]
    assert spec.ontology
    assert {s: [(n.name, n.words, n.leaves) for n in nodes] for s, nodes in spec.ontology.nodes.items()} == {
        "train": [("left", "words of left", (1, 0)), ("right", "words of right", (1, 2)), ("root", "words of root", (1, 2, 0))],
        "valid": [],
        "test": [("low", "words of low", (4, 3)), ("top", "words of top", (4, 3))],
    }


@pytest.mark.parametrize("kind", ["flat", "bilevel"])
def test_reference_specs(kind):
    """Compare with the offsets and counts that the reference sampler reported for these files."""
    path = SHARED / f"{kind}_spec.json"
    spec, raw = read_spec(path), json.loads(path.read_text())
    assert spec.kind == kind
    assert (spec.ontology is not None) == (kind == "bilevel")
    assert [c.images for c in spec.classes] == [raw["images_per_class"][str(i)] for i in range(len(spec.classes))]
    assert [c.name for c in spec.classes] == [raw["class_names"][str(i)] for i in range(len(spec.classes))]
    if spec.ontology:
        sizes = [len(n.leaves) for s in ("train", "valid", "test") for n in spec.ontology.nodes[s]]
        assert sizes == [raw["classes_per_superclass"][str(i)] for i in range(len(sizes))]


def test_reference_dag():
    """The file lists the number of images of inner nodes: it is the sum over the distinct leaves below."""
    path = SHARED / "dag_spec.json"
    spec, raw = read_spec(path), json.loads(path.read_text())
    assert spec.ontology
    assert spec.kind == spec.ontology.kind == "dag"
    for split, nodes in spec.ontology.nodes.items():
        listed = raw["images_per_class"][split.upper()]
        assert nodes
        assert [n.name for n in nodes] == sorted(n.name for n in nodes)
        for node in nodes:
            names = [spec.classes[i].name for i in node.leaves]
            assert names == sorted(names)
            assert {spec.classes[i].split for i in node.leaves} == {split}
            assert sum(spec.classes[i].images for i in node.leaves) == listed[node.name]


def without(raw, *keys):
    raw = copy.deepcopy(raw)
    part = raw
    for key in keys[:-1]:
        part = part[key]
    del part[keys[-1]]
    return raw


def graphs(**changed):
    return {**GRAPHS, **changed}


FLAT, BILEVEL, DAG = flat((2, 0, 1), [3, 3, 3]), bilevel((1, 0, 1), [2, 1]), dag(GRAPHS, LEAVES)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ([], "the specification is a list, expected an object"),
        (without(FLAT, "__class__"), r"__class__ is 'None'.*the key is missing"),
        ({**FLAT, "__class__": "DatasetSpec"}, "__class__ is 'DatasetSpec', expected.*did you mean 'DatasetSpecification'"),
        (without(FLAT, "name"), "name is missing, expected a name"),
        (without(FLAT, "class_names"), "class_names is missing"),
        (without(FLAT, "images_per_class"), "images_per_class is missing"),
        (without(FLAT, "images_per_class", "1"), "images_per_class has 2 entries, class_names has 3"),
        ({**FLAT, "images_per_class": {"0": 1, "1": 1, "3": 1}}, "images_per_class has 3 entries, but none for 2"),
        ({**FLAT, "images_per_class": {"0": 1, "1": -1, "2": 1}}, "images_per_class, 1 is '-1', expected a whole number"),
        ({**FLAT, "images_per_class": {"0": 1, "1": True, "2": 1}}, "images_per_class, 1 is 'True', expected a whole number"),
        ({**FLAT, "images_per_class": {"0": 1, "1": 2.0, "2": 1}}, "images_per_class, 1 is '2.0', expected a whole number"),
        ({**FLAT, "class_names": {"0": "a", "1": "b", "2": "a"}}, "class_names: 0 and 2 have the same name 'a'"),
        ({**FLAT, "class_names": {"0": "a", "1": "b", "2": ""}}, "class_names, 2 is '', expected a name"),
        ({**FLAT, "classes_per_split": {"TRAIN": 3, "VALID": 0, "TEST": 1}}, "classes_per_split has 4 classes, class_names has 3"),
        ({**FLAT, "classes_per_split": {"TRAIN": 2, "TEST": 1}}, "classes_per_split has TEST, TRAIN, expected TRAIN, VALID, TEST"),
        ({**FLAT, "file_pattern": "{}_{}.tfrecords"}, "must have exactly one {}, for the class id"),
        ({**FLAT, "file_pattern": "../{}.tfrecords"}, "refused, it points outside the dataset's folder"),
        (without(BILEVEL, "superclass_names", "1"), "superclasses_per_split has 2 superclasses, superclass_names has 1"),
        ({**BILEVEL, "classes_per_superclass": {"0": 2, "1": 2}}, "classes_per_superclass has 4 classes, class_names has 3"),
        ({**BILEVEL, "classes_per_superclass": {"0": 3, "1": 0}}, "classes_per_superclass, 1 is 0"),
        ({**BILEVEL, "superclass_names": {"0": "a", "1": "a"}}, "superclass_names: 0 and 1 have the same name"),
        (without(DAG, "split_subgraphs"), "split_subgraphs is missing"),
        ({**DAG, "images_per_class": {split: {} for split in GRAPHS}}, "images_per_class, TRAIN has no count for 'b'"),
        (dag(graphs(VALID={"z": []}), LEAVES), "split_subgraphs, VALID: the node 'z' occurs twice"),
        (dag(GRAPHS, [*LEAVES, "extra"]), "split_subgraphs has 5 classes, class_names has 6"),
        (dag(GRAPHS, ["z", "b", "other", "y", "c"]), "class_names has no class 'k', a leaf of split_subgraphs, TRAIN"),
        (dag(GRAPHS, ["z", "b", "y", "k", "c"]), "class_names: 3 is 'k', a leaf of TRAIN, whose ids are 0 to 2"),
        (dag(GRAPHS, LEAVES[:4]), "class_names has no class 'c'"),
        (without(DAG, "images_per_class", "TEST", "y"), "images_per_class, TEST has no count for 'y'"),
        (without(DAG, "images_per_class", "VALID"), "images_per_class has TEST, TRAIN, expected"),
        ({**DAG, "split_subgraphs": {"TRAIN": {}, "VALID": [], "TEST": []}}, "split_subgraphs, TRAIN is not a list of nodes"),
        ({**DAG, "split_subgraphs": {"TRAIN": [{"wn_id": "a"}], "VALID": [], "TEST": []}}, r"node 0 \(a\): children_ids is not a list"),
        ({**DAG, "split_subgraphs": {"TRAIN": [{}], "VALID": [], "TEST": []}}, "node 0 has no wn_id"),
    ],
)  # fmt: skip
def test_contradictions(raw, said):
    with pytest.raises(UserError, match=rf"^the\.json: .*{said}"):
        parse_spec(raw, "the.json")


def linked(**children):
    raw = copy.deepcopy(DAG)
    for node in raw["split_subgraphs"]["TRAIN"]:
        node["children_ids"] = children.get(node["wn_id"], node["children_ids"])
    return raw


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (linked(right=["b", "k", "root"]), "the node 'root' is its own descendant"),
        (linked(left=["z", "b", "left"]), "the node 'left' is its own descendant"),
        (linked(left=["z", "y"]), "'left' has the child 'y', which is not a node of this split"),
        (linked(left=["z", "z"]), r"\(left\): a child is listed twice"),
    ],
)
def test_invalid_graphs(raw, said):
    with pytest.raises(UserError, match=said):
        parse_spec(raw, "the.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, r"dataset_spec\.json, byte 0: is a git-lfs pointer"),
        (b"", r"dataset_spec\.json, byte 0 \(line 1\): not JSON"),
        (b'{\n"\xc3\xa9": 1,\n}', r"dataset_spec\.json, byte 11 \(line 3\): not JSON"),
        (b'{"a": "\xff"}', r"dataset_spec\.json, byte 7: not UTF-8"),
        (b'{"class_names": {"0": "a", "0": "b"}}', "the key '0' occurs twice"),
        (b"[" * 100_000, "cannot be parsed as JSON"),
        (b"[" + b"9" * 5000 + b"]", "cannot be parsed as JSON"),
    ],
)
def test_files_that_are_not_specifications(tmp_path, content, said):
    (tmp_path / SPEC_FILE).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_spec(tmp_path)


def test_missing_specification(tmp_path):
    for where, said in (
        (tmp_path / "no" / "where", "folder does not exist"),
        (tmp_path, r"dataset_spec\.json: does not exist; expected a folder written by"),
    ):
        with pytest.raises(UserError, match=said):
            read_spec(where)
    (tmp_path / "dataset_spec.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"dataset_spec\.pkl exists, but pickled files can run code and are not read"):
        read_spec(tmp_path)


@given(st.integers(0, 10**6), st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_specifications_raise_nothing_else(which, draw):
    """Replace any part of a valid specification by anything."""
    raw = copy.deepcopy([FLAT, BILEVEL, DAG][which % 3])
    part = raw
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = draw.draw(st.sampled_from(keys))
        if not isinstance(part[key], dict | list) or not part[key] or draw.draw(st.booleans()):
            break
        part = part[key]
    part[key] = draw.draw(
        st.sampled_from([None, True, -1, 0, 1, 10**30, 0.5, "", "x", "\n", [], {}, [None], ["x"], {"0": "a"}, float("nan")])
    )
    try:
        assert isinstance(parse_spec(raw, "the.json"), Spec)
    except UserError as error:
        assert str(error).startswith("the.json: ")
        assert "\n" not in str(error)


def test_a_deep_graph(tmp_path):
    """A chain of 20,000 nodes does not exceed the recursion limit."""
    chain = {f"n{i:05d}": [f"n{i + 1:05d}"] for i in range(20_000)} | {"n20000": []}
    raw = dag({"TRAIN": {}, "VALID": {}, "TEST": {}}, ["n20000"], images_per_class={"TRAIN": {"n20000": 2}, "VALID": {}, "TEST": {}})
    raw["split_subgraphs"]["TRAIN"] = [{"wn_id": n, "words": "", "children_ids": c} for n, c in chain.items()]
    spec = read_spec(write_spec(tmp_path, raw))
    assert spec.ontology
    assert len(spec.ontology.nodes["train"]) == 20_000
    assert spec.ontology.nodes["train"][0].leaves == (0,)
