"""Run directories in the layout of `smat train` and `smat eval`, with accuracies from a seeded generator."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import yaml

from smatcli.runs.results import read_results, write_summary

ID = ("aircraft", "omniglot", "textures")
OOD = ("traffic_signs", "coco_crops", "cifar10", "sketch_pacs")


def accuracies(shift: float, dataset: str, episodes: int, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """Return shares [E]: hard and easy episodes are the same for all methods (so pairing helps), plus `shift` and a little noise."""
    shared = np.random.default_rng([seed, *dataset.encode()]).normal(0.6, 0.12, episodes)
    own = np.random.default_rng([round(1000 * abs(shift)), *dataset.encode()]).normal(shift, noise, episodes)
    return np.clip(np.round((shared + own) * 50) / 50, 0, 1)


def make_run(
    path: Path, method: str = "smat", tau: float | None = None, experts: int | None = None, valid: Sequence[float] = (), **facts: float
) -> Path:
    """Write a trained run: recipe, checkpoints/best, and a validation every 100 steps with the means `valid`."""
    path.mkdir(parents=True)
    settings: dict[str, object] = {"name": method}
    if experts is not None:
        settings |= {"experts": experts, "sparsity": {"tau": tau}}
    recipe = {"kind": "train", "method": settings, "train": {"meta_batch": 2}, "data": {"id": list(ID), "ood": list(OOD)}}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [{"step": 1, "kind": "train", "loss": 1.0, "time": 0.1}]
    for i, mean in enumerate(valid):
        per = {name: mean + 0.01 * k for k, name in enumerate(ID)}
        lines.append(
            {"step": 100 * i, "kind": "valid", "tasks": 200 * i, "mean": mean, "half_width": 0.01, "datasets": per, "time": i, **facts}
        )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "checkpoints" / "best").mkdir(parents=True)
    (path / "checkpoints" / "best" / "state.json").write_text(json.dumps({"state": {"step": 100 * max(0, len(valid) - 1)}}))
    return path


def add_eval(
    run: Path,
    adapt: str,
    values: Mapping[str, np.ndarray],
    method: str = "smat",
    protocol: str = "5w5s10q",
    seed: int = 0,
    ood_split: str = "all",
    tau: float | None = None,
    experts: int | None = None,
) -> Path:
    """Write an evaluation of `run` with the accuracies `values` (dataset -> [E])."""
    folder = run / "eval" / f"{adapt}-{protocol}"
    folder.mkdir(parents=True)
    facts = {"run": run.name, "method": method, "adapt": adapt, "tau": tau, "experts": experts}
    with h5py.File(folder / "results.h5", "w") as file:  # without a seal, so that tests can change it
        file.attrs.update({"format": 1, "datasets": json.dumps(list(values)), "settings": json.dumps({"seed": seed})})
        file.attrs.update({key: value for key, value in facts.items() if value is not None})
        for name, accuracy in values.items():
            domain = "OOD" if name in OOD else "ID"
            group = file.create_group(name)
            group["accuracy"], group["index"] = accuracy, np.arange(len(accuracy))
            group["seconds"] = np.full(len(accuracy), 1.5 / len(accuracy))
            tag = f"{protocol}-{ood_split if domain == 'OOD' else 'test'}"
            group.attrs.update({"domain": domain, "protocol": tag, "content": name})
    write_summary(folder / "summary.csv", read_results(folder / "results.h5").rows)
    return folder


def set_facts(folder: Path, /, **facts: object) -> None:
    """Set attributes of an evaluation's results.h5."""
    with h5py.File(folder / "results.h5", "r+") as file:
        file.attrs.update(facts)


def set_columns(folder: Path, /, **columns: object) -> None:
    """Set attributes of all datasets of an evaluation, and write its summary again."""
    with h5py.File(folder / "results.h5", "r+") as file:
        for group in file.values():
            group.attrs.update(columns)
    write_summary(folder / "summary.csv", read_results(folder / "results.h5").rows)


def draw(shift_id: float, shift_ood: float, episodes: int = 40, names: Sequence[str] = ID + OOD) -> dict[str, np.ndarray]:
    """Return accuracies on every dataset, shifted by domain."""
    return {name: accuracies(shift_ood if name in OOD else shift_id, name, episodes) for name in names}


def make_study(root: Path, episodes: int = 40, names: Sequence[str] = ID + OOD) -> Path:
    """Write a pre-training run, three methods (SMAT with flip too) and a sweep of tau below `root`, as in the quick start."""
    (root / "base").mkdir(parents=True)
    (root / "base" / "recipe.yaml").write_text("kind: pretrain\n")
    pre = make_run(root / "pretrained", "pretrained")
    add_eval(pre, "proto", draw(0.0, 0.0, episodes, names), "pretrained")
    pmf = make_run(root / "pmf", "pmf", valid=[0.5 + 0.02 * i for i in range(8)])
    add_eval(pmf, "proto", draw(0.03, -0.02, episodes, names), "pmf")
    smat = make_run(root / "smat", "smat", 0.9, 8, [0.5 + 0.03 * i - 0.002 * i * i for i in range(8)], sparsity_inference=0.89)
    add_eval(smat, "proto", draw(0.04, 0.01, episodes, names), tau=0.9, experts=8)
    add_eval(smat, "flip", draw(0.041, 0.012, episodes, names), tau=0.9, experts=8)
    for tau in (0.5, 0.7, 0.9, 0.95):
        run = make_run(root / "smat-sweep-tau" / f"tau={tau}", "smat", tau, 8, [0.5, 0.5 + 0.1 * tau], sparsity_inference=tau - 0.01)
        add_eval(run, "proto", draw(0.06 - 0.05 * tau, 0.04 * tau - 0.02, episodes, names), tau=tau, experts=8)
        add_eval(run, "flip", draw(0.063 - 0.05 * tau, 0.041 * tau - 0.02, episodes, names), tau=tau, experts=8)
    return root
