"""Analyses in the layout of `smat analyze`, with values set by hand."""

from pathlib import Path
from typing import Any

import numpy as np

from smatcli.report.figures.analyses import RunAnalysis
from smatcli.report.results.runs import Run
from smatcli.runs.analysis import Analysis, texts, write_analysis

NAMES = ["a class with quite a long name", "b_$x^2", "c", "d <&>", "e"]


def found(analysis: Analysis, label: str = "SMAT", path: Path = Path("smat"), **facts: Any) -> RunAnalysis:
    """Return an analysis of a run."""
    return RunAnalysis(label, Run(path, "train", "smat", name=path.name, **facts), analysis)


def masks() -> Analysis:
    """Return two experts over four segments: 10 + 20 of block 1 (q, fc1), 10 of block 2 (q), 4 outside."""
    arrays = {
        "tensor": texts(["0.q", "0.fc1", "1.q", "cls"]),
        "layer": texts(["q", "fc1", "q", "cls_token"]),
        "depth": np.array([0, 0, 1, -1]),
        "size": np.array([10, 20, 10, 4]),
        "nonzeros": np.array([[1, 4, 3, 4], [3, 4, 1, 0]]),
        "overlap": np.array([[1.0, 0.25], [0.25, 1.0]]),
    }
    return Analysis("masks", "masks", {}, {"all": arrays}, facts={"parameters": 44})


def gradients(seed: int = 0) -> Analysis:
    """Return six episodes of two datasets, with similar gradients within a dataset."""
    rng = np.random.default_rng(seed)
    points = np.repeat([[3.0, 0, 0], [0, 3.0, 0]], 3, axis=0) + rng.normal(size=(6, 3))
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosine = np.stack([units @ units.T] * 3)
    cosine[2, 0, :] = cosine[2, :, 0] = np.nan
    arrays = {"cosine": cosine, "part": texts(["theta", "delta", "expert 1"]), "dataset": texts(["x"] * 3 + ["y"] * 3)}
    return Analysis("gradients", "gradients", {}, {"all": arrays})


def predictions(adapt: str = "proto", classes: int = 5, episodes: int = 8) -> Analysis:
    """Return two datasets in which a query is correct with its confidence as probability."""
    made = Analysis("predictions", f"predictions-{adapt}", {}, facts={"adapt": adapt})
    for i, (name, domain) in enumerate((("near", "ID"), ("far_away", "OOD"))):
        rng = np.random.default_rng(i)
        n = episodes * 30
        label, confidence = rng.integers(0, classes, n), rng.uniform(0.3, 1, n)
        wrong = (label + rng.integers(1, classes, n)) % classes
        arrays = {
            "episode": np.repeat(np.arange(episodes), 30),
            "label": label,
            "predicted": np.where(rng.uniform(size=n) < confidence, label, wrong),
            "confidence": confidence,
            "class_names": texts([NAMES[c % 5] + str(c) for c in range(classes)]),
            "pair": np.array([[0, 1], [1, 2], [2, 3]]),
            "pair_count": np.array([9, 8, 7]),
            "pair_asked": np.array([20, 20, 20]),
            "pair_thumbnails": rng.integers(0, 255, (3, 2, 48, 48, 3)).astype(np.uint8),
        }
        made.groups[name] = arrays
        made.attributes[name] = {"domain": domain, "protocol": "5w5s10q-test", "split": "test", "episodes": episodes}
    return made


def search() -> Analysis:
    """Return three states of two searches."""
    arrays = {"lowest": np.array([[2.0, 1.5, 1.0], [1.0, 1.0, 0.5]]), "accuracy": np.array([[0.2, 0.4, 0.6], [0.4, 0.4, 0.8]])}
    return Analysis("flip", "flip", {}, {"near": arrays}, {"near": {"domain": "ID", "protocol": "5w5s10q-test"}})


def features(classes: int = 5) -> Analysis:
    """Return one episode in two stages."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(classes), 15)
    spread = rng.normal(size=(2, len(label), 2))
    spread[1] += np.stack([np.cos(label), np.sin(label)], 1) * 3
    arrays = {
        "coordinates": spread, "explained": np.array([[0.4, 0.2], [0.5, 0.3]]), "accuracy": np.array([0.3, 0.9]), "label": label,
        "is_query": np.arange(len(label)) % 15 >= 5, "stage": texts(["pre-trained", "meta-tuned"]),
        "class_names": texts([NAMES[c % 5] for c in range(classes)]),
    }  # fmt: skip
    about = {"domain": "ID", "protocol": "5w5s10q-test", "index": 3}
    return Analysis("features", "features-proto", {}, {"near": arrays}, {"near": about}, facts={"adapt": "proto"})


def write_all(run: Path) -> None:
    """Write every analysis to a run's folder."""
    for analysis in (masks(), gradients(), predictions(), search(), features()):
        write_analysis(run / "analysis", analysis)
