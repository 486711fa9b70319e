"""Meta-test and the questions it asks: the hash in every result, named protocols, fixed lists, folders of before there were hashes."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from smatcli.config.loader import vision
from smatcli.data.episodes.lists import draw_list, read_list, write_list
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.opening import open_stores
from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.errors import UserError
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.results import read_records, read_summary
from tests.engine.evaluate.evalruns import FakeMethod, make_run, serve


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> FakeMethod:
    made = FakeMethod()
    serve(monkeypatch, made)
    return made


def make_list(run: Path, path: Path, episodes: int = 5, names=("near", "far", "farther")) -> Path:
    """The recipe's own episodes as a list."""
    recipe = vision(RunDir.open(run).recipe)
    stores = open_stores(Path(recipe.data.root), names)
    splits = {name: "test" if name == "near" else "all" for name in names}
    write_list(path, draw_list(EpisodeSampler(stores, "test", recipe.eval.episode, 0, splits), episodes))  # type: ignore[union-attr]
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {row.dataset: row.list_hash for row in read_summary(folder / "summary.csv")}


def test_every_result_has_the_protocol_and_the_hash_of_its_list(run: Path, method: FakeMethod, tmp_path: Path) -> None:
    proto, flip = evaluate(run)
    lists = read_list(make_list(run, tmp_path / "l.npz"))
    expected = {name: made.hash for name, made in lists.items()}
    for folder in (proto, flip):
        assert hashes(folder) == expected
        with h5py.File(folder / "results.h5", "r") as file:
            assert {name: group.attrs["list_hash"] for name, group in file.items()} == expected
            assert {group.attrs["protocol"] for group in file.values()} == {"4w3s6q-test", "4w3s6q-all"}
    evaluate(run, episodes=6)
    longer = read_list(make_list(run, tmp_path / "longer.npz", 6))
    assert hashes(proto) == {name: made.hash for name, made in longer.items()} != expected


def test_a_list_asks_what_the_protocol_asked(run: Path, method: FakeMethod, tmp_path: Path) -> None:
    (drawn,) = evaluate(run, ["proto"])
    file = make_list(run, tmp_path / "l.npz")
    reporter = SilentReporter()
    asked = [f"eval.episode={file}", "eval.seed=3"]
    (listed,) = evaluate(run, ["proto"], overrides=asked, reporter=reporter, episodes=600)
    assert any("near" in line and "has 5 episodes (eval.episodes: 600)" in line for line in reporter.lines)
    assert any("eval.seed=3 is not used" in line for line in reporter.lines)
    name = listed.name.removeprefix("proto-list-")
    assert json.loads((listed / "settings.json").read_text())["settings"]["episode"]["hash"].startswith(name)
    assert len(name) == 12
    assert hashes(drawn) == hashes(listed)
    assert {r.protocol for r in read_summary(listed / "summary.csv")} == {f"list-{name}-test", f"list-{name}-all"}
    for dataset, records in read_records(listed / "results.h5").items():
        other = read_records(drawn / "results.h5")[dataset]
        for key in ("index", "accuracy", "plan", "alpha"):
            np.testing.assert_array_equal(records[key], other[key])
    method.tasks = 0
    evaluate(run, ["proto"], overrides=asked, episodes=2)
    assert method.tasks == 0
    moved = file.rename(tmp_path / "moved.npz")
    evaluate(run, ["proto"], overrides=[f"eval.episode={moved}"])
    assert method.tasks == 0


def test_lists_that_do_not_fit_are_refused_before_anything_is_written(run: Path, method: FakeMethod, tmp_path: Path) -> None:
    part = make_list(run, tmp_path / "part.npz", names=("near", "far"))
    with pytest.raises(UserError, match=r"part\.npz: no episodes of farther; did you mean 'far'"):
        evaluate(run, ["proto"], overrides=[f"eval.episode={part}"])
    with pytest.raises(UserError, match="list of episodes does not exist"):
        evaluate(run, ["proto"], overrides=["eval.episode=nothing.npz"])
    with pytest.raises(UserError, match=r"needs eval\.episode\.file"):
        evaluate(run, ["proto"], overrides=["eval.episode.kind=list"])
    assert not (run / "eval").exists()
    (folder,) = evaluate(run, ["proto"], ["far"], overrides=[f"eval.episode={part}"])
    assert list(hashes(folder)) == ["far"]


@pytest.mark.parametrize(("name", "folder"), [("meta-dataset", "proto-meta-dataset-test"), ("md-oneshot", "proto-md-oneshot-test")])
def test_named_protocols_name_their_folders(run: Path, method: FakeMethod, name: str, folder: str) -> None:
    (found,) = evaluate(run, ["proto"], overrides=[f"eval.episode={name}"], episodes=3)
    assert found.name == folder
    assert {r.protocol for r in read_summary(found / "summary.csv")} == {f"{name}-test", f"{name}-all"}
    shots = read_records(found / "results.h5")["far"]
    assert name != "md-oneshot" or np.array_equal(shots["support"], shots["ways"])
