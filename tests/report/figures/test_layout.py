"""Layout of every figure of whole reports: no overlapping texts, no empty axes, legends on the page and clear of the data."""

from pathlib import Path

import pytest

from smatcli.report import ReportOptions, report
from smatcli.report.figures import axes as figures
from smatcli.report.figures import draw as fig_draw
from smatcli.runs.analysis import write_analysis
from tests.report import analyses
from tests.report.fakes import add_eval, draw, make_run, make_study
from tests.report.figures.test_axes import overlaps

HTML = ReportOptions(formats=["html"])  # skips the PDF, whose layout is the same


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """Return {file: faults} of every figure, checked while its style is active (a later draw would change the size of ticks)."""
    found: dict[str, list] = {}
    save = figures.save

    def keep(figure, path):
        save(figure, path)
        found[path.name] = [*overlaps(figure), *empty_axes(figure), *misplaced_legends(figure), *flat_axes(figure)]

    monkeypatch.setattr(figures, "save", keep)
    monkeypatch.setattr(fig_draw, "save", keep)
    return found


def empty_axes(figure) -> list[str]:
    """Return visible axes in which nothing is drawn."""
    return [
        ax.get_title() or "untitled"
        for ax in figure.axes
        if ax.axison and not (ax.lines or ax.collections or ax.patches or ax.images or ax.containers)
    ]


def misplaced_legends(figure) -> list[str]:
    """Return legends that leave the page or overlap the axes."""
    page, found = figure.bbox.padded(1), []
    for legend in [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]:
        box = legend.get_window_extent()
        if not (page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1)):
            found.append("off the page")
        if any(box.shrunk(0.98, 0.9).overlaps(ax.get_window_extent()) for ax in figure.axes):
            found.append("over the axes")
    return found


def flat_axes(figure) -> list[str]:
    """Return axes that long names have squeezed to nothing."""
    sizes = [ax.get_window_extent() for ax in figure.axes]
    return [f"axes of {box.width:.0f} x {box.height:.0f} points" for box in sizes if min(box.width, box.height) < 20]


def analysed(run: Path) -> None:
    made = [analyses.masks(), analyses.gradients(), analyses.predictions()]
    for analysis in made:
        write_analysis(run / "analysis", analysis)


def test_the_figures_of_an_ordinary_study(tmp_path: Path, faults: dict[str, list]):
    root = make_study(tmp_path / "runs", 6)
    analysed(root / "smat")
    report([root], tmp_path / "out", HTML)
    assert len(faults) >= 9
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize("columns", [2, 9])
def test_long_names_of_runs_and_datasets(tmp_path: Path, faults: dict[str, list], columns: int):
    names = ("aircraft", "omniglot", "a_dataset_with_quite_a_long_name_$x^2", "traffic_signs", "cifar10")
    for i in range(columns):
        method = "pretrained" if i == 0 else "pmf"
        run = make_run(tmp_path / "runs" / f"a run with quite a long name number {i}", method, valid=[0.5, 0.5 + 0.01 * i, 0.6])
        add_eval(run, "proto", draw(0.01 * i, -0.01 * i, 5, names), method)
    report([tmp_path / "runs"], tmp_path / "out", HTML)
    assert len(faults) == 2
    assert not any(faults.values())


def test_a_fault_would_be_seen(tmp_path: Path):
    """The checks detect an empty panel, and a legend over the data."""
    from smatcli.report.figures.axes import new_figure

    figure = new_figure(3, 2)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], label="x")
    left.legend()
    right.set_title("nothing here")
    figure.canvas.draw()
    assert empty_axes(figure) == ["nothing here"]
    assert misplaced_legends(figure) == ["over the axes"]
