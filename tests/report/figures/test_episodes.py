"""Figures of per-episode results: scores, trajectories, trade-off, number of datasets, parameters."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from smatcli.report.figures.episodes import (
    dendrogram,
    group_figures,
    parameter_counts,
    ratio,
    scores,
    trade_off,
    training_datasets,
    trajectories,
)
from smatcli.report.results.baselines import find_baselines
from smatcli.report.results.frame import read
from smatcli.report.results.groups import ResultGroup, make_groups
from smatcli.runs.statistics import Estimate
from tests.report.fakes import ID, OOD, add_eval, draw, make_run, make_study


def group_of(root: Path) -> ResultGroup:
    (group,) = make_groups(read([root]), {})
    return group


def record(folder: Path, key: str, values: dict[str, np.ndarray]) -> None:
    with h5py.File(folder / "results.h5", "a") as file:
        for name, array in values.items():
            file[name][key] = array


def change(run: Path, **data: object) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"] |= data
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def pretend_checkpoint(run: Path, **sizes: tuple[int, ...]) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in sizes.items()}).encode()
    (run / "checkpoints" / "best" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def test_datasets_with_similar_scores_stand_together(tmp_path: Path):
    run = make_run(tmp_path / "smat", "smat", 0.9, 3)
    folder = add_eval(run, "proto", draw(0, 0, 10), tau=0.9, experts=3)
    rng = np.random.default_rng(0)
    centres = {name: np.eye(3)[i % 2] for i, name in enumerate(ID + OOD)}
    values = {name: np.abs(centre + rng.normal(0, 0.05, (10, 3))) for name, centre in centres.items()}
    record(folder, "alpha", values)
    (heat,) = scores(group_of(tmp_path), [])
    names = [row.removesuffix(" (OOD)") for row in heat.rows]
    kinds = [int(centres[name][0]) for name in names]
    assert kinds == sorted(kinds) or kinds == sorted(kinds, reverse=True)
    assert sorted(names) == sorted(ID + OOD)
    assert {r for r in heat.rows if "(OOD)" in r} == {f"{name} (OOD)" for name in OOD}
    for name, row in zip(names, heat.values, strict=True):
        np.testing.assert_allclose(row, values[name].mean(0))
    assert len(heat.tree) == len(names) - 1
    assert dendrogram(np.eye(2)) == ([0, 1], [])


def test_trajectories(tmp_path: Path):
    run = make_run(tmp_path / "pmf", "pmf")
    folder = add_eval(run, "full", draw(0, 0, 4), "pmf")
    paths = {name: np.outer(np.arange(1, 5), [0.1, 0.15, 0.2]) for name in ID + OOD}
    record(folder, "trajectory", paths)
    curves = trajectories(group_of(tmp_path))
    assert curves is not None
    assert list(curves.panels) == ["In-domain", "Out-of-domain"]
    (line,) = curves.panels["In-domain"]
    assert [(x, round(e.mean, 6)) for x, e in line.points] == [(0, 0.25), (1, 0.375), (2, 0.5)]
    half = 1.96 * np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2
    assert line.points[0][1].half_width == pytest.approx(half / np.sqrt(3))


def test_trade_off_along_a_sweep(tmp_path: Path):
    group = group_of(make_study(tmp_path, 30))
    (sweep,) = group.sweeps
    curves = trade_off(group, sweep)
    assert curves is not None
    plain, flip = curves.panels[""]
    assert (plain.label, flip.label) == ("SMAT, M = 8", "SMAT, M = 8 + flip")
    assert [x for x, _ in plain.points] == [0.5, 0.7, 0.9, 0.95]
    means = [r.estimate.mean for e in read([tmp_path / "smat-sweep-tau" / "tau=0.5"]).evaluations if e.adapt == "proto" for r in e.results]
    assert plain.points[0][1].mean == pytest.approx(np.mean(means[len(ID) :]) / np.mean(means[: len(ID)]))


def test_ratio_against_draws():
    rng = np.random.default_rng(0)
    found = ratio(Estimate(0.4, 0.02), Estimate(0.6, 0.03))
    drawn = rng.normal(0.4, 0.02 / 1.96, 200_000) / rng.normal(0.6, 0.03 / 1.96, 200_000)
    assert found.mean == pytest.approx(0.4 / 0.6)
    assert found.half_width == pytest.approx(1.96 * drawn.std(), rel=0.02)


def test_number_of_training_datasets(tmp_path: Path):
    add_eval(make_run(tmp_path / "pre", "pretrained"), "proto", draw(0, 0, 20), "pretrained")
    for count in (1, 3, 2):
        run = make_run(tmp_path / f"pmf{count}", "pmf")
        change(run, train=list(ID[:count]))
        add_eval(run, "proto", draw(0.02 * count, 0, 20), "pmf")
    group = group_of(tmp_path)
    (baseline,) = find_baselines([group], [])[group.tag]
    curves = training_datasets(group, baseline)
    assert curves is not None
    (line,) = curves.panels["In-domain"]
    assert line.label == "PMF"
    assert [x for x, _ in line.points] == [1, 2, 3]
    assert line.points[2][1].mean == pytest.approx(0.06, abs=0.03)
    assert line.points[2][1].half_width > 0


def test_parameters(tmp_path: Path):
    for name, method, experts in (("pre", "pretrained", None), ("four", "smat", 4), ("eight", "smat", 8)):
        run = make_run(
            tmp_path / name, method, 0.9 if experts else None, experts, [0.5], **({"sparsity_inference": 0.9} if experts else {})
        )
        sizes: dict[str, tuple[int, ...]] = {"theta_pre": (1000,)}
        pretend_checkpoint(run, **(sizes | ({"theta_delta": (1000,), "log_alpha": (experts, 1000)} if experts else {})))
        add_eval(run, "proto", draw(0, 0, 10), method, tau=0.9 if experts else None, experts=experts)
    curves = parameter_counts(group_of(tmp_path))
    assert curves is not None
    assert not curves.log_x
    points = {line.label: [round(1e6 * x) for x, _ in line.points] for line in curves.panels["Out-of-domain"]}
    assert points == {"Pre-trained": [1000], "SMAT": [2400, 2800]}


def test_a_group_without_any_of_it_has_no_figures(tmp_path: Path):
    add_eval(make_run(tmp_path / "pmf", "pmf"), "proto", draw(0, 0, 4), "pmf")
    lines: list[str] = []
    assert group_figures(group_of(tmp_path), [], lines) == []
    assert lines == []
