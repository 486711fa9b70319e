"""Searches over binary scores in a meta-test: exhaustive compared with flip, and flip's noise derived from the episode."""

from pathlib import Path

import numpy as np
import pytest

from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.errors import UserError
from smatcli.runs.results import Records, read_records
from tests.engine.evaluate.evalruns import NO_CLOCK, FakeMethod, make_run, serve


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    serve(monkeypatch, FakeMethod())
    return make_run(tmp_path)


def results(folder: Path) -> dict[str, Records]:
    return read_records(folder / "results.h5")


@pytest.mark.parametrize("loss", ["support", "augmented"])
def test_exhaustive_tells_what_flip_finds_on_the_same_episodes(run: Path, loss: str) -> None:
    asked = [f"adapt.{name}.{key}" for name in ("flip", "exhaustive") for key in (f"loss={loss}", "rounds=1", "rho=0.01")]
    flip, every = evaluate(run, ["flip", "exhaustive"], overrides=asked)
    assert every.name == f"exhaustive-rounds1-rho0.01{'-augmented' if loss == 'augmented' else ''}-4w3s6q-test"
    for name, one in results(flip).items():
        other = results(every)[name]
        np.testing.assert_allclose(other["flip_loss"], one["loss"], atol=1e-6)
        np.testing.assert_allclose(other["flip_gap"], one["loss"] - other["loss"], atol=1e-6)
        np.testing.assert_array_equal(other["flip_evaluations"], one["evaluations"])
        np.testing.assert_array_equal(other["loss_start"], one["loss_start"])
        assert (other["loss"] <= np.minimum(one["loss"], other["loss_binary"]) + 1e-6).all()
        assert set(other["evaluations"]) == {2**2 + 1}


def test_augmented_copies_belong_to_the_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, FakeMethod())
    asked = ["adapt.flip.loss=augmented", "adapt.flip.copies=2"]
    (whole,) = evaluate(make_run(tmp_path, name="one"), ["flip"], overrides=asked)
    assert whole.name == "flip-augmented-copies2-4w3s6q-test"
    other = make_run(tmp_path, name="other")
    evaluate(other, ["flip"], ["farther"], episodes=2, overrides=asked)  # another order, in two runs
    (parts,) = evaluate(other, ["flip"], overrides=asked)
    for name, records in results(whole).items():
        for key in records.keys() - NO_CLOCK:
            np.testing.assert_array_equal(results(parts)[name][key], records[key])
        assert len(set(records["loss_start"])) == len(records["loss_start"])


def test_too_many_experts_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"name": "smat", "experts": 16})
    with pytest.raises(UserError, match="at most 8; this run has 16: use --adapt flip"):
        evaluate(run, ["proto", "exhaustive"])
    assert not (run / "eval").exists()
    with pytest.raises(UserError, match="exhaustive needs a method with experts"):
        evaluate(make_run(tmp_path, {"name": "pmf"}, "pmf"), ["exhaustive"])
