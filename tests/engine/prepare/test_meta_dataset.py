"""Meta-Dataset's official files and PMF's, from the folder to the store."""

import hashlib
from functools import partial

import numpy as np
import pytest

from smatcli.data.sources import open_source
from smatcli.data.stores.store import Store
from smatcli.engine.prepare.preparation import PrepareError, PrepareJob, prepare
from smatcli.runs.reporter import SilentReporter
from tests.data.imagefiles import picture
from tests.data.mdfiles import FIXTURE, bilevel, dag, flat, write_records

PARTS = {"TRAIN": {"top": ["c", "a", "b"], "low": ["c", "a"], "a": [], "b": [], "c": []}, "VALID": {}, "TEST": {"up": ["d"], "d": []}}


def pictures(classes, images=2):
    return {c: [picture(100 * c + i) for i in range(images)] for c in range(classes)}


@pytest.fixture
def prepared(tmp_path):
    """Prepare a folder; return the store and the reported lines."""

    def run(kind, path, name="toy", **options):
        reporter = SilentReporter()
        jobs = [PrepareJob(name, None, partial(open_source, kind, path))]
        settings = {"size": 8, "fit": "squash", "workers": 2, **options}
        result = prepare(jobs, tmp_path / "stores", reporter=reporter, **settings)[0]
        return Store.open(result.path), reporter.lines

    return run


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_both_layouts_of_the_fixture_give_the_same_images(prepared, encoding):
    ours, _ = prepared("meta-dataset", FIXTURE / "tfrecord" / "toy_shapes", "records", size=24, encoding=encoding)
    theirs, _ = prepared("pmf-h5", FIXTURE / "pmf_h5" / "toy_shapes", "groups", size=24, encoding=encoding)
    assert ours.class_names == theirs.class_names == ["disc", "square", "triangle"]
    assert ours.class_split.tolist() == theirs.class_split.tolist() == [0, 0, 2]
    assert ours.counts.tolist() == theirs.counts.tolist() == [12] * 3
    assert (ours.source, theirs.source) == ("meta-dataset toy_shapes", "pmf-h5 toy_shapes")
    difference = np.abs(ours.images[:].astype(int) - theirs.images[:])
    assert len(ours.images) == 36
    assert difference.mean() < 1.5
    assert len({image.tobytes() for image in ours.images[:]}) == 36


@pytest.mark.parametrize("raw", [bilevel((1, 0, 1), [3, 1]), dag(PARTS, ["c", "b", "a", "d"])], ids=["bilevel", "dag"])
def test_the_ontology_goes_into_the_store_and_follows_dropped_classes(tmp_path, prepared, raw):
    images = pictures(4)
    whole, _ = prepared("meta-dataset", write_records(tmp_path / "whole", raw, images), "whole")
    if whole.ontology.kind == "bilevel":
        assert [n.leaves for n in whole.ontology.nodes["train"]] == [(0, 1, 2)]
        assert [n.leaves for n in whole.ontology.nodes["test"]] == [(3,)]
    else:
        assert {n.name: n.leaves for n in whole.ontology.nodes["train"]} == {"low": (2, 0), "top": (2, 1, 0)}
    images[1][0] = b"\xff\xd8 no image"
    fewer, lines = prepared("meta-dataset", write_records(tmp_path / "fewer", raw, images), "fewer", min_images=2, strict=False)
    assert len(fewer.class_names) == 3
    assert any("dropped" in line for line in lines)
    assert sorted(leaf for nodes in fewer.ontology.nodes.values() for n in nodes for leaf in n.leaves if n.name != "low") == [0, 1, 2]
    assert [fewer.class_names[i] for i in fewer.ontology.nodes["test"][0].leaves] == [whole.class_names[3]]


def test_an_image_that_does_not_decode_is_named_with_its_byte(tmp_path, prepared):
    images = pictures(2, 4)
    images[0][1] = images[0][1][:60]
    folder = write_records(tmp_path / "toy", flat((1, 0, 1), [4, 4]), images)
    store, lines = prepared("meta-dataset", folder, strict=False)
    offset = int.from_bytes((folder / "0.tfrecords").read_bytes()[:8], "little") + 16
    assert store.counts.tolist() == [3, 4]
    assert any(f"unreadable: 0.tfrecords, byte {offset}: " in line for line in lines)
    with pytest.raises(PrepareError, match=rf"0\.tfrecords, byte {offset}: .*") as caught:
        prepared("meta-dataset", folder, "strict")
    assert caught.value.exit_code == 2


def test_a_wrong_checksum_leaves_the_earlier_store_as_it_was(tmp_path, prepared):
    folder = write_records(tmp_path / "toy", flat((1, 0, 1), [4, 4]), pictures(2, 4))
    store, _ = prepared("meta-dataset", folder)
    before = hashlib.sha256(store.path.read_bytes()).digest()
    data = bytearray((folder / "1.tfrecords").read_bytes())
    data[-10] ^= 4
    (folder / "1.tfrecords").write_bytes(data)
    with pytest.raises(PrepareError, match=r"toy/1\.tfrecords, byte \d+: wrong CRC-32C") as caught:
        prepared("meta-dataset", folder, replace=True)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert hashlib.sha256(store.path.read_bytes()).digest() == before
    assert [path.name for path in store.path.parent.iterdir() if "lock" not in path.name] == [store.path.name]


def test_fixed_episodes_of_a_prepared_store(prepared):
    file = FIXTURE / "pmf_h5" / "toy_shapes" / "val_ep2_img16.h5"
    store, _ = prepared("pmf-episodes", file, "valid", size=16)
    source = open_source("pmf-episodes", file)
    episodes = source.episodes(store)  # type: ignore[attr-defined]
    assert store.class_split.tolist() == [1] * 4
    assert len(episodes) == 2
    assert episodes.content == store.content_hash
    plan = episodes.plan(1)
    first = [image for c in source.classes()[2:] for image in c.images if image.part == "sx"]
    assert all((store.images[row] == source.read(image)).all() for row, image in zip(plan.support, first, strict=True))
