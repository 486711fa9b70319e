"""The report as one self-contained HTML page: nothing is fetched, everything is embedded."""

import base64
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from smatcli.report.figures.types import Figure
from smatcli.report.formats.html_assets import CSS, SCRIPT
from smatcli.report.formats.html_parts import differences, environment, escape, grid, protocols, table
from smatcli.report.results.frame import Frame
from smatcli.report.results.groups import DOMAINS, Column, Group
from smatcli.report.results.runs import Run
from smatcli.report.tables.table import Table
from smatcli.safe.files import atomic_write_text

NAME = "report.html"
MOST_COMPARED = 24  # runs whose recipes stand side by side
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(
    out: Path,
    title: str,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    frame: Frame,
    groups: Sequence[Group],
    labels: Sequence[tuple[str, Run]],
    lines: Sequence[str],
    drawn: Path | None = None,
) -> Path:
    """Write `out`/report.html; `drawn` is the folder that holds the figures' PNG files already (None: they are drawn for this page)."""
    with ExitStack() as stack:
        folder = drawn
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            _draw(figures, folder)
        pictures = [_picture(folder / f"{figure.stem}.png") for figure in figures]
    atomic_write_text(out / NAME, page(title, tables, list(zip(figures, pictures, strict=True)), frame, groups, labels, lines))
    return out / NAME


def _draw(figures: Sequence[Figure], folder: Path) -> None:
    if figures:
        from smatcli.report.figures.axes import only_png
        from smatcli.report.figures.draw import draw

        with only_png():
            for figure in figures:
                draw(figure, folder / figure.stem)


def _picture(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def page(
    title: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[Figure, str]],
    frame: Frame,
    groups: Sequence[Group],
    labels: Sequence[tuple[str, Run]],
    lines: Sequence[str],
) -> str:
    """The page's text; `figures` come with the address of their picture (a data: address)."""
    shown = title or "Report"
    heads = "".join(f"<li>{text}</li>" for text in _summary(frame, groups))
    warnings = _warnings(tables, lines)
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(shown)}</title><style>{CSS}</style></head><body>",
        f'<h1>{escape(shown)}</h1><div class="summary"><ul>{heads}</ul></div>{warnings}',
        _contents(tables, figures),
        "<h2 id=tables>Tables</h2><p class=soft>Click on a heading to sort, again to reverse, a third time for the order of the paper.</p>",
        *map(_table, tables),
        "<h2 id=figures>Figures</h2>" if figures else "",
        *(_figure(figure, address) for figure, address in figures),
        *_about_runs(frame, labels),
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _id(kind: str, stem: str) -> str:
    return f"{kind}-{escape(stem)}"


def _contents(tables: Sequence[Table], figures: Sequence[tuple[Figure, str]]) -> str:
    links = [(_id("table", t.stem), t.heading) for t in tables] + [(_id("figure", f.stem), f.heading) for f, _ in figures]
    links += [("differences", "Differences between recipes"), ("protocols", "Protocols"), ("environment", "Environment")]
    links.append(("recipes", "Recipes"))
    return "<nav>" + "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading in links) + "</nav>"


def _table(content: Table) -> str:
    made = table(content, _id("data", content.stem))
    made = made if content.inline else f"<details><summary>Show the table</summary>{made}</details>"
    return f'<h3 id="{_id("table", content.stem)}">{escape(content.heading)}</h3>{made}'


def _figure(figure: Figure, address: str) -> str:
    return (
        f'<h3 id="{_id("figure", figure.stem)}">{escape(figure.heading)}</h3><figure><img alt="{escape(figure.heading)}" src="{address}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _summary(frame: Frame, groups: Sequence[Group]) -> list[str]:
    """Sentences in HTML: what is here, and the best of each group of evaluations."""
    datasets = {result.dataset for e in frame.evaluations for result in e.results}
    counts = [(len(frame.runs), "run"), (len(frame.evaluations), "evaluation"), (len(datasets), "dataset")]
    found = [", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)]
    for group in groups:
        best = [text for domain in DOMAINS if (text := _best(group, domain))]
        if best:
            found.append(f"{escape(group.brief)}: {'; '.join(best)}")
    return found


def _best(group: Group, domain: str) -> str:
    columns: list[Column] = group.everything
    keys = group.keys(domain, columns)
    known = [(c.average(keys).mean, c) for c in columns if keys and c.average(keys).known]
    if not known:
        return ""
    mean, column = max(known, key=lambda pair: pair[0])
    return f"best {DOMAINS[domain].lower()} <b>{escape(column.label)}</b> with {100 * mean:.1f}% over {len(keys)} datasets"


def _warnings(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """What readers must know before they compare: footnotes of the tables, and what was left out."""
    notes = dict.fromkeys([*(note for t in tables for note in t.notes), *lines])
    if not notes:
        return ""
    return f'<div class="warnings"><b>Before comparing</b><ul>{"".join(f"<li>{escape(n)}</li>" for n in notes)}</ul></div>'


def _about_runs(frame: Frame, labels: Sequence[tuple[str, Run]]) -> list[str]:
    import yaml

    compared = labels[:MOST_COMPARED]
    told = differences(compared)
    more = f"<p class=soft>The first {MOST_COMPARED} of {len(labels)} runs are compared.</p>" if len(labels) > MOST_COMPARED else ""
    recipes = [
        f"<details><summary>{escape(label)} <span class=soft>{escape(run.path)}</span></summary><pre>"
        + "\n".join(escape(line) for line in yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True).splitlines())
        + "</pre></details>"
        for label, run in labels
        if run.recipe
    ]
    return [
        f"<h2 id=differences>Differences between recipes</h2>{more}",
        grid(told, "grid-differences") if told.rows else "<p>None.</p>",
        f"<h2 id=protocols>Protocols</h2>{grid(protocols(frame), 'grid-protocols')}",
        f"<h2 id=environment>Environment</h2>{grid(environment(labels), 'grid-environment')}",
        "<h2 id=recipes>Recipes</h2>",
        *recipes,
    ]
