"""Fixtures of all tests: one CPU thread, no network, a small recipe, and a summary of tests skipped for missing packages."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("COLUMNS", "160")

ROOT = Path(__file__).resolve().parent.parent

# The reasons given by `pytest.importorskip`, and by the skips of our own tests.
MISSING = re.compile(r"could not import '([\w.]+)'|([\w.-]+) is not installed")

RECIPE = """\
# A small recipe for tests.
kind: train
run: runs/small
data: {root: data, train: [a, b], id: [a], ood: [c]}
backbone: {name: vit_tiny_patch16_224, args: {embed_dim: 32, depth: 2}, image_size: 16, weights: none}
method: {name: smat, experts: 2, sparsity: {tau: 0.8}}
train:
  steps: 1e1
  groups:
    theta_delta: {lr: 1e-3}
eval: {episodes: 4, adapt: [proto]}
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one CPU thread once torch is loaded: parallel tests share the cores."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    yield


@pytest.fixture
def repo() -> Path:
    """Return the root of the source tree."""
    return ROOT


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a recipe file (by default a small valid one, with `old` replaced by `new`) and returns its path."""

    def write(old: str = "", new: str = "", text: str | bytes | None = None, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        if text is None:
            assert old in RECIPE
            text = RECIPE.replace(old, new) if old else RECIPE
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the packages and programs that are not installed, with the number of tests that were skipped for each."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    count = Counter(match[1] or match[2] for reason in reasons if (match := MISSING.search(reason)))
    if count:
        terminalreporter.section("skipped: not installed")
        for name, number in sorted(count.items()):
            terminalreporter.line(f"{name}: {number} test{'s' if number > 1 else ''}")
