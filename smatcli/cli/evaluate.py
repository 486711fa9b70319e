"""`smat eval`: meta-test runs and print their table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli.options import check_checkpoint, comma_list, split_overrides

if TYPE_CHECKING:
    from rich.table import Table

    from smatcli.runs.results import SummaryRow

EPILOG = """
Example: [bold]smat eval runs/smat runs/smat2 --adapt proto --adapt flip --episodes 600[/]. Any eval.* or adapt.* value of the recipe can
be set as key=value. A second call continues what was interrupted and adds the episodes or datasets that are missing.
"""


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="run directories, and recipe values such as eval.seed=1")
    ],
    adapt: Annotated[
        list[str] | None, typer.Option("--adapt", help="proto, flip, full, lora, joint, ...; repeat for several (default: eval.adapt)")
    ] = None,
    datasets: Annotated[str | None, typer.Option("--datasets", help="only these: a,b,c (default: all of data.id and data.ood)")] = None,
    episodes: Annotated[int | None, typer.Option("--episodes", min=1, help="episodes a dataset (default: eval.episodes)")] = None,
    episode: Annotated[
        str | None,
        typer.Option("--episode", help="protocol: meta-dataset, md-oneshot, variable, 5w5s, 5w1s15q, ...; or the file of an episode list"),
    ] = None,
    ways: Annotated[str | None, typer.Option("--ways", help="classes of a fixed episode: 5, or 5-10")] = None,
    shots: Annotated[str | None, typer.Option("--shots", help="support images a class: 5, or 1-5")] = None,
    queries: Annotated[int | None, typer.Option("--queries", min=1, help="query images a class")] = None,
    flip_loss: Annotated[
        str | None, typer.Option("--flip-loss", help="what flip and exhaustive minimise: support, leave-one-out or augmented")
    ] = None,
    search: Annotated[
        str | None,
        typer.Option("--search", help="where learning rates are chosen: valid (default), paper (test episodes, as the papers did) or none"),
    ] = None,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="record the query accuracy after every gradient step (never used for choosing)")
    ] = False,
    which: Annotated[str, typer.Option("--which", help="checkpoint: best or last")] = "best",
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 (default: the recipe's)")] = None,
) -> None:
    """Meta-test runs on episodes of the test classes; writes eval/<adapt>-<protocol>/ (results.h5, summary.csv) and prints a table."""
    from smatcli.errors import UserError

    check_checkpoint(which)
    folders, overrides = split_overrides(runs)
    if not folders:
        raise UserError("give at least one run directory, e.g. `smat eval runs/smat --adapt proto`")
    options = {"episode.ways": _range(ways), "episode.shots": _range(shots), "episode.queries": queries}
    overrides += [f"eval.{key}={value}" for key, value in options.items() if value is not None]
    if episode is not None:
        # the name stands for all its settings, so it comes before those that change single ones
        overrides.insert(0, "eval.episode.kind=fixed" if episode == "fixed" else f"eval.episode={episode}")
    overrides += [f"adapt.{name}.loss={flip_loss}" for name in ("flip", "exhaustive")] if flip_loss is not None else []
    overrides += [f"adapt.search.kind={search}"] if search is not None else []
    overrides += [f"adapt.{name}.trajectory=true" for name in ("full", "lora", "joint", "dipa")] if trajectory else []
    names = comma_list("--datasets", datasets, "birds,cars")

    from smatcli.device import reuse_memory
    from smatcli.engine.evaluate.evaluation import evaluate as run_evaluation
    from smatcli.engine.evaluate.questions import choose_datasets, plan
    from smatcli.runs.reporter import auto_reporter

    for folder in folders:
        choose_datasets(plan(folder, adapt, episodes, overrides), names)
    reuse_memory()
    reporter = auto_reporter()
    columns = []
    for folder in dict.fromkeys(folders):
        columns += run_evaluation(folder, adapt, names, episodes, overrides, which, device, reporter)
    show(columns)


def _range(text: str | None) -> str | None:
    """`5-10` as the recipe's [5, 10]; everything else as it is."""
    if text is None:
        return None
    low, dash, high = text.partition("-")
    return f"[{low}, {high}]" if dash and low.strip().isdecimal() and high.strip().isdecimal() else text


def show(folders: Sequence[Path]) -> None:
    """Print the summaries of evaluation folders side by side, and where they are."""
    from smatcli.cli.output import console
    from smatcli.runs.results import read_summary

    columns = [read_summary(folder / "summary.csv") for folder in folders]
    typer.echo(heading(columns))
    console().print(table(columns))
    for folder in folders:
        typer.echo(folder / "summary.csv")


def heading(columns: "Sequence[Sequence[SummaryRow]]") -> str:
    """What the table's numbers are: protocols and numbers of episodes."""
    protocols = sorted({row.protocol.rsplit("-", 1)[0] for rows in columns for row in rows})
    counts = {row.episodes for rows in columns for row in rows}
    return f"accuracy (%), {', '.join(protocols)}, {' to '.join(str(n) for n in sorted({min(counts), max(counts)}))} episodes a dataset"


def table(columns: "Sequence[Sequence[SummaryRow]]") -> "Table":
    """Datasets by evaluations: the in-domain block with its average, then the out-of-domain one; percent, mean ± 95 % half-width."""
    from rich.table import Table

    from smatcli.runs.results import average

    made = Table()
    made.add_column("dataset")
    several = len({row.run for rows in columns for row in rows}) > 1
    for rows in columns:
        made.add_column(f"{rows[0].run}\n{rows[0].adapt}" if several else rows[0].adapt, justify="right")
    for domain in ("ID", "OOD"):
        cells = [{row.dataset: (row.mean, row.half_width) for row in rows if row.domain == domain} for rows in columns]
        names = list(dict.fromkeys(name for column in cells for name in column))
        for name in names:
            made.add_row(name, *(percent(column.get(name)) for column in cells))
        if names:
            complete = [average(list(column.values())) if len(column) == len(names) else None for column in cells]
            made.add_row(f"{domain} average", *(percent(pair) for pair in complete), style="bold", end_section=True)
    return made


def percent(pair: tuple[float, float] | None) -> str:
    """`57.3 ± 0.6` of shares; a dash for what is not known."""
    if pair is None or pair[0] != pair[0]:
        return "-"
    return f"{100 * pair[0]:.1f}" + (f" ± {100 * pair[1]:.1f}" if pair[1] == pair[1] else "")
