"""Evaluations with given means and half-widths."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smatcli.runs.results import RESULTS, SUMMARY, read_results, write_results, write_summary

Measured = tuple[str, str, float, float]  # domain, protocol, mean, half-width


def write_evaluation(
    folder: Path,
    datasets: Mapping[str, Measured],
    adapt: str = "proto",
    tau: float | None = None,
    experts: int | None = None,
    episodes: int = 4,
) -> Path:
    """Write results.h5 and summary.csv of an evaluation; `episodes` must be even."""
    folder.mkdir(parents=True, exist_ok=True)
    groups, attributes = {}, {}
    for name, (domain, protocol, mean, half_width) in datasets.items():
        distance = half_width * math.sqrt(episodes - 1) / 1.96
        accuracy = mean + distance * np.tile([-1.0, 1.0], episodes // 2)
        groups[name] = {"index": np.arange(episodes), "accuracy": accuracy, "seconds": np.full(episodes, 1 / episodes)}
        attributes[name] = {"domain": domain, "protocol": protocol}
    facts = {"run": "r", "method": "smat", "adapt": adapt, "tau": tau, "experts": experts}
    write_results(folder / RESULTS, groups, attributes, facts, {})
    write_summary(folder / SUMMARY, read_results(folder / RESULTS).rows)
    return folder
