"""N updates, kill -9, and M updates in a new process equal N + M updates, bit for bit, for every method."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smatcli.methods import METHODS
from tests.engine.train.world import load
from tests.faults.children import ROOT, Children, assert_same_training, last_step

QUICK = ("train.steps=3", "train.checkpoint_every=1", "train.valid_every=2", "train.valid_episodes=1")
ROUTED = "experts: 2, router: {heads: 2}"
CASES = {
    "pmf": "{name: pmf}",
    "softmerge": f"{{name: softmerge, {ROUTED}}}",
    "mlp_experts": f"{{name: mlp_experts, {ROUTED}}}",
    "smat": f"{{name: smat, {ROUTED}}}",
    "smat, random": f"{{name: smat, {ROUTED}, masks: {{kind: random}}}}",
    "smat, outputs": f"{{name: smat, {ROUTED}, masks: {{group: output}}}}",
}


def test_every_method_has_a_case() -> None:
    trained = {text.split("name: ")[1].split(",")[0].rstrip("}") for text in CASES.values()}
    assert trained | {"pretrained"} >= {name for name in METHODS if not name.startswith("test")}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(tmp_path: Path, children: Children, case: str) -> None:
    load(tmp_path)
    args = ["train", "recipe.yaml", "--resume", f"method={CASES[case]}", *QUICK]
    children.done(tmp_path, *args, "run=whole")
    assert children.smat(tmp_path, *args, "run=broken", die_at=48)["status"] == -9
    assert 0 < last_step(tmp_path / "broken") < 3
    children.done(tmp_path, *args, "run=broken")
    assert_same_training(tmp_path / "whole", tmp_path / "broken")


def test_killed_and_resumed_by_the_command_line(tmp_path: Path, children: Children) -> None:
    """The same with separate processes."""
    load(tmp_path)
    args = ["train", "recipe.yaml", "--resume", *QUICK[1:], "train.steps=20"]
    command = [sys.executable, "-m", "smatcli", *args, "run=broken"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while last_step(tmp_path / "broken") < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= last_step(tmp_path / "broken") < 20, "it was over before it could be killed"
    children.done(tmp_path, *args, "run=whole")
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert_same_training(tmp_path / "whole", tmp_path / "broken")
