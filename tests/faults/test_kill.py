"""kill -9 at random moments and at random changes of the disk: the same command then ends like an uninterrupted run."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smatcli.data.stores.store import Store
from smatcli.data.stores.verify import verify_store
from tests.engine.train.world import load
from tests.faults.children import Children, assert_same_training, check_whole, evaluated, last_step

SMALL = ("method.experts=2", "train.checkpoint_every=1", "train.valid_every=2", "train.valid_episodes=1")
KILLS = {"train": 14, "eval": 12, "prepare": 20, "sweep": 6}  # 52 in all


@pytest.fixture
def world(tmp_path: Path) -> Path:
    load(tmp_path)
    return tmp_path


def torment(
    children: Children, cwd: Path, args: list[str], kills: int, whole: dict[str, float], made: Path, after: Callable[[bool], None]
) -> None:
    """Kill children of one command line until `kills` died, half of them by the clock and half before a change of the disk; finish.

    `whole` is the answer of an unbroken child, `made` what is removed before a new start, `after(finished)` checks what is on the disk.
    """
    dice, died, finished = random.Random(f"{args}"), 0, False
    for attempt in range(6 * kills):
        if died >= kills:
            break
        if finished:
            shutil.rmtree(made)
        if attempt % 2:
            answer = children.smat(cwd, *args, kill_after=dice.uniform(0.01, 0.9 * whole["seconds"]))
        else:
            answer = children.smat(cwd, *args, die_at=dice.randint(1, int(whole["changes"])))
        assert answer["status"] in (0, -9), answer["stderr"]
        finished = answer["status"] == 0
        died += not finished
        check_whole(cwd)
        after(finished)
    assert died >= kills
    if not finished:
        children.done(cwd, *args)
    after(True)


def test_train(world: Path, children: Children) -> None:
    args = ["train", "recipe.yaml", "--resume", *SMALL, "train.steps=4"]
    whole = children.done(world, *args, "run=whole")
    step = [-1]

    def after(finished: bool) -> None:
        now = last_step(world / "broken")
        assert now >= step[0], "a checkpoint was lost"
        step[0] = -1 if finished else now
        if finished:
            assert_same_training(world / "whole", world / "broken")

    torment(children, world, [*args, "run=broken"], KILLS["train"], whole, world / "broken", after)


def test_eval(world: Path, children: Children) -> None:
    for name in ("whole", "broken"):
        children.done(world, "train", "recipe.yaml", *SMALL, "train.steps=1", f"run={name}")
    args = ["--adapt", "proto", "--adapt", "flip", "--episodes", "2"]
    whole = children.done(world, "eval", "whole", *args)

    def after(finished: bool) -> None:
        if finished:
            assert evaluated(world / "broken") == evaluated(world / "whole")

    torment(children, world, ["eval", "broken", *args], KILLS["eval"], whole, world / "broken" / "eval", after)


def test_prepare(tmp_path: Path, children: Children) -> None:
    rng = np.random.default_rng(0)
    for c in range(5):
        (tmp_path / "birds" / f"class{c}").mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "birds" / f"class{c}" / f"{i}.png")
    args = ["data", "prepare", "folder", "birds", "--size", "24", "--workers", "1"]
    whole = children.done(tmp_path, *args, "--out", "whole")
    other = children.done(tmp_path, *args, "--out", "older", "--seed", "1")
    assert other["status"] == 0
    (tmp_path / "broken").mkdir()

    def after(finished: bool) -> None:
        store = tmp_path / "broken" / "birds.h5"
        assert store.exists() or not finished
        if store.exists():
            assert verify_store(store) is None
        if finished:
            assert store.read_bytes() == (tmp_path / "whole" / "birds.h5").read_bytes()
            assert [p.name for p in store.parent.iterdir()] == ["birds.h5"]

    torment(children, tmp_path, [*args, "--out", "broken"], KILLS["prepare"] // 2, whole, tmp_path / "broken", after)

    # Replacing an older store: that one stays until the new one is whole.
    (tmp_path / "replaced").mkdir()
    shutil.copy(tmp_path / "older" / "birds.h5", tmp_path / "replaced" / "birds.h5")
    known = {Store.open(tmp_path / name / "birds.h5").content_hash for name in ("older", "whole")}
    dice = random.Random(1)
    died = 0
    while died < KILLS["prepare"] // 2:
        died += (
            children.smat(tmp_path, *args, "--replace", "--out", "replaced", die_at=dice.randint(1, int(whole["changes"])))["status"] == -9
        )
        assert verify_store(tmp_path / "replaced" / "birds.h5") is None
        assert Store.open(tmp_path / "replaced" / "birds.h5").content_hash in known
    children.done(tmp_path, *args, "--replace", "--out", "replaced")
    assert (tmp_path / "replaced" / "birds.h5").read_bytes() == (tmp_path / "whole" / "birds.h5").read_bytes()


def test_sweep(world: Path, children: Children) -> None:
    args = ["sweep", "recipe.yaml", "--grid", "method.experts=1,2", *SMALL[1:], "train.steps=2", "eval.episodes=2"]
    whole = children.done(world, *args, "--out", "whole")
    assert (world / "whole" / "sweep.csv").exists()

    def after(finished: bool) -> None:
        points = sorted(p.parent.name for p in (world / "whole").glob("*/run.json"))
        assert len(points) == 2
        for name in points if finished else []:
            assert_same_training(world / "whole" / name, world / "broken" / name)
            assert evaluated(world / "broken" / name) == evaluated(world / "whole" / name)

    torment(children, world, [*args, "--out", "broken"], KILLS["sweep"], whole, world / "broken", after)
