"""`smat pull`: download a run from the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Example: [bold]smat pull me/birds-smat --out runs/birds[/]. For official checkpoints use `smat import`."


def pull(
    hub_id: Annotated[str, typer.Argument(metavar="HUB_ID", help="OWNER/NAME on the Hugging Face hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory to create.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit. Default: the latest.")] = None,
) -> None:
    """Download a run that was uploaded by `smat push`, for use with predict, eval and export.

    The run is checked, and no code in it is executed.
    """
    from smatcli.deploy import hub
    from smatcli.runs.reporter import auto_reporter

    typer.echo(hub.pull(hub_id, out, revision, auto_reporter()).path)
