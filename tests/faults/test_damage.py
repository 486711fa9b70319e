"""Flip bytes and truncate files at random places: commands continue correctly or fail with one clear error, never with wrong results."""

import random
import shutil
from pathlib import Path

import pytest

from tests.engine.train.world import load
from tests.faults.children import Children, assert_same_training, evaluated, last_step, refused_or

SMALL = ("method.experts=2", "train.steps=3", "train.checkpoint_every=1", "train.valid_every=2", "train.valid_episodes=1")
TRAIN = ("train", "recipe.yaml", "--resume", *SMALL)
EVAL = ("--adapt", "proto", "--episodes", "2", "--which", "last")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, children: Children) -> Path:
    """Prepare two runs: `whole`, trained and evaluated, and `half`, killed during training, which tests damage."""
    root = tmp_path_factory.mktemp("damage")
    load(root)
    children.done(root, *TRAIN, "run=whole")
    children.done(root, "eval", "whole", *EVAL)
    for _ in range(10):
        if last_step(root / "half") >= 2:
            break
        assert children.smat(root, *TRAIN, "run=half", die_at=34)["status"] == -9
    assert last_step(root / "half") == 2
    assert (root / "half" / "checkpoints" / "last.old").is_dir()
    return root


def damage(file: Path, dice: random.Random) -> None:
    """Flip a byte, cut the end off, or overwrite a stretch with zeros."""
    data = bytearray(file.read_bytes())
    where = dice.randrange(len(data))
    kind = dice.choice(("flip", "flip", "cut", "zeros"))
    if kind == "flip":
        data[where] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del data[where:]
    else:
        data[where : where + 512] = bytes(len(data[where : where + 512]))
    file.write_bytes(data)


def test_checkpoints(world: Path, children: Children) -> None:
    """If `last` is damaged, its predecessor is used, and training ends with the same result, bit for bit."""
    dice, outcomes = random.Random(0), []
    for _ in range(7):
        run = world / "broken"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(world / "half", run)
        files = sorted(p for p in (run / "checkpoints").glob("last*/*") if p.is_file())
        damage(dice.choice(files), dice)
        answer = children.smat(world, *TRAIN, "run=broken")
        outcomes.append(refused_or(answer))
        if outcomes[-1]:
            assert_same_training(world / "whole", run)
    assert any(outcomes), "no damage was survived"


def test_every_checkpoint_damaged_is_one_clear_error(world: Path, children: Children) -> None:
    run = world / "lost"
    shutil.copytree(world / "half", run)
    for file in (run / "checkpoints").glob("last*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    answer = children.smat(world, *TRAIN, "run=lost")
    assert not refused_or(answer)
    assert "is damaged" in answer["stderr"]


def test_a_damaged_checkpoint_is_never_evaluated_as_another(world: Path, children: Children) -> None:
    dice = random.Random(1)
    for _ in range(4):
        run = world / "measured"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(world / "whole", run)
        shutil.rmtree(run / "eval")
        damage(dice.choice(sorted((run / "checkpoints" / "last").iterdir())), dice)
        if refused_or(children.smat(world, "eval", "measured", *EVAL)):
            assert evaluated(run) == evaluated(world / "whole")
        else:
            assert not list(run.glob("eval/*/results.h5"))


def test_results(world: Path, children: Children) -> None:
    """A second evaluation of damaged results gives the same numbers, or an error that names the file."""
    dice, names = random.Random(2), ("results.h5", "results.h5", "results.h5", "summary.csv", "settings.json")
    for _ in range(8):
        run = world / "results"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(world / "whole", run)
        (folder,) = (run / "eval").iterdir()
        file = folder / dice.choice(names)
        damage(file, dice)
        if refused_or(children.smat(world, "eval", "results", *EVAL)):
            assert evaluated(run) == evaluated(world / "whole")


def test_stores(world: Path, children: Children) -> None:
    """One wrong bit of one image is an error; nothing is trained or measured on it."""
    dice = random.Random(3)
    whole = {p: p.read_bytes() for p in world.glob("*.h5")}
    try:
        for i in range(7):
            file = dice.choice(sorted(whole))
            damage(file, dice)
            run = world / f"store{i}"
            shutil.copytree(world / "half", run)
            if refused_or(children.smat(world, *TRAIN, f"run=store{i}")):
                assert_same_training(world / "whole", run)
            if refused_or(children.smat(world, "eval", f"store{i}", *EVAL)):
                assert file.read_bytes() == whole[file] or evaluated(run) == evaluated(world / "whole")
            shutil.rmtree(run)
            file.write_bytes(whole[file])
    finally:
        for file, data in whole.items():
            file.write_bytes(data)
