"""`smat runs`: show runs and their progress, read from their files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from smatcli.runs.overview import RunFacts

app = typer.Typer(no_args_is_help=True, help="List, show, compare and follow runs.")
STATES = ("created", "running", "continued", "finished", "interrupted", "failed", "dead")
NOT_SHOWN = ("step", "kind", "time", "tasks")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]


@app.command()
def ls(
    places: Annotated[list[Path] | None, typer.Argument(metavar="[PLACE]...", help="Runs or folders of runs. Default: runs/.")] = None,
    state: Annotated[str | None, typer.Option("--state", metavar="STATE", help=f"Only runs in this state: {', '.join(STATES)}.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print a JSON object per line, for scripts.")] = False,
) -> None:
    """List runs with their method, state, step, validation accuracy and time.

    A run is `dead` if run.json says running, but the process no longer exists; continue it with `smat train RUN/recipe.yaml --resume`.
    """
    from smatcli.errors import UserError, nearest
    from smatcli.runs.overview import ago, facts, find_runs

    if state is not None and state not in STATES:
        raise UserError(f"--state {state}: use {', '.join(STATES)}{nearest(state, list(STATES))}")
    listed = [facts(path) for path in find_runs(places or [Path("runs")])]
    listed = [each for each in listed if state in (None, each.state)]
    if json_lines:
        import json

        for each in listed:
            typer.echo(json.dumps(_plain(each)))
        return
    if not listed:
        typer.echo("no runs")
        return
    from smatcli.cli.output import print_table

    rows = [
        (each.path, each.method if each.kind == "train" else each.kind, each.state, _steps(each), _percent(each.best), _or(each.best_step),
         _percent(each.last), _clock(each.seconds), ago(each.changed))
        for each in listed
    ]  # fmt: skip
    print_table(("run", "method", "state", "step", "best %", "at", "last %", "time", "changed"), rows, left=("run", "method", "state"))


@app.command()
def show(run: Run) -> None:
    """Show the facts, versions, last metrics, checkpoints and evaluations of a run."""
    from smatcli.cli.output import print_table
    from smatcli.runs.overview import evaluations, facts, records

    about = facts(run)
    versions = about.info.get("versions")
    rows: list[tuple[str, Any]] = [
        ("run", about.path), ("kind", about.kind), ("method", about.method), ("state", about.state), ("message", about.message or "-"),
        ("step", _steps(about)), ("best validation", f"{_percent(about.best)} % at step {_or(about.best_step)}"),
        ("last validation", f"{_percent(about.last)} %"), ("time", _clock(about.seconds)),
        *((key, about.info[key]) for key in ("device", "precision", "host", "pid", "started", "finished") if key in about.info),
        ("command", " ".join(map(str, about.info.get("command", [])))),
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
    tests, lines = evaluations(run)
    for line in lines:
        typer.echo(line, err=True)
    if tests:
        typer.echo("")
        cells = [(r.dataset, r.adapt, r.protocol, f"{_percent(r.mean)} ± {_percent(r.half_width)}", r.episodes) for r in tests]
        print_table(("dataset", "adapt", "protocol", "accuracy %", "episodes"), cells, left=("adapt", "protocol"))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two or more runs, or folders of runs.")],
) -> None:
    """Show the recipe keys in which runs differ, and compare their results."""
    from smatcli.cli.output import print_table
    from smatcli.config.yaml_text import flow
    from smatcli.errors import UserError
    from smatcli.runs.overview import differing_settings, evaluations, facts, find_runs

    compared = [facts(path) for path in find_runs(runs)]
    if len(compared) < 2:
        raise UserError("give two or more runs to compare")
    differing = differing_settings(compared)
    rows: list[list[Any]] = [[key, *("-" if v is None else flow(v) for v in values)] for key, values in differing.items()]
    if not rows:
        rows.append(["recipe", *("the same" for _ in compared)])
    rows.append(["state", *(each.state for each in compared)])
    rows.append(["step", *(_steps(each) for each in compared)])
    rows.append(["best validation %", *(_percent(each.best) for each in compared)])
    rows.append(["time", *(_clock(each.seconds) for each in compared)])
    results = [evaluations(each.path) for each in compared]
    for line in (line for _, lines in results for line in lines):
        typer.echo(line, err=True)
    tests = [{(r.dataset, r.adapt, r.protocol): r for r in own} for own, _ in results]
    for key in dict.fromkeys(k for each in tests for k in each):
        rows.append([f"{key[0]} {key[1]} {key[2]} %", *(_percent(each[key].mean) if key in each else "-" for each in tests)])
    print_table(("", *_names(compared)), rows, left=("",))


@app.command()
def tail(
    run: Run,
    count: Annotated[int, typer.Option("-n", "--lines", min=1, help="Number of records.")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Print new records as they are written, until the run ends.")] = False,
) -> None:
    """Print the last records of a run's metrics.jsonl."""
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
        return " ".join(f"{name} {_value(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(about: "RunFacts") -> dict[str, Any]:
    names = ("kind", "method", "state", "step", "steps", "best", "best_step", "last", "seconds", "message")
    return {"run": str(about.path), **{name: getattr(about, name) for name in names}}


def _names(compared: "list[RunFacts]") -> list[str]:
    """Return the shortest unambiguous endings of the runs' paths."""
    for parts in range(1, max(len(each.path.parts) for each in compared) + 1):
        names = ["/".join(each.path.parts[-parts:]) for each in compared]
        if len(set(names)) == len(names):
            return names
    return [str(each.path) for each in compared]


def _steps(about: "RunFacts") -> str:
    return f"{_or(about.step)}/{about.steps}" if about.steps is not None else _or(about.step)


def _percent(share: float | None) -> str:
    return "-" if share is None or share != share else f"{100 * share:.2f}"


def _or(value: Any) -> str:
    return "-" if value is None else str(value)


def _clock(seconds: Any) -> str:
    from smatcli.runs.reporter import clock

    return clock(seconds) if isinstance(seconds, int | float) else "-"
