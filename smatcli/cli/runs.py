"""`smat runs`: what runs there are and how far they are, from their files alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from smatcli.runs.overview import Facts

app = typer.Typer(no_args_is_help=True, help="List, show, compare and follow runs.")
STATES = ("created", "running", "continued", "finished", "interrupted", "failed", "dead")
NOT_SHOWN = ("step", "kind", "time", "tasks")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command()
def ls(
    places: Annotated[list[Path] | None, typer.Argument(metavar="[PLACE]...", help="Runs or folders of runs. Default: runs/.")] = None,
    state: Annotated[str | None, typer.Option("--state", metavar="STATE", help=f"Only runs in this state: {', '.join(STATES)}.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line, for scripts.")] = False,
) -> None:
    """A table of runs: method, state, step, best validation accuracy, time.

    `dead`: run.json says running, but the process is gone; `smat train RUN/recipe.yaml --resume` continues it.
    """
    from smatcli.errors import UserError, nearest
    from smatcli.runs.overview import ago, facts, find_runs

    if state is not None and state not in STATES:
        raise UserError(f"--state {state}: there is {', '.join(STATES)}{nearest(state, list(STATES))}")
    found = [facts(path) for path in find_runs(places or [Path("runs")])]
    found = [one for one in found if state in (None, one.state)]
    if json_lines:
        import json

        for one in found:
            typer.echo(json.dumps(_plain(one)))
        return
    if not found:
        typer.echo("no runs")
        return
    from smatcli.cli.output import print_table

    rows = [
        (one.path, one.method if one.kind == "train" else one.kind, one.state, _steps(one), _percent(one.best), _or(one.best_step),
         _percent(one.last), _clock(one.seconds), ago(one.changed))
        for one in found
    ]  # fmt: skip
    print_table(("run", "method", "state", "step", "best %", "at", "last %", "time", "changed"), rows, left=("run", "method", "state"))


@app.command()
def show(run: Run) -> None:
    """One run in full: facts, versions, last readings, checkpoints, evaluations."""
    from smatcli.cli.output import print_table
    from smatcli.runs.overview import evaluations, facts, records

    one = facts(run)
    versions = one.info.get("versions")
    rows: list[tuple[str, Any]] = [
        ("run", one.path), ("kind", one.kind), ("method", one.method), ("state", one.state), ("message", one.message or "-"),
        ("step", _steps(one)), ("best validation", f"{_percent(one.best)} % at step {_or(one.best_step)}"),
        ("last validation", f"{_percent(one.last)} %"), ("time", _clock(one.seconds)),
        *((key, one.info[key]) for key in ("device", "precision", "host", "pid", "started", "finished") if key in one.info),
        ("command", " ".join(map(str, one.info.get("command", [])))),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else "-"),
        ("checkpoints", ", ".join(p.name for p in sorted((run / "checkpoints").glob("[!.]*"))) or "-"),
    ]  # fmt: skip
    for name, value in rows:
        typer.echo(f"{name:<16} {value}")
    last: dict[str, dict[str, Any]] = {}
    for record in records(run):
        last[str(record.get("kind"))] = record
    for kind, record in last.items():
        typer.echo(f"{'last ' + kind:<16} {_line(record)}")
    tests = evaluations(run)
    if tests:
        typer.echo("")
        cells = [
            (
                r.get("dataset"),
                r.get("adapt"),
                r.get("protocol"),
                f"{_share(r.get('mean'))} ± {_share(r.get('half_width'))}",
                r.get("episodes"),
            )
            for r in tests
        ]
        print_table(("dataset", "adapt", "protocol", "accuracy %", "episodes"), cells, left=("adapt", "protocol"))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two runs or more, or folders of runs.")],
) -> None:
    """The recipe keys in which runs differ, and what they came to, side by side."""
    from smatcli.cli.output import print_table
    from smatcli.config.yaml_text import flow
    from smatcli.errors import UserError
    from smatcli.runs.overview import differing_keys, evaluations, facts, find_runs

    found = [facts(path) for path in find_runs(runs)]
    if len(found) < 2:
        raise UserError("give two runs or more to compare")
    rows: list[list[Any]] = [[key, *("-" if v is None else flow(v) for v in values)] for key, values in differing_keys(found).items()]
    if not rows:
        rows.append(["recipe", *("the same" for _ in found)])
    rows.append(["state", *(one.state for one in found)])
    rows.append(["step", *(_steps(one) for one in found)])
    rows.append(["best validation %", *(_percent(one.best) for one in found)])
    rows.append(["time", *(_clock(one.seconds) for one in found)])
    tests = [{(r.get("dataset"), r.get("adapt"), r.get("protocol")): r for r in evaluations(one.path)} for one in found]
    for key in dict.fromkeys(k for one in tests for k in one):
        rows.append([f"{key[0]} {key[1]} {key[2]} %", *(_share(one[key].get("mean")) if key in one else "-" for one in tests)])
    print_table(("", *_names(found)), rows, left=("",))


@app.command()
def tail(
    run: Run,
    count: Annotated[int, typer.Option("-n", "--lines", min=1, help="Records that are shown.")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as new ones are written, until the run ends.")] = False,
) -> None:
    """The last records of a run's metrics.jsonl."""
    from smatcli.runs.overview import facts
    from smatcli.runs.overview import follow as followed
    from smatcli.runs.overview import tail as last

    facts(run)
    for record in last(run, count):
        typer.echo(_line(record))
    if follow:
        for record in followed(run):
            typer.echo(_line(record))


def _line(record: dict[str, Any]) -> str:
    shown = [f"{name} {_value(value)}" for name, value in record.items() if name not in NOT_SHOWN]
    return f"step {record.get('step')} {record.get('kind')} [{_clock(record.get('time'))}] {', '.join(shown)}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_value(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(one: "Facts") -> dict[str, Any]:
    names = ("kind", "method", "state", "step", "steps", "best", "best_step", "last", "seconds", "message")
    return {"run": str(one.path), **{name: getattr(one, name) for name in names}}


def _names(found: "list[Facts]") -> list[str]:
    """The shortest endings of the runs' paths that tell them apart."""
    for parts in range(1, max(len(one.path.parts) for one in found) + 1):
        names = ["/".join(one.path.parts[-parts:]) for one in found]
        if len(set(names)) == len(names):
            return names
    return [str(one.path) for one in found]


def _steps(one: "Facts") -> str:
    return f"{_or(one.step)}/{one.steps}" if one.steps is not None else _or(one.step)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _share(text: str | None) -> str:
    try:
        return f"{100 * float(text or 'x'):.2f}"
    except ValueError:
        return "-"


def _or(value: Any) -> str:
    return "-" if value is None else str(value)


def _clock(seconds: Any) -> str:
    from smatcli.runs.reporter import clock

    return clock(seconds) if isinstance(seconds, int | float) else "-"
