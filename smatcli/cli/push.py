"""`smat push`: a run to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Example: [bold]smat push runs/smat me/birds-smat[/], after `hf auth login`. Look first with [bold]--stage folder[/]."


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
    hub_id: Annotated[str | None, typer.Argument(metavar="[HUB_ID]", help="OWNER/NAME on the Hugging Face hub")] = None,
    stage: Annotated[Path | None, typer.Option("--stage", help="write what would be uploaded into this folder instead")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="of the model, e.g. mit (default: that of the base weights)")] = None,
    public: Annotated[bool, typer.Option("--public", help="a model that is made anew is public (default: private)")] = False,
    which: Annotated[str, typer.Option("--which", help="checkpoint: best or last")] = "best",
) -> None:
    """Upload a run with a model card: recipe, one checkpoint, the summaries of its meta-tests; no optimizer state, no images."""
    from smatcli.errors import UserError

    if (hub_id is None) == (stage is None):
        raise UserError("give either HUB_ID (OWNER/NAME) to upload, or --stage FOLDER to look at what would be")
    if stage is not None and public:
        raise UserError("--public: is not read with --stage; leave it out")
    from smatcli.deploy import hub
    from smatcli.runs.reporter import auto_reporter

    if stage is not None:
        typer.echo(hub.stage(run, stage, which, licence))
    else:
        assert hub_id is not None
        typer.echo(hub.push(run, hub_id, which, licence, public, auto_reporter()))
