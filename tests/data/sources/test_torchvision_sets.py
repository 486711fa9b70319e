"""The source `torchvision` on miniatures of all sixteen datasets in their original formats."""

import errno
import os
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from smatcli.data.images import Unreadable
from smatcli.data.sources.torchvision_sets import TorchvisionSource, dataset_name
from smatcli.data.sources.torchvision_table import SETS
from smatcli.errors import SmatError, UserError
from tests.data import torchvision_files as files
from tests.data.imagefiles import LFS

EVERY = pytest.mark.parametrize("name", list(files.WRITERS))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Factory that writes a miniature dataset below the temporary folder and returns its expected classes."""
    return lambda name: files.WRITERS[name](tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@EVERY
def test_the_whole_set_with_torchvisions_names(name, make, tmp_path):
    expected = make(name)
    source = TorchvisionSource(name, tmp_path)
    assert (source.kind, source.name, source.ontology) == ("torchvision", name.lower(), None)
    assert [(c.name, len(c.images)) for c in source.classes()] == [(c, len(images)) for c, images in expected.items()]
    for c in source.classes():
        assert c.split is None
        assert c.image_splits is None
        for key, image in zip(c.images, expected[c.name], strict=True):
            found = files.decoded(source.read(key))
            assert found.dtype == np.uint8
            assert found.shape == image.shape
            near = 3 if key.endswith(".jpg") else 0
            assert np.abs(found.astype(int) - image).max() <= near, key
    source.close()


@EVERY
def test_as_many_images_of_each_class_as_torchvision_gives(name, make, tmp_path):
    from torchvision import datasets

    make(name)
    parts = [getattr(datasets, name)(tmp_path, **given) for given in SETS[name.lower()].parts]
    labels = [label for part in parts for label in {int(part[i][1]) for i in range(len(part))}]
    source = TorchvisionSource(name, tmp_path)
    assert sum(len(c.images) for c in source.classes()) == sum(len(part) for part in parts)
    assert len(source.classes()) == (len(labels) if name == "Omniglot" else len(set(labels)))
    titles = next((getattr(parts[0], key) for key in ("classes", "categories") if hasattr(parts[0], key)), None)
    assert titles is None or [c.name for c in source.classes()] == list(titles)


@EVERY
def test_missing_files_are_named_with_where_to_get_them(name, tmp_path):
    with pytest.raises(UserError) as error:
        TorchvisionSource(name, tmp_path / "raw")
    text = str(error.value)
    assert str(tmp_path / "raw" / SETS[name.lower()].needs[0]) + " is missing" in text
    assert "\n" not in text
    assert ("http" in text and "--download" in text) or "the original site is gone" in text
    assert not (tmp_path / "raw").exists()


@EVERY
def test_each_missing_piece_is_named(name, make, tmp_path):
    make(name)
    for piece in SETS[name.lower()].needs:
        (tmp_path / piece).rename(tmp_path / "aside")
        with pytest.raises(UserError, match="is missing") as error:
            TorchvisionSource(name, tmp_path)
        assert str(tmp_path / piece) in str(error.value)
        (tmp_path / "aside").rename(tmp_path / piece)


@EVERY
def test_without_a_network_the_download_says_how_to_do_it_by_hand(name, tmp_path):
    with pytest.raises(UserError) as error:
        TorchvisionSource(name, tmp_path / "raw", download=True)
    text = str(error.value)
    assert "\n" not in text
    assert str(tmp_path / "raw") in text
    if name == "StanfordCars":
        assert "the original site is gone" in text
        assert "--download" not in text
    else:
        assert "torchvision could not download it" in text
        assert "http" in text


@pytest.mark.parametrize("name", ["CIFAR100", "SVHN", "Omniglot", "DTD"])
def test_fingerprint_follows_the_files(name, make, tmp_path):
    make(name)
    first = TorchvisionSource(name, tmp_path)
    assert TorchvisionSource(name, tmp_path).fingerprint == first.fingerprint
    piece = tmp_path / SETS[name.lower()].needs[0]
    changed = piece if piece.is_file() else tmp_path / first.classes()[0].images[0]

    os.utime(changed, (1, 1))
    assert TorchvisionSource(name, tmp_path).fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["CIFAR10", "KMNIST", "SVHN", "GTSRB"])
def test_reads_from_many_threads(name, make, tmp_path):
    make(name)
    source = TorchvisionSource(name, tmp_path)
    keys = [key for c in source.classes() for key in c.images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(source.read, keys * 5))
    for key, image in zip(keys * 5, together, strict=True):
        assert np.array_equal(files.decoded(image), files.decoded(source.read(key)))


def test_published_archives_already_there_need_no_network(tmp_path, monkeypatch):
    expected = files.mnist(tmp_path, monkeypatch, packed=True)
    with pytest.raises(UserError, match=r"is missing; put train-images-idx3-ubyte.gz, .*/MNIST/raw and gunzip them"):
        TorchvisionSource("mnist", tmp_path)
    source = TorchvisionSource("mnist", tmp_path, download=True)
    assert {c.name: len(c.images) for c in source.classes()} == {name: len(images) for name, images in expected.items()}


@pytest.mark.parametrize(
    "name, piece",
    [
        ("CIFAR10", "cifar-10-batches-py/data_batch_3"),
        ("CIFAR100", "cifar-100-python/meta"),
        ("Flowers102", "flowers-102/setid.mat"),
        ("SVHN", "test_32x32.mat"),
        ("Omniglot", "omniglot-py/images_evaluation.zip"),
    ],
)
def test_a_wrong_checksum_names_the_file(name, piece, make, tmp_path):
    make(name)
    data = (tmp_path / piece).read_bytes()
    (tmp_path / piece).write_bytes(data[:-3])
    with pytest.raises(UserError, match=f"{piece}: its MD5 sum is not the one torchvision expects; fetch it again"):
        TorchvisionSource(name, tmp_path)


@pytest.mark.parametrize(
    "name, piece, content, message",
    [
        ("MNIST", "MNIST/raw/train-images-idx3-ubyte", b"\0\0\x08\x03\0\0\0\x14", "torchvision cannot read MNIST"),
        ("MNIST", "MNIST/raw/t10k-labels-idx1-ubyte", files.idx(np.full(20, 11)), "has the label 11, but MNIST has 10 classes"),
        ("KMNIST", "KMNIST/raw/t10k-labels-idx1-ubyte", files.idx(np.zeros(19)), "19 labels for test pixels"),
        ("DTD", "dtd/dtd/labels/val1.txt", b"banded\n", "torchvision cannot read DTD"),
        ("DTD", "dtd/dtd/labels/test1.txt", b"../x.jpg\n", "points outside"),
        ("FGVCAircraft", "fgvc-aircraft-2013b/data/variants.txt", b"707-320\nF/A-18\n", "torchvision cannot read FGVCAircraft"),
        ("FGVCAircraft", "fgvc-aircraft-2013b/data/variants.txt", b"707-320\nF/A-18\nA330-200\n707-320\n", "two classes .* '707-320'"),
        ("Food101", "food-101/meta/train.json", b"{", "torchvision cannot read Food101"),
        ("Food101", "food-101/meta/test.json", LFS, "git-lfs pointer"),
        ("GTSRB", "gtsrb/GT-final_test.csv", b"Filename;ClassId\na.ppm;stop\n", "torchvision cannot read GTSRB"),
        ("OxfordIIITPet", "oxford-iiit-pet/annotations/test.txt", b"Abyssinian_1 9 1 1\n", "has the label 8"),
        ("StanfordCars", "stanford_cars/devkit/cars_meta.mat", b"no mat file" * 20, "torchvision cannot read StanfordCars"),
    ],
)
def test_damaged_lists_are_one_clear_line(name, piece, content, message, make, tmp_path):
    make(name)
    (tmp_path / piece).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        TorchvisionSource(name, tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_listed_image_that_is_not_there_is_one_unreadable_image(make, tmp_path):
    make("Food101")
    (tmp_path / "food-101/images/waffles/20.jpg").unlink()
    source = TorchvisionSource("food101", tmp_path)
    with pytest.raises(Unreadable, match="vanished"):
        source.read("food-101/images/waffles/20.jpg")


def test_signs_keep_their_number_when_a_class_has_no_training_folder(make, tmp_path):
    """torchvision numbers the existing folders from 0."""
    make("GTSRB")
    folder = tmp_path / "gtsrb/GTSRB/Training/00001"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert {c.name: len(c.images) for c in TorchvisionSource("GTSRB", tmp_path).classes()} == {"00000": 4, "00001": 1, "00002": 3}


def test_a_full_disk_for_temporary_files_is_an_error(make, tmp_path, monkeypatch):
    make("SVHN")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(SmatError, match="No space left on device; 0 MiB of temporary space needed; set TMPDIR"):
        TorchvisionSource("svhn", tmp_path)


def test_skipped_files_are_remarked(make, tmp_path):
    make("SVHN")
    assert TorchvisionSource("svhn", tmp_path).remarks == []
    (tmp_path / "extra_32x32.mat").write_bytes(b"large")
    assert TorchvisionSource("svhn", tmp_path).remarks == ["extra_32x32.mat is skipped: only the train and test sets are used"]


@pytest.mark.parametrize(
    "given, name",
    [
        ("CIFAR-10", "cifar10"),
        ("TrafficSign", "gtsrb"),
        ("vgg_flower", "flowers102"),
        ("Oxford-IIIT-Pet", "oxfordiiitpet"),
        ("cars", "stanfordcars"),
    ],
)
def test_spellings_of_names(given, name):
    assert dataset_name(given) == name


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match=r"no dataset .Food11.; did you mean .food101."):
        TorchvisionSource("Food11")
    with pytest.raises(UserError, match="available: CIFAR10, CIFAR100, MNIST"):
        TorchvisionSource("ImageNet-21k")
