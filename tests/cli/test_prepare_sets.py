"""`smat data prepare torchvision`, `vtab` and `fgvc` from the files on disk to the store."""

import numpy as np
import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.data.stores.store import Store
from tests.data import torchvision_files as files
from tests.data.listfiles import write_birds, write_task

runner = CliRunner()


def smat(*words):
    return runner.invoke(app, ["data", *map(str, words)])


def test_all_of_torchvision_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = {name.lower(): write(tmp_path, monkeypatch) for name, write in files.WRITERS.items()}
    options = ("--root", ".", "--out", "out", "--size", 8, "--split", "0/0/100", "-j", 1)
    done = smat("prepare", "torchvision", *files.WRITERS, *options)
    assert done.exit_code == 0, done.output
    for name, classes in expected.items():
        store = Store.open(tmp_path / "out" / f"{name}.h5")
        assert list(store.class_names) == list(classes)
        assert store.counts.tolist() == [len(images) for images in classes.values()]
        assert store.class_split.tolist() == [2] * len(classes)
        assert store.image_split is None
        assert store.source.startswith("torchvision ")
    again = smat("prepare", "torchvision", "CIFAR-10", "dtd", *options)
    assert again.exit_code == 0
    assert again.stderr.count("already prepared") == 2


@pytest.mark.parametrize("name, side", [("CIFAR100", 32), ("MNIST", 28), ("SVHN", 32), ("Omniglot", 105)])
def test_pixels_of_the_true_size_reach_the_store_unchanged(name, side, tmp_path, monkeypatch):
    expected = files.WRITERS[name](tmp_path, monkeypatch)
    done = smat("prepare", "torchvision", name, "--root", tmp_path, "--out", tmp_path / "out", "--size", side, "-j", 2)
    assert done.exit_code == 0, done.output
    store = Store.open(tmp_path / "out" / f"{name.lower()}.h5")
    assert np.array_equal(store.images[:], np.stack([image for images in expected.values() for image in images]))


def test_missing_data_is_one_line_and_exit_code_2(tmp_path):
    done = smat("prepare", "torchvision", "DTD", "--root", tmp_path / "raw", "--out", tmp_path / "out")
    assert done.exit_code == 2
    last = done.stderr.splitlines()[-1]
    assert "raw/dtd/dtd/labels is missing; unpack https://" in last
    assert last.endswith("or give --download")
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_every_vtab_task_of_a_folder(encoding, tmp_path):
    for task in ("cifar", "dtd"):
        write_task(tmp_path / "vtab-1k" / task)
    done = smat("prepare", "vtab", tmp_path / "vtab-1k", "--out", tmp_path / "out", "--size", 8, "--encoding", encoding, "-j", 1)
    assert done.exit_code == 0, done.output
    for task in ("cifar", "dtd"):
        store = Store.open(tmp_path / "out" / f"vtab_{task}.h5")
        assert list(store.class_names) == ["0", "1", "2"]
        assert store.counts.tolist() == [4, 4, 5]
        assert {split: store.image_rows(split).tolist() for split in ("train", "valid", "test")} == {
            "train": [0, 1, 4, 5, 8, 9], "valid": [2, 6, 10], "test": [3, 7, 11, 12],
        }  # fmt: skip
    told = smat("info", "vtab_dtd", "--root", tmp_path / "out").stdout
    assert "train      6 images" in told
    assert "split by image: 0 (4), 1 (4), 2 (5)" in told


def test_fgvc_and_its_errors(tmp_path):
    birds = write_birds(tmp_path / "CUB_200_2011")
    command = ("prepare", "fgvc", birds, "--out", tmp_path / "out", "--size", 8, "-j", 1)
    assert smat(*command).exit_code == 0
    store = Store.open(tmp_path / "out" / "fgvc_CUB_200_2011.h5")
    assert list(store.class_names) == ["001.bird_1", "002.bird_2", "010.bird_10"]
    assert {split: len(store.image_rows(split)) for split in ("train", "valid", "test")} == {"train": 6, "valid": 6, "test": 6}
    (birds / "val.json").write_text('{"001.bird_1/train_0.jpg": 1}')
    done = smat(*command)
    assert done.exit_code == 2
    assert "val.json: images/001.bird_1/train_0.jpg is listed twice" in done.stderr.splitlines()[-1]
    assert len(Store.open(store.path)) == 18
