"""`smat data`."""

import os

import pytest
from PIL import Image
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.data.stores.store import Store
from tests.data.imagefiles import tree, write_zip

runner = CliRunner()


def smat(*words):
    return runner.invoke(app, ["data", *map(str, words)])


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SMAT_DATA", raising=False)
    for name, classes in (("birds", 16), ("cars", 4)):
        write_zip(tmp_path / f"{name}.zip", {**tree(classes, 3), "c0/bad.png": b"x"})
    done = smat("prepare", "folder", "birds.zip", "cars.zip", "--out", "data/mini", "--size", 8, "-j", 1)
    assert done.exit_code == 0, done.output
    return tmp_path / "data" / "mini"


def cells(output):
    return {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}


def test_prepare_prints_the_table_and_runs_again(root):
    done = smat("prepare", "folder", "birds.zip", "cars.zip", "--out", "data/mini", "--size", 8)
    table = cells(done.stdout)
    assert done.exit_code == 0
    assert table["birds"][:5] == ["6", "5", "5", "48", "1"]
    assert table["cars"][:5] == ["0", "0", "4", "12", "1"]
    assert table["birds"][-2:] == ["already", "prepared"]
    assert table["total"][0:5] == ["6", "5", "9", "60", "2"]
    assert "already prepared, data/mini/birds.h5 is kept" in done.stderr


def test_prepare_failing_source_is_in_the_table_and_the_exit_code(root):
    (root.parent.parent / "broken.zip").write_bytes(b"")
    done = smat("prepare", "folder", "birds.zip", "broken.zip", "--out", "data/other", "--size", 8)
    assert done.exit_code == 2
    assert cells(done.stdout)["broken"][-1] == "failed"
    assert cells(done.stdout)["birds"][-1] == "written"
    assert done.stderr.splitlines()[-1].startswith("smat: broken.zip: the file is empty")
    assert "unreadable: c0/bad.png: not an image" in done.stderr


def test_prepare_options_reach_the_engine(root):
    words = ("--name", "few", "--fit", "squash", "--split", "100/0/0", "--licence", "CC BY 4.0", "--min-images", 3, "--depth", 1)
    done = smat("prepare", "folder", "cars.zip", "--out", "data/x", "--size", 9, *words)
    store = Store.open("data/x/few.h5")
    assert done.exit_code == 0
    assert (store.name, store.image_size, store.licence) == ("few", 9, "CC BY 4.0")
    assert store.facts["fit"] == "squash"
    assert store.class_split.tolist() == [0] * 4
    assert smat("prepare", "folder", "cars.zip", "--out", "data/y", "--strict").exit_code == 2
    assert os.listdir("data/y") == []
    assert smat("prepare", "folder", "cars.zip", "--out", "data/x", "--name", "few").exit_code == 2
    assert smat("prepare", "folder", "cars.zip", "--out", "data/x", "--name", "few", "--replace").exit_code == 0
    assert Store.open("data/x/few.h5").image_size == 64


def test_ls(root):
    for words in ((), ("data/mini",), ("data",)):
        table = cells(smat("ls", *words).stdout)
        key = "birds" if words == ("data/mini",) else "mini/birds"
        assert table[key][:6] == ["6", "5", "5", "48", "3", "8"]
        assert table[key][-1] == Store.open(root / "birds.h5").content_hash[:12]
    os.truncate(root / "cars.h5", 3000)
    done = smat("ls")
    assert done.exit_code == 0
    assert "mini/birds" in done.stdout
    assert "cars.h5: " in done.stderr
    assert smat("ls", "nowhere").exit_code == 2


def test_ls_of_an_empty_folder_and_the_environment(root, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert "no stores" in smat("ls", "empty").stdout
    monkeypatch.setenv("SMAT_DATA", str(root))
    assert set(cells(smat("ls").stdout)) == {"dataset", "birds", "cars"}


@pytest.mark.parametrize("name", ["cars", "mini/cars", "data/mini/cars.h5"])
def test_info(root, name):
    done = smat("info", name)
    assert done.exit_code == 0
    assert "test       4 classes: c0 (3), c1 (3), c2 (3), c3 (3)" in done.stdout
    assert "unreadable 1" in done.stdout
    assert Store.open(root / "cars.h5").content_hash in done.stdout
    assert "licence    not recorded" in done.stdout


def test_info_of_an_unknown_name(root):
    done = smat("info", "brids")
    assert done.exit_code == 2
    assert done.stderr == "smat: brids: no such dataset below data; did you mean 'birds'?\n"


def test_verify(root):
    done = smat("verify")
    assert done.exit_code == 0
    assert done.stdout.count(": sound") == 2
    store = Store.open(root / "cars.h5")
    with store.path.open("r+b") as file:
        file.seek(store.offset + 77)
        byte = file.read(1)[0]
        file.seek(store.offset + 77)
        file.write(bytes([byte ^ 64]))
    done = smat("verify")
    assert done.exit_code == 1
    assert "birds.h5: sound" in done.stdout
    assert "cars.h5: damaged: the content hash" in done.stdout
    assert "1 of 2 stores are damaged" in done.stderr
    assert smat("verify", "birds").exit_code == 0
    assert smat("verify", "crs").exit_code == 2


def test_show(root, tmp_path):
    done = smat("show", "birds", "--out", "sheet.png", "--rows", 7, "--columns", 2)
    assert done.exit_code == 0
    assert done.stdout.strip() == "sheet.png"
    with Image.open("sheet.png") as sheet:
        assert sheet.height == 30 + 7 * 50
        assert sheet.width > 2 * 50
        first = Store.open(root / "birds.h5")
        row = int(first.classes("train")[0])
        tile = sheet.crop((sheet.width - 2 * 50, 30, sheet.width - 52, 78))
        expected = Image.fromarray(first.images[first.class_offsets[row]]).resize((48, 48), Image.Resampling.NEAREST)
        assert tile.tobytes() == expected.tobytes()
    done = smat("show", "birds", "--out", "sheet.png")
    assert done.exit_code == 2
    assert "exists already" in done.stderr
    assert smat("show", "birds", "--out", "sheet.png", "--replace", "--split", "test").exit_code == 0
    assert smat("show", "cars", "--split", "train").exit_code == 2
    assert not (tmp_path / "cars.png").exists()
    assert smat("show", "cars", "--out", "sheet.xyz").exit_code == 2


def test_synthetic(tmp_path):
    words = ("synthetic", "--out", tmp_path / "s", "--domains", "shapes,cells", "--classes", 6, "--per-class", 3, "--size", 16)
    done = smat(*words)
    assert done.exit_code == 0
    assert done.stdout.split() == [str(tmp_path / "s" / f"{name}.h5") for name in ("shapes", "cells")]
    assert Store.open(tmp_path / "s" / "shapes.h5").counts.tolist() == [3] * 6
    done = smat("synthetic", "--out", tmp_path / "t", "--domains", "shape")
    assert done.exit_code == 2
    assert "did you mean 'shapes'" in done.stderr


def test_wrong_usage_is_exit_2(root):
    for words in (("--size", 0), ("--fit", "stretch"), ("--min-images", 1), ("--split", "60/20"), ("--nmae", "x")):
        assert smat("prepare", "folder", "cars.zip", "--out", "data/z", *words).exit_code == 2
    assert not (root.parent / "z").exists()
