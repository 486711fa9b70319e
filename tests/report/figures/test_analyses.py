"""Figures of analyses: values computed by hand, and no overlaps."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from smatcli.report import report
from smatcli.report.figures import axes as figures
from smatcli.report.figures import draw as fig_draw
from smatcli.report.figures.analyses import RunAnalysis, read_analyses, sets
from smatcli.report.figures.curves import Curves, Series
from smatcli.report.figures.experts import gradient_figures, mask_figures, mean_of_pairs, search_figures
from smatcli.report.figures.predictions import confusion, feature_figures, prediction_figures
from smatcli.report.figures.types import Bars, ConfusedClasses, Figure, HeatMap, Scatter
from smatcli.report.results.runs import Run
from smatcli.runs.analysis import Analysis
from smatcli.runs.statistics import Estimate
from tests.report import analyses
from tests.report.fakes import add_eval, draw, make_run
from tests.report.figures.test_axes import kept, overlaps

__all__ = ["kept"]

SMAT = analyses.found


def of_type(some: list[Figure], kind: type) -> list:
    return [figure for figure in some if isinstance(figure, kind)]


def test_capacity_by_hand():
    bars, curves, heat = mask_figures([SMAT(analyses.masks())], set())
    assert isinstance(bars, Bars)
    assert isinstance(curves, Curves)
    assert isinstance(heat, HeatMap)
    assert bars.categories == ["cls_token", "q", "fc1"]
    means = dict(zip(bars.categories, bars.series[0][1], strict=True))
    # expert 1 keeps 4 of 20 q, expert 2 the same; of cls_token all and nothing
    assert means["q"].mean == 0.2
    assert means["q"].half_width == 0
    assert means["cls_token"].mean == 0.5
    assert means["cls_token"].half_width == pytest.approx(np.std([1, 0], ddof=1))
    (line,) = curves.panels[""]
    assert [(x, e.mean) for x, e in line.points] == [(1.0, pytest.approx((5 + 7) / 60)), (2.0, pytest.approx(0.2))]
    np.testing.assert_array_equal(heat.values, [[1, 0.25], [0.25, 1]])
    rows = list(csv.DictReader(io.StringIO(bars.csv())))
    assert rows[1] == {"category": "q", "series": "SMAT", "value": "20.000000", "spread": "0.000000"}


def test_agreement_of_gradients_and_its_jackknife():
    analysis = analyses.gradients()
    cosine = analysis.groups["all"]["cosine"]
    bars = gradient_figures([SMAT(analysis)], set())[0]
    assert isinstance(bars, Bars)
    assert bars.categories == ["theta", "delta", "expert 1"]
    (_, same), (_, other) = bars.series
    assert same[0].mean == pytest.approx(np.mean([cosine[0, i, j] for i, j in ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5))]))
    assert other[0].mean == pytest.approx(cosine[0, :3, 3:].mean())
    assert other[2].mean == pytest.approx(cosine[2, 1:3, 3:].mean())  # an episode without the expert counts for nothing
    # plain leave-one-out over episodes
    left = [np.mean([cosine[0, a, b] for a in range(6) for b in range(a) if i not in (a, b)]) for i in range(6)]
    wanted = 1.96 * np.sqrt(5 / 6 * np.sum((left - np.mean(left)) ** 2))
    found = mean_of_pairs(cosine[0], np.ones((6, 6), bool))
    assert found.half_width == pytest.approx(wanted)
    assert not mean_of_pairs(cosine[0], np.zeros((6, 6), bool)).known


def test_agreement_between_runs_and_along_a_sweep():
    both = [SMAT(analyses.gradients(), "A"), SMAT(analyses.gradients(1), "B", Path("b"))]
    between = next(f for f in gradient_figures(both, set()) if f.stem == "alignment")
    assert isinstance(between, Bars)
    assert between.categories == ["A", "B"]
    points = [SMAT(analyses.gradients(i), str(t), Path(f"s/tau={t}"), tau=t, experts=4) for i, t in enumerate((0.9, 0.5))]
    (curves,) = gradient_figures(points, {p.run.path for p in points})
    assert isinstance(curves, Curves)
    assert list(curves.panels) == ["Same dataset", "Different datasets"]
    assert [x for x, _ in curves.panels["Same dataset"][0].points] == [0.5, 0.9]


def test_search_keeps_shares_and_losses_apart():
    (curves,) = search_figures([SMAT(analyses.search())], set())
    assert isinstance(curves, Curves)
    assert curves.scale == 1
    loss, share = ([e.mean for _, e in lines[0].points] for lines in curves.panels.values())
    assert loss == [1.5, 1.25, 0.75]
    assert share == pytest.approx([30, 40, 70])


def test_confusion_by_hand():
    episode = np.array([0, 0, 0, 1, 1])
    label, predicted = np.array([4, 4, 7, 7, 9]), np.array([4, 7, 7, 9, 9])
    found = confusion(episode, label, predicted, np.array([4, 7, 9]))
    np.testing.assert_allclose(found, [[0.5, 0.5, np.nan], [0, 0.5, 1], [np.nan, 0, 1]])


def test_predictions_make_their_figures():
    some = prediction_figures([SMAT(analyses.predictions()), SMAT(analyses.predictions("flip"), "SMAT + flip")], set())
    reliability, errors = of_type(some, Curves)[0], of_type(some, Bars)[0]
    assert [line.label for line in reliability.panels["In-domain"]] == ["SMAT", "SMAT + flip", "perfectly calibrated"]
    for x, estimate in reliability.panels["In-domain"][0].points:  # as often correct as confident
        assert abs(x / 100 - estimate.mean) < 2 * estimate.half_width + 0.05
    assert errors.categories == ["near", "far_away"]
    assert 0 < errors.series[0][1][0].mean < 0.15
    assert [len(p.pairs) for p in of_type(some, ConfusedClasses)] == [6, 6]
    assert len(of_type(some, HeatMap)) == 2
    many = prediction_figures([SMAT(analyses.predictions(classes=25))], set())
    assert of_type(many, HeatMap) == []


def test_sets_and_damaged_files(tmp_path: Path):
    runs = [(name, Run(tmp_path / name, method=method)) for name, method in (("s", "smat"), ("p", "pretrained"))]
    for _, run in runs:
        analyses.write_all(run.path)
    (tmp_path / "s" / "analysis" / "masks.h5").write_bytes(b"nothing")
    lines: list[str] = []
    found = read_analyses(runs, lines)
    assert len(lines) == 1
    assert "masks.h5: cannot be read as an analysis" in lines[0]
    assert [f.label for f in found] == ["p"] * 5 + ["s"] * 4
    assert found[-1].protocol == "5w5s10q"
    empty = RunAnalysis("x", Run(Path("sweep/tau=1")), Analysis("masks", "m"))
    assert [(end, len(some)) for end, _, some in sets([*found, empty], {Path("sweep/tau=1")})] == [("", 9), ("-sweep", 1)]


@pytest.mark.parametrize("most", [3.0, 90.0, 2e5])
def test_a_logarithmic_axis_has_plain_numbers(tmp_path: Path, kept: list, most: float):
    lines = [Series("a", [(x, Estimate(0.5, 0.1)) for x in np.geomspace(1.0, most, 5)])]
    with figures.only_png():
        fig_draw.draw(Curves("s", "h", "c", "x", "y", {"In-domain": lines, "Out-of-domain": lines}, log_x=True), tmp_path / "x")
    assert overlaps(kept[0]) == []
    axis = kept[0].axes[0].xaxis
    low, high = axis.get_view_interval()
    shown = [label.get_text() for label, x in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True) if low <= x <= high]
    assert len(shown) >= 2
    assert [float(text) for text in shown] == pytest.approx([x for x in axis.get_ticklocs() if low <= x <= high])


@pytest.mark.parametrize("classes", [4, 5, 12])
def test_nothing_overlaps(tmp_path: Path, kept: list, classes: int):
    some = [
        *mask_figures([SMAT(analyses.masks())], set()),
        *gradient_figures([SMAT(analyses.gradients())], set()),
        *prediction_figures([SMAT(analyses.predictions(classes=classes))], set()),
        *search_figures([SMAT(analyses.search())], set()),
        *feature_figures([SMAT(analyses.features(classes))]),
    ]
    assert len(of_type(some, Scatter)) == 1
    with figures.only_png():
        for figure in some if classes == 5 else [f for f in some if isinstance(f, HeatMap | Scatter)]:
            fig_draw.draw(figure, tmp_path / "x")
            assert overlaps(kept[-1]) == [], figure.stem
    assert not (tmp_path / "x.pdf").exists()


def test_the_report_draws_them(tmp_path: Path):
    run = make_run(tmp_path / "runs" / "smat", "smat", 0.9, 8)
    add_eval(run, "proto", draw(0, 0, 20), tau=0.9, experts=8)
    analyses.write_all(run)
    made = report([tmp_path / "runs"], tmp_path / "out")
    stems = {p.stem for p in made.files if p.suffix == ".pdf"}
    wanted = {"capacity-layer", "capacity-depth", "overlap-SMAT", "alignment-SMAT", "features-SMAT-near-5w5s10q"}
    wanted |= {f"{name}-5w5s10q" for name in ("flip", "reliability", "calibration", "confused-SMAT", "confusion-SMAT-near")}
    assert wanted <= stems
    assert all((tmp_path / "out" / "figures" / f"{stem}.csv").exists() for stem in stems)
