"""Fixed episode lists: round trip, hashes, and rejection of invalid files and other stores."""

import zipfile

import numpy as np
import pytest
import torch

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.lists import EpisodeList, ListSampler, choose, draw_list, file_hash, list_hash, read_list, write_list
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler, plan_digest
from smatcli.errors import UserError
from tests.data.episodes.test_sampler import flat
from tests.data.fakes import FakeStore


class Named(FakeStore):
    """A store in memory with a content hash."""

    def __init__(self, counts, content: str = "abc", **more) -> None:
        super().__init__(counts, **more)
        self.content_hash = content


@pytest.fixture
def sampler() -> EpisodeSampler:
    stores = {"birds": Named([12, 30, 8, 9, 40, 11] * 2), "cars": Named([20] * 9, "def")}
    return EpisodeSampler(stores, "all", EpisodeConfig(kind="variable"), 4)


def test_written_and_read_episodes_are_those_of_the_sampler(sampler, tmp_path):
    lists = draw_list(sampler, 20)
    assert write_list(tmp_path / "l.npz", lists) == file_hash(lists)
    found = read_list(tmp_path / "l.npz")
    assert list(found) == ["birds", "cars"]
    for name, made in found.items():
        assert (made.split, made.protocol, made.seed, made.content) == ("all", "variable", 4, sampler.stores[name].content_hash)
        alone = EpisodeSampler({name: sampler.stores[name]}, "all", sampler.config, 4)
        assert [flat(made.plan(i)) for i in range(20)] == [flat(alone.plan(i)) for i in range(20)]
        assert made.hash == lists[name].hash
        assert all(part.dtype == np.int64 for part in (made.plan(3).support, made.plan(3).query_labels))
        with pytest.raises(UserError, match="episode 20 does not exist; the list has 20 episodes"):
            made.plan(20)


def test_writing_twice_gives_equal_bytes(sampler, tmp_path):
    for name in ("a.npz", "b.npz"):
        write_list(tmp_path / name, draw_list(sampler, 5))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_hash_identifies_the_episodes(sampler):
    made = draw_list(sampler, 6)["birds"]
    digests = [plan_digest(made.plan(i)) for i in range(6)]
    assert made.hash == list_hash("birds", "abc", digests)
    others = [
        list_hash("cars", "abc", digests),
        list_hash("birds", "abd", digests),
        list_hash("birds", "abc", digests[:5]),
        list_hash("birds", "abc", digests[::-1]),
        draw_list(EpisodeSampler(sampler.stores, "all", sampler.config, 5), 6)["birds"].hash,
    ]
    assert len({made.hash, *others}) == 6
    plan = made.plan(0)
    turned = type(plan)(**{**vars(plan), "support": plan.support[::-1]})
    assert plan_digest(turned) != plan_digest(plan)
    renamed = type(plan)(**{**vars(plan), "index": 99, "dataset": "x"})
    assert plan_digest(renamed) == plan_digest(plan)


def test_a_loader_returns_the_same_images_from_the_list(sampler):
    store = sampler.stores["cars"]
    made = draw_list(sampler, 4)["cars"]
    drawn = EpisodeSampler({"cars": store}, "all", sampler.config, 4)
    for one, other in zip(EpisodeLoader(ListSampler(store, made), range(4)), EpisodeLoader(drawn, range(4)), strict=True):
        assert torch.equal(one.support.images, other.support.images)
        assert torch.equal(one.query_images, other.query_images)
        assert torch.equal(one.support.labels, other.support.labels)
        assert torch.equal(one.query_labels, other.query_labels)
        assert (one.dataset, one.index, one.seed) == (other.dataset, other.index, other.seed)


def test_another_store_is_refused(sampler):
    made = draw_list(sampler, 3)["cars"]
    with pytest.raises(UserError, match=r"cars: the list .* drawn from a store with other content \(sha256 def, this store has xyz\)"):
        ListSampler(Named([20] * 9, "xyz"), made)
    with pytest.raises(UserError, match="has images or classes that are not in the store"):
        ListSampler(Named([3] * 9, "def"), made)


def test_the_nearest_dataset_is_named(sampler, tmp_path):
    with pytest.raises(UserError, match=r"f\.npz: no episodes of bird; did you mean 'birds'\? \(available: birds, cars\)"):
        choose(draw_list(sampler, 1), "bird", "f.npz")
    with pytest.raises(UserError, match=r"ends in \.npz"):
        write_list(tmp_path / "l.h5", {})


def rewrite(path, change) -> None:
    with np.load(path) as data:
        arrays = dict(data)
    change(arrays)
    np.savez_compressed(path, **arrays)


def swap(arrays) -> None:
    arrays["0/rows"][[0, 1]] = arrays["0/rows"][[1, 0]]


def shorten(arrays) -> None:
    arrays["0/rows"] = arrays["0/rows"][:-1]


def drop(arrays) -> None:
    del arrays["1/ways"]


def negative(arrays) -> None:
    arrays["0/classes"][0] = -1


def version(arrays) -> None:
    arrays["head"] = np.frombuffer(bytes(arrays["head"]).replace(b"episodes-1", b"episodes-9"), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "do not match the hash"),
        (shorten, "are inconsistent"),
        (drop, "damaged list of episodes"),
        (negative, "are inconsistent"),
        (version, "format 'smat-episodes-9'"),
        (lambda arrays: arrays.pop("head"), "is not a list of episodes"),
    ],
)
def test_changed_lists_are_refused(sampler, tmp_path, change, message):
    path = tmp_path / "l.npz"
    write_list(path, draw_list(sampler, 3))
    rewrite(path, change)
    with pytest.raises(UserError, match=message) as error:
        read_list(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_lists_are_refused(sampler, tmp_path):
    path = tmp_path / "l.npz"
    write_list(path, draw_list(sampler, 3))
    whole = path.read_bytes()
    cases = {
        b"": "is not a list of episodes",
        b"hello": "is not a list of episodes",
        b"version https://git-lfs.github.com/spec/v1\n": "git-lfs pointer",
        whole[: len(whole) // 2]: "damaged",
        whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]: "damaged",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_list(path)
    with pytest.raises(UserError, match="list of episodes does not exist"):
        read_list(tmp_path / "nothing.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("note.txt", "no arrays")
    with pytest.raises(UserError, match="is not a list of episodes"):
        read_list(path)


def test_no_pickle_is_read(sampler, tmp_path):
    path = tmp_path / "l.npz"
    np.savez(path, head=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        read_list(path)


def test_an_empty_list_is_a_list():
    made = EpisodeList.of([], "birds", "test", "5w5s10q", 0, "abc")
    assert len(made) == 0
    assert len(made.hash) == 64
