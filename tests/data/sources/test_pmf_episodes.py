"""The source `pmf-episodes`: PMF's fixed validation episodes as a store and a list, compared with the file itself."""

import shutil

import h5py
import numpy as np
import pytest

from smatcli.data.episodes.lists import ListSampler, read_list, write_list
from smatcli.data.sources.pmf_episodes import PmfEpisodesSource
from smatcli.data.stores.store import Store, write_store
from smatcli.errors import UserError
from tests.data.imagefiles import LFS
from tests.data.mdfiles import FIXTURE

FILE = FIXTURE / "pmf_h5" / "toy_shapes" / "val_ep2_img16.h5"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's


@pytest.fixture
def file(tmp_path):
    """A copy of the fixture, for tests that damage it."""
    return shutil.copy(FILE, tmp_path / "val_ep2_img16.h5")


def as_store(source, path):
    classes = [(c.name, 1, np.stack([source.read(image) for image in c.images])) for c in source.classes()]
    return Store.open(write_store(path, path.stem, 16, classes))


def test_list_of_the_store_gives_the_files_episodes(tmp_path):
    """Images, labels and order of the episodes survive writing and reading a list; the order within a class is that of the file."""
    source = PmfEpisodesSource(FILE)
    assert (source.kind, source.name, len(source), source.ontology) == ("pmf-episodes", "toy_shapes_val_ep2_img16", 2, None)
    store = as_store(source, tmp_path / "toy.h5")
    write_list(tmp_path / "toy.npz", {"toy": source.episodes(store)})
    episodes = read_list(tmp_path / "toy.npz")["toy"]
    assert len(episodes) == 2
    assert (episodes.split, episodes.protocol) == ("valid", "pmf-validation")
    sampler = ListSampler(store, episodes)
    with h5py.File(FILE, locking=False) as file:
        for index in range(2):
            plan = sampler.plan(index)
            sides = ((plan.support, plan.support_labels, "sx", "sy"), (plan.query, plan.query_labels, "x", "y"))
            for rows, labels, images, theirs in sides:
                order = np.argsort(file[f"{index}/{theirs}"][()], kind="stable")
                assert labels.tolist() == file[f"{index}/{theirs}"][()][order].tolist()
                normalised = ((store.images[rows] / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
                assert np.abs(normalised - file[f"{index}/{images}"][()][order]).max() < 1e-5


def test_classes_are_those_of_episodes():
    source = PmfEpisodesSource(FILE)
    names = [f"episode {e:03d} class {c:02d}" for e in range(2) for c in range(2)]
    assert [(c.name, c.split, len(c.images)) for c in source.classes()] == [
        (n, "valid", k) for n, k in zip(names, [4, 5, 3, 4], strict=True)
    ]
    assert source.describe(source.classes()[2].images[1]) == "val_ep2_img16.h5, group 1, x, row 0"


def test_a_store_of_something_else_is_refused(tmp_path):
    images = np.zeros((4, 16, 16, 3), np.uint8)
    store = Store.open(write_store(tmp_path / "other.h5", "other", 16, [("a", 1, images), ("b", 1, images)]))
    with pytest.raises(
        UserError, match=r"other\.h5: is not the store of .*; prepare it with `smat data prepare pmf-episodes .*val_ep2_img16\.h5"
    ):
        PmfEpisodesSource(FILE).episodes(store)


def replace(key, value):
    def change(path):
        with h5py.File(path, "r+") as file:
            del file[key]
            if value is not None:
                file[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace("1/sx", None), "group 1: has no field 'sx'"),
        (replace("1/y", np.zeros(4)), r"group 1: 'y' is float64 \[4\], but 'x' has 4 images"),
        (replace("1/y", np.array([0, 0, 1])), r"group 1: 'y' is int64 \[3\], but 'x' has 4 images"),
        (replace("1/y", np.array([0, 0, 0, 0])), "group 1: the labels of 'sy' and 'y' are not the same"),
        (replace("1/sy", np.array([1, 1, 2**60])), "group 1: the labels of 'sy' and 'y' are not the same"),
        (replace("0/x", np.zeros((4, 3, 8, 8), np.float32)), "group 0: 'sx' and 'x' have images of different sizes"),
        (replace("0/x", np.zeros((4, 3, 16, 16), np.uint8)), r"group 0: 'x' is uint8 \[4, 3, 16, 16\], expected floating-point"),
        (replace("0", None), "has 1 groups, but no group 0"),
        (lambda path: path.write_bytes(LFS), "byte 0: is a git-lfs pointer"),
        (lambda path: path.write_bytes(path.read_bytes()[:4000]), "truncated or damaged HDF5 file"),
        (lambda path: h5py.File(path, "w").close(), "has no episodes"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_files_without_valid_episodes(file, change, said):
    change(file)
    with pytest.raises(UserError, match=rf"val_ep2_img16\.h5.*{said}"):
        PmfEpisodesSource(file)


@pytest.mark.parametrize("value", [128.0, np.nan])
def test_another_normalisation(file, value):
    replace("0/sx", np.full((5, 3, 16, 16), value, np.float32))(file)
    source = PmfEpisodesSource(file)
    with pytest.raises(UserError, match="group 0: 'sx', row 0 is not within 0 to 255 after undoing ImageNet's normalisation"):
        source.read(source.classes()[0].images[0])
