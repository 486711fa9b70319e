"""Files of earlier versions still load and can be continued: one tiny store, checkpoint and result of every format.

`run-format2` is a training (3 of 4 steps, then SIGTERM) and its meta-test, by the first version that wrote checkpoint format 2. Never
rewrite these files; add new ones.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from smatcli.config import load_recipe
from smatcli.data.stores.store import Store
from smatcli.data.stores.verify import verify_store
from smatcli.engine.evaluate.evaluation import EvalOptions, evaluate
from smatcli.engine.loop.loading import load_method
from smatcli.engine.train.trainer import train
from smatcli.runs.checkpoint import FORMAT, load_checkpoint
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.results import read_records, read_summary
from tests.engine.train.world import write_stores

HERE = Path(__file__).parent
RUNS = [2]


def test_every_format_has_its_run() -> None:
    assert RUNS[-1] == FORMAT, "keep a run of the new checkpoint format here"
    assert sorted(p.name for p in HERE.glob("run-format*")) == [f"run-format{n}" for n in RUNS]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    write_stores(tmp_path / "data")
    for n in RUNS:
        shutil.copytree(HERE / f"run-format{n}", tmp_path / f"run-format{n}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", RUNS)
def test_a_checkpoint_loads(number: int) -> None:
    found = load_checkpoint(HERE / f"run-format{number}" / "checkpoints" / "last")
    assert found.state["step"] == 3
    assert found.state["best"]["step"] >= -1
    assert found.model["theta_delta"].shape == (2480,)
    assert found.model["log_alpha"].shape == (2, 2480)
    load_method(HERE / f"run-format{number}", "last")


@pytest.mark.parametrize("number", RUNS)
def test_a_run_goes_on(world: Path, number: int) -> None:
    run = train(load_recipe(HERE / "recipe.yaml", [f"run=run-format{number}"]), SilentReporter(), resume=True)
    assert [r["step"] for r in run.records("train")] == [1, 2, 3, 4]
    assert load_checkpoint(run.checkpoints / "last").state["step"] == 4


@pytest.mark.parametrize("number", RUNS)
def test_results_load_and_go_on(world: Path, number: int) -> None:
    folder = world / f"run-format{number}" / "eval" / "proto-3w2s2q-test-last"
    before, rows = read_records(folder / "results.h5"), read_summary(folder / "summary.csv")
    assert [(r.dataset, r.domain, r.episodes) for r in rows] == [("a", "ID", 2), ("b", "ID", 2), ("c", "OOD", 2)]
    assert [r.mean for r in rows] == [pytest.approx(before[r.dataset]["accuracy"].mean()) for r in rows]
    (again,) = evaluate(world / f"run-format{number}", ["proto"], episodes=3, options=EvalOptions("last"))
    after = read_records(again / "results.h5")
    for name, records in before.items():
        assert after[name]["index"].tolist() == [0, 1, 2]
        assert after[name]["accuracy"][:2].tolist() == records["accuracy"].tolist()
        assert after[name]["seconds"][:2].tolist() == records["seconds"].tolist()  # kept, not evaluated again


@pytest.mark.parametrize("name", ["format2", "format2-encoded"])
def test_stores_load(name: str) -> None:
    store = Store.open(HERE / f"{name}.h5")
    assert verify_store(store.path) is None
    assert store.class_names == ["ant", "été", "鳥"]
    assert store.counts.tolist() == [3, 2, 4]
    assert store.class_split.tolist() == [0, 2, 1]
    expected = [np.full((8, 8, 3), (10 * i, 255 - 10 * i, i * i), np.uint8) for i in range(9)]
    images = store.images
    assert np.array_equal(np.stack([np.asarray(images[i]) for i in range(9)]), np.stack(expected))
