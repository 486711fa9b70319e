"""The figures other than gains, sweeps and training curves: from per-episode results, and from the analyses of runs."""

from collections.abc import Mapping, Sequence

from smatcli.report.figures.analyses import read_analyses
from smatcli.report.figures.episodes import group_figures
from smatcli.report.figures.experts import gradient_figures, mask_figures, search_figures
from smatcli.report.figures.predictions import feature_figures, prediction_figures
from smatcli.report.figures.tuners import path_figures, similarity_figures
from smatcli.report.figures.types import Figure
from smatcli.report.results.frame import Frame
from smatcli.report.results.groups import Column, ResultGroup, sweep_points
from smatcli.report.results.runs import Run


def more_figures(
    frame: Frame, groups: Sequence[ResultGroup], baselines: Mapping[str, Sequence[Column]], labels: Sequence[tuple[str, Run]]
) -> list[Figure]:
    """Return the figures in the order of the report; add a line to `frame.lines` for each one that is skipped."""
    figures: list[Figure] = []
    for group in groups:
        figures += group_figures(group, baselines.get(group.tag, ()), frame.lines)
    analyses, points = read_analyses(labels, frame.lines), sweep_points(frame)
    points |= {member.run.path for e in frame.evaluations if e.run.path in points for member in e.members}
    ordinary = [item for item in analyses if item.run.path not in points]
    return [
        *figures,
        *mask_figures(analyses, points),
        *gradient_figures(analyses, points),
        *search_figures(analyses, points),
        *prediction_figures(analyses, points),
        *path_figures(ordinary),
        *similarity_figures(analyses),
        *feature_figures(ordinary),
    ]
