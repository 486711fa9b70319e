"""Comparison of a store with the known dataset of its name."""

import dataclasses

import numpy as np
import pytest

from smatcli.data.catalogue.datasets import COLLECTIONS
from smatcli.data.catalogue.doctor import diagnose
from smatcli.data.catalogue.expected import compare, identify
from smatcli.data.stores.store import Store, write_store
from tests.data.knownstores import paper, spread, write_known, write_task

PAPER = COLLECTIONS["paper"]
VTAB = COLLECTIONS["vtab"]

DTD_TASK = next(known for known in VTAB if known.name == "vtab_dtd")


def opened(path):
    store = Store.open(path)
    known = identify(store)
    assert known is not None
    return store, compare(store, known)


@pytest.mark.parametrize("name", ["omniglot", "aircraft", "dtd", "vgg_flower", "traffic_sign", "cifar10", "cars"])
def test_a_store_as_it_should_be(tmp_path, name):
    store, comparison = opened(write_known(tmp_path, paper(name)))
    assert comparison.dataset.name == name
    assert comparison.mismatches == []
    assert comparison.remarks == ()
    items = {item.what: item.actual for item in comparison.items}
    assert items["images"] == f"{len(store):,}"
    assert ("ontology" in items) == (name == "omniglot")


def test_every_mismatch_is_named(tmp_path):
    counts = spread(paper("aircraft"))[:50]
    counts[3] = 7
    _, comparison = opened(write_known(tmp_path, paper("aircraft"), counts, [0] * 33 + [1] * 7 + [2] * 10))
    assert comparison.mismatches == [
        "classes train/valid/test 33/7/10, expected 70/15/15",
        "images 4,907, expected 10,000",
        "images per class 7 to 100, expected 100",
    ]


def test_one_lost_image_and_a_lost_ontology_are_noticed(tmp_path):
    counts = spread(paper("omniglot"))
    counts[-1] -= 1
    path = write_known(tmp_path, paper("omniglot"), counts, ontology=None, facts={"unreadable": 1})
    _, comparison = opened(path)
    assert comparison.mismatches == [
        "images 32,459, expected 32,460",
        "images per class 19 to 20, expected 20",
        "ontology none, expected bilevel",
    ]
    assert comparison.remarks == ("1 unreadable file of the source skipped",)


def test_other_splits_are_a_mismatch(tmp_path):
    known = paper("cifar10")
    _, comparison = opened(write_known(tmp_path, known, split=[0] * 5 + [2] * 5, source="torchvision CIFAR10"))
    assert comparison.mismatches == ["classes train/valid/test 5/0/5, expected 0/0/10"]


def test_a_known_other_version_is_a_remark(tmp_path):
    _, comparison = opened(write_known(tmp_path, paper("cifar10"), [1000] * 10))
    assert comparison.mismatches == []
    assert comparison.remarks == ("10,000 images: its test images alone",)


@pytest.mark.parametrize(
    ("name", "source", "known"),
    [
        ("omniglot", "folder omniglot", "omniglot"),
        ("CUB", "cub /data/CUB_200_2011", "cu_birds"),
        ("mine", "meta-dataset /records/vgg_flower", "vgg_flower"),
        ("mine", "pmf-h5 /h5/dtd", "dtd"),
        ("mine", "torchvision GTSRB", "traffic_sign"),
        ("domainnet_sketch", "domainnet /data", "sketch"),
        ("domainnet_quickdraw", "domainnet /data/quickdraw", None),
        ("mine", "folder omniglot", None),
        ("fungi", "smat data synthetic, seed 0", None),
    ],
)
def test_stores_are_known_by_their_name_or_their_origin(tmp_path, name, source, known):
    path = write_store(tmp_path / f"{name}.h5", name, 1, [("a", 2, np.zeros((2, 1, 1, 3), np.uint8))], source)
    found = identify(Store.open(path))
    assert (found and found.name) == known


def test_tuning_tasks_are_compared_by_image(tmp_path):
    good = write_task(tmp_path / "a", DTD_TASK, (800, 200, 1880), 47, "vtab /VTAB/dtd")
    assert opened(good)[1].dataset is DTD_TASK
    assert opened(good)[1].mismatches == []
    bad = write_task(tmp_path / "b", DTD_TASK, (800, 200, 1879), 46, "vtab /VTAB/dtd")
    assert opened(bad)[1].mismatches == ["classes 46, expected 47", "images train/valid/test 800/200/1,879, expected 800/200/1,880"]
    renamed = write_task(tmp_path / "c", dataclasses.replace(DTD_TASK, name="textures"), (800, 200, 1880), 47, "vtab /VTAB/dtd")
    assert opened(renamed)[1].dataset is DTD_TASK


def test_diagnose_prefers_the_right_store(tmp_path):
    write_known(tmp_path / "a", paper("dtd"), [3, 4], [0, 2])
    right = write_known(tmp_path / "b", paper("dtd"))
    write_known(tmp_path / "c", paper("aircraft"), [3, 4], [0, 2])
    (tmp_path / "c/cars.h5").write_bytes(b"no store")
    (tmp_path / "c/other.h5").write_bytes(b"no store")
    findings = {finding.dataset.name: finding for finding in diagnose(tmp_path, PAPER)}
    assert [known.name for known in PAPER] == list(findings)
    assert (findings["dtd"].state, findings["dtd"].path) == ("present", right)
    assert findings["aircraft"].state == "wrong"
    assert len(findings["aircraft"].problems) == 3
    assert findings["cars"].state == "wrong"
    assert "not an HDF5 file" in findings["cars"].problems[0]
    assert sum(finding.state == "missing" for finding in findings.values()) == 15


def test_diagnose_without_any_data(tmp_path):
    assert all(finding.state == "missing" for finding in diagnose(tmp_path / "nowhere", PAPER))
