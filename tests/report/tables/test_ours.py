"""Tables, comparisons and figure data compared with NumPy and SciPy on the same fake accuracies."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats

from smatcli.report.figures.curves import gains, tau_curves, training_curves
from smatcli.report.results.compare import average_difference, best, difference
from smatcli.report.results.frame import read
from smatcli.report.results.groups import ResultGroup, make_groups
from smatcli.report.tables.ours import gains_table, main_table, pairs_table, sweep_table
from tests.report.fakes import ID, OOD, accuracies, add_eval, draw, make_run, make_study, set_columns


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def group(study: Path) -> ResultGroup:
    (found,) = make_groups(read([study]), {})
    return found


def half_width(values: np.ndarray) -> float:
    return float(1.96 * stats.sem(values))


def test_main_table(group: ResultGroup):
    table = main_table(group)
    assert table.heads == ["Pre-trained", "PMF", "SMAT", "SMAT + flip"]
    assert table.families == [("Without fine-tuning", 3), ("Gradient-free", 1)]
    assert [block.title for block in table.blocks] == ["In-domain", "Out-of-domain", ""]
    for block, names, shifts in zip(table.blocks[:2], (ID, OOD), ((0.0, 0.03, 0.04, 0.041), (0.0, -0.02, 0.01, 0.012)), strict=True):
        assert [row.label for row in block.rows] == [*names, f"{block.title} average"]
        values = np.array([[accuracies(shift, name, 40) for shift in shifts] for name in names])
        for row, expected in zip(block.rows, values, strict=False):
            assert [c.estimate.mean for c in row.cells] == pytest.approx(expected.mean(1))
            assert [c.estimate.half_width for c in row.cells] == pytest.approx([half_width(v) for v in expected])
        average = block.rows[-1]
        assert average.average
        assert [c.estimate.mean for c in average.cells] == pytest.approx(values.mean((0, 2)))
        spread = 1.96 * np.sqrt(stats.sem(values, axis=2) ** 2).T
        assert [c.estimate.half_width for c in average.cells] == pytest.approx(np.sqrt((spread**2).sum(1)) / len(names))


def test_bold_is_the_best_and_its_ties(group: ResultGroup):
    for block in main_table(group).blocks:
        for row in block.rows[:-1]:
            values = [
                accuracies(s, row.label, 40)
                for s in ((0.0, 0.03, 0.04, 0.041) if block.title == "In-domain" else (0.0, -0.02, 0.01, 0.012))
            ]
            top = max(values, key=np.mean)
            expected = [bool((top - v).mean() - half_width(top - v) <= 0) if v is not top else True for v in values]
            assert [cell.bold for cell in row.cells] == expected
    assert best(group.columns[:1], group.keys("ID")) == set()


def test_gains_and_pairs_are_paired(group: ResultGroup):
    pre, pmf, smat, flip = group.columns
    key = group.keys("OOD")[0]
    delta = accuracies(0.01, key.dataset, 40) - accuracies(-0.02, key.dataset, 40)
    found = difference(smat, pmf, key)
    assert found.paired
    assert found.estimate.mean == pytest.approx(delta.mean())
    assert found.estimate.half_width == pytest.approx(half_width(delta))
    each = [accuracies(0.01, n, 40) - accuracies(-0.02, n, 40) for n in OOD]
    mean = average_difference(smat, pmf, group.keys("OOD")).estimate
    assert mean.mean == pytest.approx(np.mean(each))
    assert mean.half_width == pytest.approx(np.sqrt(sum(half_width(d) ** 2 for d in each)) / len(OOD))

    table = gains_table(group, pre)
    assert table.heads == ["PMF", "SMAT", "SMAT + flip"]
    assert table.blocks[1].rows[-1].cells[0].estimate == average_difference(pmf, pre, group.keys("OOD")).estimate
    for row in (row for block in table.blocks for row in block.rows):
        assert all(cell.bold == (abs(cell.estimate.mean) > cell.estimate.half_width) for cell in row.cells)

    pairs = pairs_table(group).blocks[0].rows
    assert len(pairs) == 6
    assert pairs[3].label == "SMAT vs. PMF"
    better = sum(d.mean() > half_width(d) for d in each + [accuracies(0.04, n, 40) - accuracies(0.03, n, 40) for n in ID])
    worse = sum(d.mean() < -half_width(d) for d in each + [accuracies(0.04, n, 40) - accuracies(0.03, n, 40) for n in ID])
    assert pairs[3].cells[2].text == f"{better} / {worse} of 7"
    assert flip.family == "Gradient-free"


@pytest.mark.parametrize("why", ["seed", "store", "numbers"])
def test_other_episodes_are_not_paired(tmp_path: Path, why: str):
    add_eval(make_run(tmp_path / "a", "pretrained"), "proto", draw(0.0, 0.0), "pretrained")
    folder = add_eval(make_run(tmp_path / "b", "pmf"), "proto", draw(0.02, 0.02), "pmf", seed=1 if why == "seed" else 0)
    results = folder / "results.h5"
    if why == "store":
        set_columns(folder, content="x")
    if why == "numbers":
        with h5py.File(results, "r+") as file:
            for name in file:
                file[name]["index"][...] += 1
    frame = read([tmp_path])
    (group,) = make_groups(frame, {})
    key = group.keys("ID")[0]
    found = difference(group.columns[1], group.columns[0], key)
    assert not found.paired
    first, second = accuracies(0.02, key.dataset, 40), accuracies(0.0, key.dataset, 40)
    assert found.estimate.mean == pytest.approx(first.mean() - second.mean())
    assert found.estimate.half_width == pytest.approx(np.hypot(half_width(first), half_width(second)))
    assert "not paired" in gains_table(group, group.columns[0]).caption
    assert frame.lines == []


def test_incomplete_columns_have_no_average(tmp_path: Path):
    add_eval(make_run(tmp_path / "a", "pretrained"), "proto", draw(0.0, 0.0), "pretrained")
    add_eval(make_run(tmp_path / "b", "pmf"), "proto", draw(0.0, 0.0, names=ID[:2] + OOD), "pmf")
    (group,) = make_groups(read([tmp_path]), {})
    table = main_table(group)
    assert [cell.estimate.known for cell in table.blocks[0].rows[-1].cells] == [True, False]
    assert [cell.estimate.known for cell in table.blocks[1].rows[-1].cells] == [True, True]
    assert "averages only where every dataset was evaluated" in table.caption


def test_one_episode_has_no_interval(tmp_path: Path):
    for name, shift in (("a", 0.0), ("b", 0.1)):
        add_eval(make_run(tmp_path / name, "pmf"), "proto", draw(shift, shift, 1), "pmf")
    (group,) = make_groups(read([tmp_path]), {})
    cells = main_table(group).blocks[0].rows[-1].cells
    assert [np.isnan(cell.estimate.half_width) for cell in cells] == [True, True]
    assert [cell.bold for cell in cells] == [False, True]


def test_sweep_table_and_curves(group: ResultGroup, study: Path):
    sweep = study / "smat-sweep-tau"
    rows = sweep_table(group, sweep).blocks[0].rows
    assert [row.label for row in rows[:4]] == ["tau=0.5", "tau=0.7", "tau=0.9", "tau=0.95"]
    assert len(rows) == 8
    assert [row.cells[0].text for row in rows[:4]] == ["0.5", "0.7", "0.9", "0.95"]
    assert rows[0].cells[1].text == "0.490"
    curves = tau_curves(group, sweep)
    assert curves is not None
    assert list(curves.panels) == ["In-domain", "Out-of-domain"]
    assert [s.label for s in curves.panels["In-domain"]] == ["SMAT, M = 8", "SMAT, M = 8 + flip", "Pre-trained", "PMF"]
    line = curves.panels["Out-of-domain"][0]
    assert [x for x, _ in line.points] == [0.5, 0.7, 0.9, 0.95]
    expected = [np.mean([accuracies(0.04 * tau - 0.02, name, 40) for name in OOD]) for tau in (0.5, 0.7, 0.9, 0.95)]
    assert [e.mean for _, e in line.points] == pytest.approx(expected)
    assert curves.csv().splitlines()[1].startswith('In-domain,"SMAT, M = 8",0.5,')
    assert "In-domain,Pre-trained,," in curves.csv()


def test_training_curves(study: Path):
    runs = {run.name: run for run in read([study]).runs}
    curves = training_curves("training", "T", [("PMF", runs["pmf"]), ("Pre", runs["pretrained"])])
    assert curves is not None
    assert list(curves.panels) == ["In-domain"]
    (series,) = curves.panels["In-domain"]
    assert [x for x, _ in series.points] == [200.0 * i for i in range(8)]
    assert [e.mean for _, e in series.points] == pytest.approx([0.5 + 0.02 * i for i in range(8)])
    pmf = runs["pmf"]
    for record in pmf.valid:
        record["datasets"] = {ID[0]: 0.6, ID[1]: 0.8, OOD[0]: 0.3}
        del record["tasks"]
    split = training_curves("training", "T", [("PMF", pmf)])
    assert split is not None
    assert {t: s[0].points[1][1].mean for t, s in split.panels.items()} == pytest.approx({"In-domain": 0.7, "Out-of-domain": 0.3})
    assert split.panels["In-domain"][0].points[1][0] == 200.0
    assert training_curves("training", "T", []) is None


def test_gains_data(group: ResultGroup):
    found = gains(group, group.columns[0])
    assert found is not None
    assert found.series == ["PMF", "SMAT", "SMAT + flip"]
    title, rows = found.blocks[1]
    assert title == "Out-of-domain"
    assert [r[0] for r in rows] == [*OOD, "Out-of-domain average"]
    assert [r[1] for r in rows] == [False] * 4 + [True]
    assert len(found.csv().splitlines()) == 1 + 3 * (len(ID) + len(OOD) + 2)
