"""Parts of the HTML report: text, tables that sort and filter, and what runs and evaluations say of themselves."""

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape as _escape
from typing import Any

from smatcli.report.formats.latex import percent
from smatcli.report.results.frame import Evaluation, Frame
from smatcli.report.results.runs import Run
from smatcli.report.tables.table import Cell, Row, Table
from smatcli.safe import text as safe

_NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")
MISSING = object()


def escape(text: object) -> str:
    """Any text as HTML shows it literally, also within quotes: one line, no control characters."""
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") else c for c in str(text))
    return _escape(plain, quote=True)


@dataclass(frozen=True)
class Grid:
    """A plain table of texts."""

    heads: list[str]
    rows: list[list[str]]


def table(content: Table, name: str) -> str:
    """A report's table with its filter, caption and footnotes; `name` is its id."""
    lines = []
    if content.families:
        families = "".join(f'<th colspan="{n}">{escape(title)}</th>' for title, n in content.families)
        lines.append(f'<tr class="families"><th></th>{families}</tr>')
    heads = [content.corner, *content.heads]
    lines.append(_heads(heads, [False, *(_numeric(content, i) for i in range(len(content.heads)))]))
    bodies = []
    for block in content.blocks:
        title = f'<tr class="block"><th colspan="{len(heads)}">{escape(block.title)}</th></tr>' if block.title else ""
        bodies.append(f"<tbody>{title}{''.join(_row(row, content.digits) for row in block.rows)}</tbody>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in content.notes)
    return _framed(name, "".join(lines), "".join(bodies)) + (
        f'<p class="caption">{escape(content.caption)}</p>' + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def grid(content: Grid, name: str) -> str:
    """A table of texts with its filter."""
    body = "".join(f"<tr>{''.join(_text_cell(text) for text in row)}</tr>" for row in content.rows)
    return _framed(name, _heads(content.heads, [False] * len(content.heads)), f"<tbody>{body}</tbody>")


def _framed(name: str, head: str, bodies: str) -> str:
    box = f'<input class="filter" data-for="{escape(name)}" type="search" placeholder="filter rows" aria-label="filter rows">'
    return f'{box}<div class="scroll"><table class="data" id="{escape(name)}"><thead>{head}</thead>{bodies}</table></div>'


def _heads(heads: Sequence[str], numeric: Sequence[bool]) -> str:
    cells = [
        f'<th scope="col" data-first="{"descending" if number else "ascending"}"><button type="button">{escape(head)}</button></th>'
        for head, number in zip(heads, numeric, strict=True)
    ]
    return f'<tr class="heads">{"".join(cells)}</tr>'


def _numeric(content: Table, column: int) -> bool:
    cells = [row.cells[column] for block in content.blocks for row in block.rows]
    return any(cell.text is None or _NUMBER.fullmatch(cell.text.strip()) for cell in cells)


def _row(row: Row, digits: int) -> str:
    cells = "".join(_cell(cell, digits) for cell in row.cells)
    return f"<tr{' class=average' if row.average else ''}><td>{escape(row.label)}</td>{cells}</tr>"


def _cell(cell: Cell, digits: int) -> str:
    if cell.text is not None:
        return _text_cell(cell.text, cell.bold, "")
    if not cell.estimate.known:
        return '<td data-value=""></td>'
    mean = f"{percent(cell.estimate.mean, digits):{'+' if cell.signed else ''}.{digits}f}"
    half = f" ± {percent(cell.estimate.half_width, digits):.{digits}f}" if math.isfinite(cell.estimate.half_width) else ""
    return f'<td data-value="{cell.estimate.mean:.9g}">{_bold(mean, cell.bold)}{half}</td>'


def _text_cell(text: str, bold: bool = False, kind: str = "text") -> str:
    if _NUMBER.fullmatch(text.strip()):
        return f'<td data-value="{float(text.replace(",", "")):.12g}">{_bold(escape(text), bold)}</td>'
    return f"<td{f' class={kind}' if kind else ''}>{_bold(escape(text), bold)}</td>"


def _bold(text: str, bold: bool) -> str:
    return f"<b>{text}</b>" if bold and text else text


def environment(runs: Sequence[tuple[str, Run]]) -> Grid:
    """What every run says of where it was made: status, device, precision, versions, command, times (`run.json`)."""
    heads = ["run", "folder", "status", "device", "precision", "versions", "started", "finished", "command"]
    rows = []
    for label, run in runs:
        info = read_json(run.path / "run.json")
        versions = info.get("versions")
        shown = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
        command = info.get("command")
        line = " ".join(map(str, command)) if isinstance(command, list) else ""
        plain = [str(info.get(key, "")) for key in ("status", "device", "precision")]
        rows.append([label, str(run.path), *plain, shown, str(info.get("started", "")), str(info.get("finished", "")), line])
    return Grid(heads, rows)


def differences(runs: Sequence[tuple[str, Run]]) -> Grid:
    """Values of the recipes in which the runs differ: a row a key, a column a run."""
    flat = [dict(flatten(run.recipe)) for _, run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = []
    for key in keys:
        values = [found.get(key, MISSING) for found in flat]
        texts = ["" if v is MISSING else v if isinstance(v, str) else json.dumps(v, default=str) for v in values]
        if len(set(texts)) > 1:
            rows.append([key, *texts])
    return Grid(["key", *(label for label, _ in runs)], rows)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries, keys joined by dots."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def protocols(frame: Frame) -> Grid:
    """How every evaluation asked: protocol, episodes, their hash, seed, image size, adaptation, search, weights."""
    heads = ["run", "adaptation", "datasets", "protocol", "episodes", "list hash", "seed", "image size", "precision", "search", "weights"]
    return Grid(heads, [_protocol(e) for evaluation in frame.evaluations for e in evaluation.members or [evaluation]])


def _protocol(evaluation: Evaluation) -> list[str]:
    settings, results = evaluation.settings, evaluation.results
    hashes = "; ".join(dict.fromkeys(f"{r.dataset} {r.list_hash[:12]}" for r in results if r.list_hash))
    return [
        evaluation.run.name,
        evaluation.adapt,
        ", ".join(r.dataset for r in results),
        ", ".join(dict.fromkeys(r.protocol for r in results)),
        ", ".join(dict.fromkeys(str(r.episodes) for r in results)),
        hashes,
        *(str(settings.get(key, "")) for key in ("seed", "image_size", "precision")),
        ", ".join(dict.fromkeys(f"{r.search} (rate {r.lr:g})" if r.lr is not None else r.search for r in results if r.search)),
        str(settings.get("weights", ""))[:12],
    ]


def read_json(path: Any) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        found = safe.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
