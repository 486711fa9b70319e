"""`smat data episodes`: draw episodes with a protocol, write them to a list, and view one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from smatcli.cli.options import split_overrides
from smatcli.cli.output import print_table

if TYPE_CHECKING:
    import numpy as np

ROOT_HELP = "Folder of the stores, searched recursively. Default: $SMAT_DATA, else data."


def episodes(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME... [KEY=VALUE]...",
            help="Stores, dataset_spec.json files, or one episode list (.npz) to read; protocol settings such as queries=15.",
        ),
    ],
    episode: Annotated[
        str | None,
        typer.Option("--episode", help="Protocol: meta-dataset (default), md-oneshot, variable, 5w5s, 5w1s15q, ...", show_default=False),
    ] = None,
    split: Annotated[Literal["train", "valid", "test", "all"], typer.Option("--split", help="Split of the classes.")] = "test",
    count: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Episodes per dataset.")] = 600,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the episodes, like eval.seed.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Episode list to write (.npz).", show_default=False)] = None,
    show: Annotated[Path | None, typer.Option("--show", help="Draw an episode to this image file.", show_default=False)] = None,
    index: Annotated[int, typer.Option("--index", min=0, help="Index of the episode for --show.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite existing files.")] = False,
    root: Annotated[Path | None, typer.Option("--root", help=ROOT_HELP, show_default=False)] = None,
) -> None:
    """Draw the episodes of `smat eval`, show their sizes, and write them to an episode list.

    The same protocol, split and seed give the same episodes on every machine. They are identified by a hash, which is part of every result.
    To evaluate on a list, use `smat eval RUN --episode FILE.npz`. A dataset_spec.json has no images, so only the sizes are shown.
    """
    from smatcli.data.episodes.lists import write_list
    from smatcli.engine.evaluate.draw import draw, read
    from smatcli.errors import UserError

    datasets, settings = split_overrides(names)
    lists = [name for name in datasets if name.endswith(".npz")]
    if not datasets:
        raise UserError("name at least one dataset, e.g. `smat data episodes omniglot --episode meta-dataset`")
    if out is not None and out.exists() and not replace:
        raise UserError(f"{out}: already exists; choose another name, or give --replace")
    if lists:
        if len(datasets) > 1 or settings or episode or out:
            raise UserError(f"{lists[0]}: an episode list can only be shown; remove other names, settings, --episode and --out")
        drawn = read(lists[0], root, show is not None)
    else:
        drawn = draw(datasets, episode or "meta-dataset", settings, split, count, seed, root)
    if out is not None and len(drawn.lists) < len(drawn.drawn):
        raise UserError(f"{out}: a dataset_spec.json has no images, so it has no episode list; give stores")
    for note in drawn.notes:
        typer.echo(note, err=True)
    rows: list[list[Any]] = [
        [d.dataset, d.protocol, len(d.ways), _spread(d.ways), _spread(d.support), _spread(d.query), d.hash[:12] or "-"] for d in drawn.drawn
    ]
    print_table(["dataset", "protocol", "episodes", "ways", "support", "query", "hash"], rows, left=("protocol", "hash"))
    if out is not None:
        typer.echo(f"{out}: sha256 {write_list(out, drawn.lists)}")
    if show is not None:
        typer.echo(drawn.show(index, show, replace))


def _spread(values: "np.ndarray") -> str:
    """Return a range as `5 to 50, mean 27.4`, or the value if all are equal."""
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}, mean {values.mean():.1f}"
