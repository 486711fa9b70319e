"""Peak memory and energy of an episode."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from smatcli.engine.evaluate import meters
from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.engine.evaluate.meters import Meter, combined, nvml_counter
from smatcli.report.results.frame import read
from smatcli.report.results.groups import make_groups
from smatcli.report.tables.costs import cost_table
from smatcli.runs.results import joined, read_records
from tests.engine.evaluate.evalruns import FakeMethod, make_run, serve

CPU = torch.device("cpu")
NVML = """
static unsigned long long used = 5000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) { *handle = (void *)1; return uuid[0] != 'G'; }
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *found) { *found = used += 1500; return handle != (void *)1; }
"""


@pytest.mark.skipif(not meters.CLEAR.exists(), reason="no /proc/self/clear_refs")
def test_the_mark_is_set_back() -> None:
    meter = Meter(CPU)
    meter.start()
    big = torch.ones(16 * 2**20)
    most = meter.read()["peak_memory"]
    del big
    meter.start()
    small = meter.read()
    assert most - small["peak_memory"] > 60 * 2**20
    assert "energy" not in small


def test_without_a_mark_that_can_be_set_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(meters, "CLEAR", tmp_path / "none/clear_refs")
    monkeypatch.setattr(meters, "STATUS", tmp_path / "status")
    meter = Meter(CPU)
    meter.start()
    assert meter.read()["peak_memory"] > 50 * 2**20


def test_energy_is_a_difference_and_shared_parts_are_added() -> None:
    counted = iter([10.0, 12.5, 20.0, 21.0])
    meter = Meter(CPU, lambda: next(counted))
    parts = []
    for _ in range(2):
        meter.start()
        parts.append(meter.read())
    assert [part["energy"] for part in parts] == [2.5, 1.0]
    both = combined({"peak_memory": 3.0, "energy": 2.5}, {"peak_memory": 2.0, "energy": 1.0})
    assert both == {"peak_memory": 3.0, "energy": 3.5}
    assert combined({"peak_memory": 3.0}, {"peak_memory": 4.0}) == {"peak_memory": 4.0}


def test_nvml_tells_millijoules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a small library with NVML's three functions; a missing one is not an error."""
    (tmp_path / "nvml.c").write_text(NVML)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "nvml.so", tmp_path / "nvml.c"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("Properties", (), {"uuid": "1-2-3"}))
    joules = nvml_counter(torch.device("cuda"), str(tmp_path / "nvml.so"))
    first, second = joules(), joules()
    assert first is not None
    assert second is not None
    assert second - first == pytest.approx(1.5)
    assert nvml_counter(torch.device("cuda"), str(tmp_path / "absent.so"))() is None


def test_records_of_before_and_of_other_machines_are_joined() -> None:
    old = {"index": np.array([0, 1]), "accuracy": np.array([0.5, 1.0])}
    new = {"index": np.array([2]), "accuracy": np.array([0.0]), "peak_memory": np.array([7.0])}
    found = joined([old, new])
    np.testing.assert_array_equal(found["peak_memory"], [np.nan, np.nan, 7.0])
    assert "peak_memory" not in joined([old])


def test_an_evaluation_records_its_peak_and_the_report_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, FakeMethod())
    run = make_run(tmp_path)
    (folder,) = evaluate(run, ["proto"], ["near"], 2)
    peaks = read_records(folder / "results.h5")["near"]["peak_memory"]
    assert ((peaks > 50 * 2**20) & (peaks < 2**40)).all()
    table = cost_table(make_groups(read([run]), {})[0])
    assert "Peak memory (GiB)" in table.heads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_tells_its_allocator_s_peak() -> None:
    meter = Meter(torch.device("cuda"))
    meter.start()
    big = torch.ones(16 * 2**20, device="cuda")
    found = meter.read()
    assert found["peak_memory"] >= big.nbytes
    assert found.get("energy", 0.0) >= 0
