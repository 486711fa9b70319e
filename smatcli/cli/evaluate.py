"""`smat eval`: meta-test runs and print a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli.options import check_checkpoint, comma_list, split_overrides

if TYPE_CHECKING:
    from rich.table import Table

    from smatcli.runs.results import SummaryRow
    from smatcli.runs.statistics import Estimate

EPILOG = """
Example: [bold]smat eval runs/smat runs/smat2 --adapt proto --adapt flip --episodes 600[/]. Any eval.* or adapt.* value of the recipe can
be set as key=value. Running the command again continues an interrupted evaluation and adds missing episodes and datasets.
"""


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Run directories, and recipe values such as eval.seed=1.")
    ],
    adapt: Annotated[
        list[str] | None, typer.Option("--adapt", help="Adaptation: proto, flip, full, lora, joint, ...; repeatable. Default: eval.adapt.")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option("--datasets", help="Datasets to use: a,b,c. Default: all of data.id and data.ood.")
    ] = None,
    episodes: Annotated[int | None, typer.Option("--episodes", min=1, help="Episodes per dataset. Default: eval.episodes.")] = None,
    episode: Annotated[
        str | None,
        typer.Option("--episode", help="Protocol: meta-dataset, md-oneshot, variable, 5w5s, 5w1s15q, ...; or an episode list (.npz)."),
    ] = None,
    ways: Annotated[str | None, typer.Option("--ways", help="Classes per episode (fixed protocols): 5, or 5-10.")] = None,
    shots: Annotated[str | None, typer.Option("--shots", help="Support images per class: 5, or 1-5.")] = None,
    queries: Annotated[int | None, typer.Option("--queries", min=1, help="Query images per class.")] = None,
    flip_loss: Annotated[
        str | None, typer.Option("--flip-loss", help="Loss of flip and exhaustive: support, leave-one-out or augmented.")
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            "--search", help="Data for choosing learning rates: valid (default), paper (test episodes, as in the papers) or none."
        ),
    ] = None,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Record the query accuracy after every gradient step (never used for selection).")
    ] = False,
    which: Annotated[str, typer.Option("--which", help="Checkpoint: best or last.")] = "best",
    device: Annotated[str | None, typer.Option("--device", help="Device: auto, cpu, cuda, cuda:1. Default: the recipe's.")] = None,
) -> None:
    """Meta-test runs on episodes of the test classes.

    Writes results.h5 and summary.csv to RUN/eval/<adapt>-<protocol>/ and prints a table.
    """
    from smatcli.errors import UserError

    check_checkpoint(which)
    folders, overrides = split_overrides(runs)
    if not folders:
        raise UserError("give at least one run directory, e.g. `smat eval runs/smat --adapt proto`")
    options = {"episode.ways": _range(ways), "episode.shots": _range(shots), "episode.queries": queries}
    overrides += [f"eval.{key}={value}" for key, value in options.items() if value is not None]
    if episode is not None:
        # a protocol sets every value, so it comes before the overrides of individual values
        overrides.insert(0, "eval.episode.kind=fixed" if episode == "fixed" else f"eval.episode={episode}")
    overrides += [f"adapt.{name}.loss={flip_loss}" for name in ("flip", "exhaustive")] if flip_loss is not None else []
    overrides += [f"adapt.search.kind={search}"] if search is not None else []
    overrides += [f"adapt.{name}.trajectory=true" for name in ("full", "lora", "joint", "dipa")] if trajectory else []
    names = comma_list("--datasets", datasets, "birds,cars")

    from smatcli.device import reuse_memory
    from smatcli.engine.evaluate.episodes import choose_datasets, plan
    from smatcli.engine.evaluate.evaluation import EvalOptions
    from smatcli.engine.evaluate.evaluation import evaluate as run_evaluation
    from smatcli.runs.reporter import auto_reporter

    for folder in folders:
        choose_datasets(plan(folder, adapt, episodes, overrides), names)
    reuse_memory()
    reporter = auto_reporter()
    columns = []
    for folder in dict.fromkeys(folders):
        columns += run_evaluation(folder, adapt, names, episodes, overrides, EvalOptions(which, device), reporter)
    show(columns)


def _range(text: str | None) -> str | None:
    """Return `5-10` as the recipe's [5, 10], and any other text unchanged."""
    if text is None:
        return None
    low, dash, high = text.partition("-")
    return f"[{low}, {high}]" if dash and low.strip().isdecimal() and high.strip().isdecimal() else text


def show(folders: Sequence[Path]) -> None:
    """Print the summaries of evaluation folders side by side, and their paths."""
    from smatcli.cli.output import console
    from smatcli.runs.results import RESULTS, SUMMARY, read_results

    columns = [read_results(folder / RESULTS).rows for folder in folders]
    typer.echo(heading(columns))
    console().print(table(columns))
    for folder in folders:
        typer.echo(folder / SUMMARY)


def heading(columns: "Sequence[Sequence[SummaryRow]]") -> str:
    """Return the heading of a table: protocols and numbers of episodes."""
    protocols = sorted({row.protocol.rsplit("-", 1)[0] for rows in columns for row in rows})
    counts = {row.episodes for rows in columns for row in rows}
    return f"accuracy (%), {', '.join(protocols)}, {' to '.join(str(n) for n in sorted({min(counts), max(counts)}))} episodes per dataset"


def table(columns: "Sequence[Sequence[SummaryRow]]") -> "Table":
    """Return a table of datasets by evaluations in percent (mean ± 95 % half-width), with in-domain and out-of-domain averages."""
    from rich.table import Table

    from smatcli.runs.statistics import Estimate, average

    result = Table()
    result.add_column("dataset")
    several = len({row.run for rows in columns for row in rows}) > 1
    for rows in columns:
        result.add_column(f"{rows[0].run}\n{rows[0].adapt}" if several else rows[0].adapt, justify="right")
    for domain in ("ID", "OOD"):
        cells = [{row.dataset: Estimate(row.mean, row.half_width) for row in rows if row.domain == domain} for rows in columns]
        names = list(dict.fromkeys(name for column in cells for name in column))
        for name in names:
            result.add_row(name, *(percent(column.get(name)) for column in cells))
        if names:
            complete = [average(list(column.values())) if len(column) == len(names) else None for column in cells]
            result.add_row(f"{domain} average", *(percent(mean) for mean in complete), style="bold", end_section=True)
    return result


def percent(estimate: "Estimate | None") -> str:
    """Return an estimate as `57.3 ± 0.6` percent; a dash for a missing value."""
    if estimate is None or not estimate.known:
        return "-"
    width = f" ± {100 * estimate.half_width:.1f}" if estimate.half_width == estimate.half_width else ""
    return f"{100 * estimate.mean:.1f}{width}"
