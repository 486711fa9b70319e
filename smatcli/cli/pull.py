"""`smat pull`: a run from the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Example: [bold]smat pull me/birds-smat --out runs/birds[/]. Official checkpoints come by `smat import`."


def pull(
    hub_id: Annotated[str, typer.Argument(metavar="HUB_ID", help="OWNER/NAME on the Hugging Face hub")],
    out: Annotated[Path, typer.Option("--out", "-o", help="run directory that is made")],
    revision: Annotated[str | None, typer.Option("--revision", help="branch, tag or commit (default: the newest)")] = None,
) -> None:
    """Download a run that `smat push` uploaded, for predict, eval and export; it is checked, and no code in it is run."""
    from smatcli.deploy import hub
    from smatcli.runs.reporter import auto_reporter

    typer.echo(hub.pull(hub_id, out, revision, auto_reporter()).path)
