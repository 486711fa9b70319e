"""`--profile`: phases of a step, exclusive of each other, and a trace."""

import csv
import json
import threading
from pathlib import Path

import pytest
import torch

from smatcli.engine.train.profile import table
from smatcli.engine.train.trainer import train
from smatcli.phases import PHASES, Recorder, phase, recording
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load


@pytest.mark.parametrize("method", ["smat", "pmf"])
def test_a_run_with_profile_has_the_same_weights_a_table_and_a_trace(tmp_path: Path, method: str) -> None:
    extra = ["train.steps=8", *([] if method == "smat" else ["method={name: pmf}"])]
    plain = train(load(tmp_path, f"run={tmp_path}/plain", *extra), SilentReporter())
    run = train(load(tmp_path, *extra), SilentReporter(), profile=True)
    weights = [(r.checkpoints / "last" / "model.safetensors").read_bytes() for r in (plain, run)]
    assert weights[0] == weights[1]
    assert not (plain.path / "profile").exists()
    rows = {row["phase"]: row for row in csv.DictReader((run.path / "profile" / "phases.csv").open())}
    expected = set(PHASES) if method == "smat" else {"data", "backward", "optimizer", "all-reduce"}
    assert expected | {"total"} <= set(rows)
    assert sum(float(row["wall_s"]) for name, row in rows.items() if name != "total") == pytest.approx(
        float(rows["total"]["wall_s"]), abs=1e-4
    )
    names = {event.get("name") for event in json.loads((run.path / "profile" / "trace.json").read_text())["traceEvents"]}
    assert {f"smat.{name}" for name in expected - {"data"}} <= names


def test_a_run_that_is_too_short_is_measured_as_far_as_it_goes(tmp_path: Path) -> None:
    run = train(load(tmp_path, "train.steps=3"), SilentReporter(), profile=True)
    assert (run.path / "profile" / "phases.csv").exists()
    assert not (run.path / "profile" / "trace.json").exists()
    short = train(load(tmp_path, "train.steps=1", f"run={tmp_path}/short"), SilentReporter(), profile=True)
    assert not (short.path / "profile").exists()


def test_inner_phases_are_subtracted_whichever_thread_they_run_in(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("smatcli.phases.time.perf_counter", lambda: now[0])

    def inner() -> None:
        with phase("merge"):
            now[0] += 2.0

    with recording(Recorder(torch.device("cpu"))) as recorder:
        with phase("backward"):
            now[0] += 1.0
            thread = threading.Thread(target=inner)
            thread.start()
            thread.join()
            now[0] += 4.0
        now[0] += 8.0  # belongs to nothing
        with phase("backward"):
            now[0] += 16.0
    found = {name: wall for name, wall, _, _ in table(recorder, 2)}
    assert found == {"merge": 1.0, "backward": 10.5, "total": 11.5}
    with phase("merge"):  # no recorder is active
        pass
    assert recorder.phases["merge"].calls == 1
