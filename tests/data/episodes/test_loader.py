"""Loaders return the planned images in order, independently of the number of threads, and end their threads."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smatcli.config.schema import AugmentConfig, EpisodeConfig
from smatcli.data.augment import normalise
from smatcli.data.episodes.loader import BatchLoader, EpisodeLoader, gather, prefetched
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.store import Store, write_store
from smatcli.errors import SmatError, UserError
from tests.data.fakes import FakeStore

AUGMENT = AugmentConfig(crop_scale=(0.5, 1.0), flip=0.5, jitter=0.4, erase=0.5)
CONFIG = EpisodeConfig(ways=(2, 5), shots=(1, 3), queries=2)


def sampler(seed: int = 0, **stores: FakeStore) -> EpisodeSampler:
    return EpisodeSampler(stores or {"a": FakeStore([9] * 7), "b": FakeStore([6, 7] * 4)}, "all", CONFIG, seed)


def contents(loader: EpisodeLoader) -> list[tuple]:
    return [(e.dataset, e.index, e.support.ways, e.support.images, e.support.labels, e.query_images, e.query_labels) for e in loader]


def assert_same(one: list[tuple], two: list[tuple]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a[:3] == b[:3]
        assert all(torch.equal(x, y) for x, y in zip(a[3:], b[3:], strict=True))


def no_threads_left() -> bool:
    deadline = time.monotonic() + 5
    while any(t.name.startswith("smat-loader") for t in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_gather_takes_rows_in_any_order():
    images = FakeStore([50]).images
    rows = np.array([7, 3, 49, 3, 0])
    out = np.empty((5, 8, 8, 3), np.uint8)
    gather(images, rows, out)
    assert np.array_equal(out, images[rows])


def test_episodes_hold_the_planned_images():
    made = sampler()
    for episode, index in zip(EpisodeLoader(made, range(3, 15)), range(3, 15), strict=True):
        plan = made.plan(index)
        images = torch.from_numpy(made.stores[plan.dataset].images)
        assert (episode.dataset, episode.index, episode.seed, episode.support.ways) == (plan.dataset, index, 0, len(plan.classes))
        torch.testing.assert_close(episode.support.images, normalise(images[plan.support]))
        torch.testing.assert_close(episode.query_images, normalise(images[plan.query]))
        assert np.array_equal(episode.support.labels, plan.support_labels)
        assert np.array_equal(episode.query_labels, plan.query_labels)
        assert episode.support.labels.dtype == episode.query_labels.dtype == torch.int64


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_episodes_are_the_same_for_any_workers_and_after_a_resume(augment):
    plain = contents(EpisodeLoader(sampler(), range(12), augment=augment, prefetch=0))
    for workers, prefetch in ((1, 1), (1, 8), (3, 4), (4, 20)):
        assert_same(plain, contents(EpisodeLoader(sampler(), range(12), augment=augment, workers=workers, prefetch=prefetch)))
    assert_same(plain[5:], contents(EpisodeLoader(sampler(), range(5, 12), augment=augment)))
    other = contents(EpisodeLoader(sampler(seed=1), range(12), augment=augment))
    assert any(a[3].shape != b[3].shape or not torch.equal(a[3], b[3]) for a, b in zip(plain, other, strict=True))
    assert no_threads_left()


def test_two_passes_are_equal_and_have_a_length():
    loader = EpisodeLoader(sampler(), range(4), augment=AUGMENT)
    assert len(loader) == 4
    assert_same(contents(loader), contents(loader))


def test_stores_of_another_size_are_resized_with_antialias():
    made = sampler(small=FakeStore([9] * 7, size=6), large=FakeStore([9] * 7, size=20))
    for episode in EpisodeLoader(made, range(8), image_size=12):
        plan = made.plan(episode.index)
        raw = torch.from_numpy(made.stores[plan.dataset].images[plan.query]).permute(0, 3, 1, 2).float()
        expected = F.interpolate(raw, (12, 12), mode="bilinear", antialias=True)
        mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        torch.testing.assert_close(episode.query_images, (expected / 255 - mean) / std, atol=1e-4, rtol=0)
    assert all(e.query_images.shape[-2:] == (12, 12) for e in EpisodeLoader(made, range(4), image_size=12, augment=AUGMENT))


def test_a_real_store_gives_the_same_images(tmp_path):
    fake = FakeStore([9] * 6)
    blocks = [(f"c{i}", 0, fake.images[9 * i : 9 * i + 9]) for i in range(6)]
    store = Store.open(write_store(tmp_path / "toy.h5", "toy", 8, blocks))
    real, memory = sampler(toy=store), sampler(toy=fake)  # type: ignore[arg-type]
    assert_same(contents(EpisodeLoader(real, range(6), workers=2)), contents(EpisodeLoader(memory, range(6))))


def test_leaving_early_ends_the_threads():
    for stop_after in (0, 3):
        for done, _ in enumerate(EpisodeLoader(sampler(), itertools.count(), workers=3)):
            if done == stop_after:
                break
        assert no_threads_left()


def test_an_error_in_the_loop_ends_the_threads():
    def fail() -> None:
        for _ in EpisodeLoader(sampler(), itertools.count(), workers=2):
            raise RuntimeError("out of the loop")

    with pytest.raises(RuntimeError, match="out of the loop"):
        fail()
    assert no_threads_left()


class Broken(FakeStore):
    """A store whose images raise an error after the given number of accesses."""

    def __init__(self, good: int, error: Exception) -> None:
        super().__init__([9] * 7)
        self._pixels, self.good, self.error = self.images, good, error
        del self.__dict__["images"]

    def __getattr__(self, name: str) -> np.ndarray:
        if name != "images":
            raise AttributeError(name)
        self.good -= 1
        if self.good < 0:
            raise self.error
        return self._pixels


@pytest.mark.parametrize(("error", "kind"), [(OSError("disk gone"), SmatError), (UserError("toy.h5: damaged"), UserError)])
def test_an_error_of_a_worker_names_the_episode(error, kind):
    seen = []
    with pytest.raises(SmatError) as raised:
        for episode in EpisodeLoader(sampler(toy=Broken(3, error)), range(10, 20)):
            seen.append(episode.index)
    assert seen == [10, 11, 12]
    assert type(raised.value) is kind
    assert str(raised.value).startswith("toy episode 13 (seed 0): ")
    assert str(error) in str(raised.value)
    assert no_threads_left()


def test_mixup_is_refused_for_episodes():
    with pytest.raises(UserError, match="mixup"):
        EpisodeLoader(sampler(), range(2), augment=AugmentConfig(mixup=0.2))


def test_work_runs_ahead_by_the_given_number_at_most():
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item

    results = prefetched(work, itertools.count(), workers=2, ahead=3)
    assert next(results) == 0
    time.sleep(0.05)
    assert max(started) <= 3
    results.close()  # type: ignore[attr-defined]
    assert no_threads_left()


def batches(**changes) -> BatchLoader:
    stores = [FakeStore([10, 10]), FakeStore([7] * 3)]
    rows = [np.arange(0, 20, 2), np.arange(21)]
    labels = [rows[0] // 10, 2 + rows[1] // 7]
    return BatchLoader([s.images for s in stores], rows, labels, **{"batch_size": 8, "seed": 5, **changes})


def listed(loader: BatchLoader, k: int = 0, **more) -> list[tuple[bytes, int]]:
    return [(i.numpy().tobytes(), int(y)) for images, labels in loader.epoch(k, **more) for i, y in zip(images, labels, strict=True)]


def test_an_epoch_holds_every_image_at_most_once_with_its_label():
    first, second = FakeStore([10, 10]).images, FakeStore([7] * 3).images
    known = [(first[r].tobytes(), r // 10) for r in range(0, 20, 2)] + [(second[r].tobytes(), 2 + r // 7) for r in range(21)]
    loader = batches()
    assert (loader.samples, len(loader)) == (31, 3)
    seen = listed(loader)
    assert len(seen) == 24
    assert all(seen.count(one) <= known.count(one) for one in seen)
    assert [(len(i), i.dtype, y.dtype) for i, y in loader.epoch()] == [(8, torch.uint8, torch.int64)] * 3
    everything = batches(shuffle=False)
    assert len(everything) == 4
    assert listed(everything) == known


def test_the_order_depends_on_seed_and_epoch_alone():
    loader = batches()
    assert listed(loader, 1) == listed(batches(workers=3, prefetch=7), 1) == listed(batches(prefetch=0), 1)
    assert listed(loader, 0) != listed(loader, 1)
    assert listed(loader, 0) != listed(batches(seed=6), 0)
    assert listed(loader, 1, start=2) == listed(loader, 1)[16:]


def test_a_batch_larger_than_the_data_is_kept():
    assert len(listed(batches(batch_size=100))) == 31


def test_stores_of_different_sizes_share_a_batch():
    stores = [FakeStore([12], size=8), FakeStore([12], size=20)]
    arguments = ([s.images for s in stores], [np.arange(12)] * 2, [np.zeros(12, int), np.ones(12, int)], 24)
    with pytest.raises(UserError, match="8, 20 px"):
        BatchLoader(*arguments)
    ((images, labels),) = BatchLoader(*arguments, image_size=8, shuffle=False).epoch()
    assert torch.equal(images[:12], torch.from_numpy(stores[0].images))
    large = torch.from_numpy(stores[1].images).permute(0, 3, 1, 2).float()
    expected = F.interpolate(large, (8, 8), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(images[12:].float(), expected, atol=1.0, rtol=0)
    assert labels.tolist() == [0] * 12 + [1] * 12


def test_no_images_or_uneven_lists_are_refused():
    images = FakeStore([4]).images
    with pytest.raises(UserError, match="no images"):
        BatchLoader([images], [np.array([], int)], [np.array([], int)], 4)
    with pytest.raises(ValueError, match="equal length"):
        BatchLoader([images], [np.arange(4)], [np.arange(3)], 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_episodes():
    here = contents(EpisodeLoader(sampler(), range(6), augment=AUGMENT))
    there = contents(EpisodeLoader(sampler(), range(6), "cuda", augment=AUGMENT, workers=2))
    for a, b in zip(here, there, strict=True):
        assert a[:3] == b[:3]
        for x, y in zip(a[3:], b[3:], strict=True):
            assert y.is_cuda
            torch.testing.assert_close(y.cpu(), x, atol=1e-2, rtol=0)
