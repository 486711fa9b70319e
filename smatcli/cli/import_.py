"""`smat import`: convert official checkpoints to runs."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Example: [bold]smat import smat_vits16.pt --out runs/official[/], then [bold]smat eval runs/official data.root=stores[/]. The recipe of the
run uses the stores of Meta-Dataset; for other stores, set data.root, data.id or data.ood here or in smat eval. A ViT of unusual width
needs backbone.args.num_heads=N. Code in the files is never executed.
"""


def import_(
    source: Annotated[
        str, typer.Argument(metavar="FILE|HUB_ID", help="Checkpoint of SMAT or PMF: a file, or OWNER/NAME on the Hugging Face hub.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Run directory to create.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe values, e.g. data.root=stores.")] = None,
    route: Annotated[
        str, typer.Option("--route", help="Router: learned, or uniform (equal scores for all experts, for releases without router keys).")
    ] = "learned",
) -> None:
    """Convert an official checkpoint (SMAT in the old or new format, or PMF) to a run for smat eval.

    Masks, scores and embeddings equal those of the release, including the position embeddings at other image sizes. If a key is missing or
    unexpected, or a shape is wrong, the error names the key, and nothing is written.
    """
    from smatcli.importing import import_checkpoint
    from smatcli.runs.reporter import auto_reporter

    run = import_checkpoint(source, out, overrides or [], route, auto_reporter())
    typer.echo(f"{run.path}: meta-test it with `smat eval {run.path} --adapt proto`")
