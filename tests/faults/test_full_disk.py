"""A disk that becomes full at a random moment: one clear error, nothing lost, and a normal continuation once there is space."""

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.engine.train.world import load
from tests.faults.children import Children, assert_same_training, check_whole, evaluated, last_step, one_clear_line

SMALL = ("method.experts=2", "train.steps=2", "train.checkpoint_every=1", "train.valid_every=2", "train.valid_episodes=1")
SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small disk."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def fill(disk: Path, free: int) -> Path:
    """Write a file that leaves `free` bytes."""
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - free)))
    return filler


def used(disk: Path, work: Callable[[], object]) -> int:
    before = shutil.disk_usage(disk).free
    work()
    return before - shutil.disk_usage(disk).free


def squeeze(disk: Path, children: Children, args: list[str], need: int, times: int, made: Path, after: Callable[[bool], None]) -> int:
    """Run the command several times with too little space, each time followed by enough; return the number of failures."""
    dice, failed = random.Random(len(args)), 0
    for _ in range(times):
        filler = fill(disk, dice.randrange(0, need))
        answer = children.smat(disk, *args)
        filler.unlink()
        if answer["status"] != 0:
            failed += 1
            line = one_clear_line(answer)
            assert "space" in line or "room" in line, line
            check_whole(disk)
            after(False)
            children.done(disk, *args)
        after(True)
        if made.is_dir():
            shutil.rmtree(made)
        else:
            made.unlink()
    return failed


def test_train_and_eval(disk: Path, children: Children) -> None:
    load(disk)
    train = ["train", "recipe.yaml", "--resume", *SMALL]
    need = used(disk, lambda: children.done(disk, *train, "run=whole"))
    step = [-1]

    def after(finished: bool) -> None:
        now = last_step(disk / "broken") if (disk / "broken").exists() else -1
        assert now >= step[0]
        step[0] = -1 if finished else now
        if finished:
            assert_same_training(disk / "whole", disk / "broken")

    assert squeeze(disk, children, [*train, "run=broken"], need, 4, disk / "broken", after) >= 1

    shutil.copytree(disk / "whole", disk / "broken")
    test = ["--adapt", "proto", "--episodes", "2"]
    need = used(disk, lambda: children.done(disk, "eval", "whole", *test))

    def same(finished: bool) -> None:
        assert not finished or evaluated(disk / "broken") == evaluated(disk / "whole")

    assert squeeze(disk, children, ["eval", "broken", *test], need, 3, disk / "broken" / "eval", same) >= 1


def test_prepare(disk: Path, tmp_path: Path, children: Children) -> None:
    rng = np.random.default_rng(0)
    for c in range(4):
        (tmp_path / "birds" / f"class{c}").mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "birds" / f"class{c}" / f"{i}.png")
    args = ["data", "prepare", "folder", str(tmp_path / "birds"), "--size", "64", "--workers", "1"]
    need = used(disk, lambda: children.done(disk, *args, "--out", "whole"))

    def after(finished: bool) -> None:
        store = disk / "broken" / "birds.h5"
        assert store.exists() == finished
        assert not finished or store.read_bytes() == (disk / "whole" / "birds.h5").read_bytes()

    assert squeeze(disk, children, [*args, "--out", "broken"], need, 5, disk / "broken", after) >= 2


@pytest.mark.parametrize("largest", [300, 20_000])
def test_files_that_may_not_grow(tmp_path: Path, children: Children, largest: int) -> None:
    """The same with a limit on file sizes instead of a small disk: a run with a checkpoint keeps it."""
    load(tmp_path)
    train = ["train", "recipe.yaml", "--resume", *SMALL]
    children.smat(tmp_path, *train, "run=whole")
    assert children.smat(tmp_path, *train, "run=broken", die_at=36)["status"] == -9
    before = last_step(tmp_path / "broken")
    answer = children.smat(tmp_path, *train, "run=broken", largest=largest)
    assert answer["status"] != 0
    one_clear_line(answer)
    check_whole(tmp_path)
    assert last_step(tmp_path / "broken") >= before
    children.done(tmp_path, *train, "run=broken")
    assert_same_training(tmp_path / "whole", tmp_path / "broken")
