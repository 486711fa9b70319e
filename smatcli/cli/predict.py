"""`smat predict`: classify your own images."""

from pathlib import Path
from typing import Annotated, Literal

import typer

EPILOG = """
Example: [bold]smat predict --model runs/smat --support photos/known --images photos/new --out labels.csv --sheet labels.png[/]. Save the
classifier with [bold]--save birds.smat[/], and use it later without the support images with [bold]--model birds.smat[/]. Set options of
the adaptation as KEY=VALUE, such as adapt.flip.rounds=3.
"""


def predict(
    model: Annotated[Path, typer.Option("--model", help="Run directory, or a saved classifier (.smat).")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the adaptation (adapt.*).")] = None,
    support: Annotated[Path | None, typer.Option("--support", help="Folder or ZIP with a folder of images per class.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Images to classify: a folder (searched recursively), ZIP or file.")
    ] = None,
    adapt: Annotated[str | None, typer.Option("--adapt", help="Adaptation. Default: proto.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Table, .csv or .json. Default: CSV on stdout.")] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Contact sheet of the predictions, .png.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Save the classifier to this file (.smat).")] = None,
    reject: Annotated[
        str | None,
        typer.Option(
            "--reject", help="Reject images beyond this cosine distance; auto: the distance that includes 95 % of the support images."
        ),
    ] = None,
    fit: Annotated[
        Literal["crop", "squash"] | None,
        typer.Option("--fit", help="Resizing of non-square images: centre crop or squash. Default: crop."),
    ] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="List unreadable images instead of stopping.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite existing files.")] = False,
    which: Annotated[str, typer.Option("--which", help="Checkpoint of a run: best or last.")] = "best",
    device: Annotated[str | None, typer.Option("--device", help="Device: auto, cpu, cuda, cuda:1. Default: the recipe's.")] = None,
) -> None:
    """Learn classes from a folder of images per class, and classify other images.

    The table has a row per image: file, class, probability, the three most probable classes, and the cosine distance to the nearest class
    prototype, which is large for images that belong to no class (--reject). If an error occurs, nothing is written.
    """
    limit = _number(reject)
    from smatcli.deploy.folder import Fitting, ModelSource, Outputs, predict_folder
    from smatcli.runs.reporter import auto_reporter

    reporter = auto_reporter()
    fitting = Fitting(support, adapt, tuple(overrides or ()), fit, skip_unreadable)
    table = predict_folder(ModelSource(model, which, device), fitting, images, Outputs(out, sheet, save, replace), limit, reporter)
    if table is not None:
        if out is None:
            typer.echo(table.csv(), nl=False)
        counts = ", ".join(f"{count} {status}" for status, count in table.counts().items() if count)
        reporter.line(f"{len(table.rows)} images: {counts}")
    for path in (out, sheet, save):
        if path is not None:
            reporter.line(f"wrote {path}")


def _number(text: str | None) -> float | Literal["auto"] | None:
    from smatcli.errors import UserError

    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--reject {text}: give a cosine distance such as 0.5, or auto") from None
