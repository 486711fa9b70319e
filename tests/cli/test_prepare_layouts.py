"""`smat data prepare domainnet | coco | cub | fungi | quickdraw`, from files in their published layout to stores."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.data.stores.store import Store
from tests.data.imagefiles import write_folder
from tests.data.sources import test_coco as coco
from tests.data.sources import test_cub as cub
from tests.data.sources import test_domainnet as domainnet
from tests.data.sources import test_fungi as fungi
from tests.data.sources import test_quickdraw as quickdraw

runner = CliRunner()


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words, store=None, fails=False):
        done = runner.invoke(app, ["data", "prepare", *map(str, words), "--out", "out", "-j", "2"])
        assert (done.exit_code == 2) if fails else (done.exit_code == 0), done.output
        return done.output if store is None else (done.output, Store.open(tmp_path / "out" / f"{store}.h5"))

    return run


def splits(path, **names):
    path.write_text(json.dumps({"train": [], "valid": [], "test": [], **names}))
    return path


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_cub_with_meta_datasets_splits(prepare, tmp_path):
    write_folder(tmp_path, cub.archive())
    listed = splits(tmp_path / "cu_birds_splits.json", train=cub.NAMES[1:], test=cub.NAMES[:1])
    _, store = prepare("cub", "CUB_200_2011", "--splits", listed, "--size", 8, store="cu_birds")
    assert store.class_names == cub.NAMES
    assert store.class_split.tolist() == [2, 0, 0]
    assert store.counts.tolist() == [3, 3, 3]
    for row in range(9):  # the lists are in the order of the classes
        np.testing.assert_array_equal(store.images[row], pixels(cub.picture(row)))
    assert "kept" in prepare("cub", "CUB_200_2011", "--splits", listed, "--size", 8)
    text = prepare("cub", "CUB_200_2011", "--name", "b", "--splits", splits(tmp_path / "s.json", train=["001.Black_footed"]), fails=True)
    assert "no class '001.Black_footed' in the data" in text


def test_fungi(prepare, tmp_path):
    fungi.write(tmp_path, missing=["images/1/svampe_7.JPG"])
    listed = splits(tmp_path / "s.json", train=[f"{n:04d}.{fungi.CATEGORIES[n]}" for n in (3, 0, 1)], test=["0002.Xylaria sp"])
    text, store = prepare("fungi", "fungi", "--splits", listed, "--size", 8, store="fungi")
    assert store.counts.tolist() == [2, 2, 2, 2]
    assert store.class_split.tolist() == [0, 0, 2, 0]
    assert "images/1/svampe_7.JPG: is listed, but missing" in text
    np.testing.assert_array_equal(store.images[store.class_offsets[1] + 1], pixels(fungi.picture(8)))


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_coco(prepare, tmp_path, encoding):
    write_folder(tmp_path / "train2017", {coco.FILES[i]: coco.png(i) for i in coco.FILES})
    (tmp_path / "instances.json").write_text(json.dumps(coco.instances()))
    listed = splits(tmp_path / "s.json", valid=["person"], test=["dog"])
    words = ("coco", "train2017", "instances.json", "--splits", listed, "--size", 48, "--encoding", encoding, "--no-crowd")
    text, store = prepare(*words, store="mscoco")
    assert store.class_names == ["person", "dog"]
    assert store.counts.tolist() == [3, 2]
    assert store.class_split.tolist() == [1, 2]
    assert "1 crowd boxes skipped" in text
    whole = Image.fromarray(pixels(coco.png(139))).resize((48, 48), Image.Resampling.BICUBIC)
    found = np.asarray(store.images[np.array([3])])[0].astype(int)
    assert np.abs(found - np.asarray(whole)).mean() < (1 if encoding == "raw" else 12)  # random pixels: the worst case for JPEG


def test_domainnet_every_domain_there(prepare, tmp_path):
    write_folder(tmp_path / "d", {**domainnet.IMAGES, **domainnet.lists()})
    write_folder(tmp_path / "d", {name.replace("sketch", "clipart"): data for name, data in domainnet.IMAGES.items()})
    text, store = prepare("domainnet", "d", "--size", 8, store="domainnet_sketch")
    assert store.class_names == domainnet.CLASSES
    assert store.counts.tolist() == [3, 3, 3]
    assert store.class_split.tolist() == [2, 2, 2]
    assert Store.open(tmp_path / "out/domainnet_clipart.h5").counts.tolist() == [4, 4, 4]
    assert "3 images that are not in a list file" in text
    np.testing.assert_array_equal(store.images[0], pixels(domainnet.IMAGES[domainnet.image_name(0, 1)]))
    assert "did you mean 'sketch'" in prepare("domainnet", "d", "--domain", "scetch", fails=True)


def test_quickdraw_bitmaps_and_drawings(prepare, tmp_path):
    quickdraw.save(tmp_path / "q" / "ant.npy", quickdraw.BITMAPS)
    write_folder(tmp_path / "q", {"cat.ndjson": quickdraw.line() * 3 + b"{}\n"})
    text, store = prepare("quickdraw", "q", "--size", 28, "--split", "0/0/100", store="quickdraw")
    assert store.class_names == ["ant", "cat"]
    assert store.counts.tolist() == [7, 3]
    np.testing.assert_array_equal(store.images[2, ..., 0], quickdraw.BITMAPS[2].reshape(28, 28))
    assert "unreadable: cat#3: has no drawing" in text
    assert store.images[8].mean() > 150
    _, few = prepare("quickdraw", "q/ant.npy", "--name", "few", "--max-per-class", 4, "--size", 28, store="few")
    assert few.counts.tolist() == [4]


def test_truncated_bitmaps_leave_the_earlier_store(prepare, tmp_path):
    path = quickdraw.save(tmp_path / "q" / "ant.npy", quickdraw.BITMAPS)
    prepare("quickdraw", "q", "--size", 28)
    before = (tmp_path / "out/quickdraw.h5").read_bytes()
    path.write_bytes(path.read_bytes()[:-1])
    text = prepare("quickdraw", "q", "--size", 28, "--replace", fails=True)
    assert "truncated: 5,615 bytes, 7 bitmaps end at 5,616" in text
    assert (tmp_path / "out/quickdraw.h5").read_bytes() == before
