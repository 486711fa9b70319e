"""`smat push`: upload a run to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Example: [bold]smat push runs/smat me/birds-smat[/], after `hf auth login`. To inspect the files first, use [bold]--stage folder[/]."
)


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    hub_id: Annotated[str | None, typer.Argument(metavar="[HUB_ID]", help="OWNER/NAME on the Hugging Face hub.")] = None,
    stage: Annotated[Path | None, typer.Option("--stage", help="Write the files to this folder instead of uploading them.")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Licence, e.g. mit. Default: the licence of the base weights.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new model public. Default: private.")] = False,
    which: Annotated[str, typer.Option("--which", help="Checkpoint: best or last.")] = "best",
) -> None:
    """Upload a run with a model card, its recipe, one checkpoint and the summaries of its meta-tests.

    The optimizer state and images are not uploaded.
    """
    from smatcli.errors import UserError

    if (hub_id is None) == (stage is None):
        raise UserError("give either HUB_ID (OWNER/NAME) to upload, or --stage FOLDER to write the files there")
    if stage is not None and public:
        raise UserError("--public: cannot be combined with --stage; remove it")
    from smatcli.deploy import hub
    from smatcli.runs.reporter import auto_reporter

    if stage is not None:
        typer.echo(hub.stage(run, stage, which, licence))
    else:
        assert hub_id is not None
        typer.echo(hub.push(run, hub_id, which, licence, public, auto_reporter()))
