"""`smat data episodes`: draw episodes by a protocol, keep them in a file, look at one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from smatcli.cli.options import split_overrides
from smatcli.cli.output import print_table

if TYPE_CHECKING:
    import numpy as np

ROOT_HELP = "Folder of the stores, searched with its subfolders, by default $SMAT_DATA, else data."


def episodes(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME... [KEY=VALUE]...",
            help="Stores, dataset_spec.json files, or one list (.npz) to read; and settings of the protocol such as queries=15.",
        ),
    ],
    episode: Annotated[
        str | None,
        typer.Option("--episode", help="Protocol: meta-dataset (default), md-oneshot, variable, 5w5s, 5w1s15q, ...", show_default=False),
    ] = None,
    split: Annotated[Literal["train", "valid", "test", "all"], typer.Option("--split", help="Classes that are drawn from.")] = "test",
    count: Annotated[int, typer.Option("--episodes", "-n", min=1, help="Episodes a dataset.")] = 600,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the episodes, as eval.seed.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File of the list, .npz.", show_default=False)] = None,
    show: Annotated[Path | None, typer.Option("--show", help="Draw one episode into this picture file.", show_default=False)] = None,
    index: Annotated[int, typer.Option("--index", min=0, help="Number of the episode that --show draws.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite files that exist.")] = False,
    root: Annotated[Path | None, typer.Option("--root", help=ROOT_HELP, show_default=False)] = None,
) -> None:
    """Draw the episodes that `smat eval` would ask, say how large they are, and write them as a fixed list.

    The same protocol, split and seed give the same episodes everywhere. The hash names the questions: it stands in every result, and a
    list in a file (`smat eval RUN --episode FILE.npz`) asks the same again. A dataset_spec.json has no images; its episodes are described.
    """
    from smatcli.data.episodes.lists import write_list
    from smatcli.engine.evaluate.draw import draw, read
    from smatcli.errors import UserError

    datasets, settings = split_overrides(names)
    lists = [name for name in datasets if name.endswith(".npz")]
    if not datasets:
        raise UserError("name at least one dataset, e.g. `smat data episodes omniglot --episode meta-dataset`")
    if out is not None and out.exists() and not replace:
        raise UserError(f"{out}: exists already; choose another name, or give --replace")
    if lists:
        if len(datasets) > 1 or settings or episode or out:
            raise UserError(f"{lists[0]}: a list is only read; leave out other names, settings, --episode and --out")
        found = read(lists[0], root, show is not None)
    else:
        found = draw(datasets, episode or "meta-dataset", settings, split, count, seed, root)
    if out is not None and len(found.lists) < len(found.drawn):
        raise UserError(f"{out}: a specification has no images to list; name stores")
    for note in found.notes:
        typer.echo(note, err=True)
    rows: list[list[Any]] = [
        [d.dataset, d.protocol, len(d.ways), _spread(d.ways), _spread(d.support), _spread(d.query), d.hash[:12] or "-"] for d in found.drawn
    ]
    print_table(["dataset", "protocol", "episodes", "ways", "support", "query", "hash"], rows, left=("protocol", "hash"))
    if out is not None:
        typer.echo(f"{out}: sha256 {write_list(out, found.lists)}")
    if show is not None:
        typer.echo(found.show(index, show, replace))


def _spread(values: "np.ndarray") -> str:
    """`5 to 50, mean 27.4`, or the one value."""
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}, mean {values.mean():.1f}"
