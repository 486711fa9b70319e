"""`smat import`: official checkpoints become runs."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Example: [bold]smat import smat_vits16.pt --out runs/official[/], then [bold]smat eval runs/official data.root=stores[/]. The run's recipe
names Meta-Dataset's stores; others are named here or at smat eval (data.root, data.id, data.ood). A ViT of unusual width needs
backbone.args.num_heads=N. Files are read without running any code in them.
"""


def import_(
    source: Annotated[
        str, typer.Argument(metavar="FILE|HUB_ID", help="checkpoint of SMAT or PMF: a file, or OWNER/NAME on the Hugging Face hub")
    ],
    out: Annotated[Path, typer.Option("--out", help="run directory that is made")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="recipe values, e.g. data.root=stores")] = None,
    route: Annotated[
        str, typer.Option("--route", help="learned; or uniform: equal scores for all experts, where the router's keys were not saved")
    ] = "learned",
) -> None:
    """Make a run of an official checkpoint (SMAT's releases of both ages, PMF's), which smat eval takes like any other.

    Masks, scores and embeddings are those of the release, position embeddings at other image sizes included. A key that is missing,
    unexpected or mis-shaped is named, and nothing is written.
    """
    from smatcli.importing import import_checkpoint
    from smatcli.runs.reporter import auto_reporter

    run = import_checkpoint(source, out, overrides or [], route, auto_reporter())
    typer.echo(f"{run.path}: meta-test it with `smat eval {run.path} --adapt proto`")
