"""Splits, the images that the network receives, and the scores, compared with brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch

from smatcli.config.tune import TuneRecipe
from smatcli.data.augment import normalise
from smatcli.engine.tune.task import View, auc, draw_split, in_order, network_input, open_task, scores, shuffled
from smatcli.errors import UserError
from tests.tuning.world import load


def recipe_of(root: Path, *overrides: str) -> TuneRecipe:
    made = load(root, *overrides).recipe
    assert isinstance(made, TuneRecipe)
    return made


def test_drawn_splits_are_disjoint_in_proportion_and_counted(tmp_path):
    task = open_task(recipe_of(tmp_path))
    rows = task.rows
    assert [len(rows[part]) for part in ("train", "valid", "test")] == [20, 10, 26]
    assert sorted(np.concatenate(list(rows.values()))) == list(range(56))
    for part in rows.values():
        share = np.bincount(task.labels[part], minlength=4) / len(part)
        assert np.abs(share - np.array([8, 12, 16, 20]) / 56).max() < 2 / len(part)
    again, other = draw_split(task.store, 20, 10, None, 0), draw_split(task.store, 20, 10, 5, 1)
    assert all(np.array_equal(again[part], rows[part]) for part in rows)
    assert len(other["test"]) == 5
    assert not np.array_equal(other["train"], rows["train"])


def test_the_split_of_a_store(tmp_path):
    recipe = recipe_of(tmp_path, "data.dataset=b")
    task = open_task(recipe)
    assert [len(task.rows[part]) for part in ("train", "valid", "test")] == [20, 12, 24]
    assert list(task.rows["train"][:6]) == [0, 1, 2, 3, 4, 8]
    assert np.array_equal(np.sort(task.fitted(recipe)), np.sort(np.concatenate([task.rows["train"], task.rows["valid"]])))
    assert len(open_task(recipe_of(tmp_path, "data.dataset=b", "data.split=counted")).rows["valid"]) == 10


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.train=50"], r"has 56 images, 50 \+ 10 to train and validate leave none"),
        (["data.split=store"], "is split by class, not by image"),
        (["data.dataset=c", "tune.search={lr: [0.1]}"], "has no validation images, which tune.search.lr needs"),
        (["data.dataset=c", "tune.select=best", "data.fit=train"], "has no validation images, which tune.select best needs"),
        (["data.dataset=aa"], "no dataset 'aa'"),
    ],
)
def test_tasks_that_cannot_be(tmp_path, overrides, words):
    load(tmp_path)
    with pytest.raises(UserError, match=words):
        open_task(
            recipe_of(
                tmp_path,
                *[
                    o.replace("data.split=store", "data={root: ROOT, dataset: a, split: store}").replace("ROOT", str(tmp_path))
                    for o in overrides
                ],
            )
        )


def test_views_from_memory_and_from_disk_are_equal(tmp_path):
    task = open_task(recipe_of(tmp_path))
    chunks = shuffled(20, 6, 0, 3)
    assert sorted(np.concatenate(chunks)) == list(range(20))
    views = [View(task, task.rows["train"], torch.device("cpu"), keep) for keep in (True, False)]
    for (i, a), (j, b) in zip(*(view.batches(chunks) for view in views), strict=True):
        assert torch.equal(i, j)
        assert torch.equal(a, b)
        assert np.array_equal(a[0].numpy(), task.store.images[task.rows["train"][int(i[0])]])


def test_batches_are_counted_and_never_of_one_image():
    assert [list(map(int, c)) for c in shuffled(9, 4, 1, 2)] == [list(map(int, c)) for c in shuffled(9, 4, 1, 2)]
    assert [len(c) for c in shuffled(9, 4, 0, 0)] == [4, 5]
    assert [len(c) for c in shuffled(10, 4, 0, 0)] == [4, 4, 2]
    assert [len(c) for c in in_order(5, 2)] == [2, 2, 1]


def test_what_the_network_sees(tmp_path):
    raw = torch.randint(0, 256, (2, 24, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain = recipe_of(tmp_path, "backbone.image_size=24")
    assert torch.equal(network_input(raw, plain), normalise(raw, 24))
    half = recipe_of(tmp_path, "backbone.image_size=24", "tune.normalise=half")
    want = raw.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(network_input(raw, half), want, atol=1e-5, rtol=1e-5)
    centre = recipe_of(tmp_path, "backbone.image_size=16", "tune.centre=0.666666")
    assert torch.equal(network_input(raw, centre), normalise(raw[:, 4:20, 4:20], 16))
    assert torch.equal(network_input(raw, centre, torch.Generator()), normalise(raw, 16))  # training: all of it
    moved = recipe_of(tmp_path, "backbone.image_size=16", "tune.augment={crop_scale: [0.1, 1.0], flip: 0.5}")
    one, two = (network_input(raw, moved, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert one.shape == (2, 3, 16, 16)
    assert not torch.equal(one, two)


def test_scores_by_hand():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7]]))
    found = scores(logits, np.array([0, 1, 1, 2]))
    assert found["accuracy"] == 0.75
    assert found["per-class"] == pytest.approx((1 + 0.5 + 1) / 3)


@pytest.mark.parametrize("classes", [2, 4])
def test_auc_is_the_share_of_pairs_in_order(classes):
    rng = np.random.default_rng(classes)
    logits, labels = np.repeat(rng.normal(0, 2, (20, classes)), 3, 0), rng.integers(0, classes, 60)  # every row thrice: ties
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = []
    for c in [1] if classes == 2 else range(classes):
        ahead, behind = chances[labels == c, c], chances[labels != c, c]
        difference = ahead[:, None] - behind[None]
        found.append(np.mean(np.where(np.abs(difference) < 1e-15, 0.5, difference > 0)))
    assert auc(logits, labels) == pytest.approx(np.mean(found), abs=1e-12)


def test_auc_of_one_class_is_unknown():
    assert np.isnan(auc(np.zeros((3, 2)), np.ones(3, int)))
