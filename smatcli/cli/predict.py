"""`smat predict`: classify images of one's own."""

from pathlib import Path
from typing import Annotated, Literal

import typer

EPILOG = """
Example: [bold]smat predict --model runs/smat --support photos/known --images photos/new --out labels.csv --sheet labels.png[/]; keep the
classifier with [bold]--save birds.smat[/], and use it without the support images by [bold]--model birds.smat[/]. Settings of the
adaptation are KEY=VALUE: adapt.flip.rounds=3.
"""


def predict(
    model: Annotated[Path, typer.Option("--model", help="run directory, or a saved classifier (.smat)")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings of the adaptation (adapt.*)")] = None,
    support: Annotated[Path | None, typer.Option("--support", help="folder or ZIP with one folder of images per class")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="images to classify: a folder (at any depth), a ZIP, or one file")] = None,
    adapt: Annotated[str | None, typer.Option("--adapt", help="adaptation by name (default: proto)")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="table, .csv or .json (default: CSV on stdout)")] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="picture of the predictions, .png")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="keep the classifier in this file (.smat)")] = None,
    reject: Annotated[
        str | None,
        typer.Option("--reject", help="no class for images farther than this cosine distance; auto: what holds 95 % of the support"),
    ] = None,
    fit: Annotated[
        Literal["crop", "squash"] | None, typer.Option("--fit", help="images that are not square: centre crop, or squashed (default: crop)")
    ] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="list unreadable images instead of stopping")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="overwrite the files if they exist")] = False,
    which: Annotated[str, typer.Option("--which", help="checkpoint of a run: best or last")] = "best",
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 (default: the recipe's)")] = None,
) -> None:
    """Learn the classes of a folder of class folders, and classify other images with them.

    The table has a line for every image: file, class, probability, the three most probable classes, and the cosine distance to the nearest
    class prototype, which is large for what belongs to none of the classes (--reject). Nothing is written unless all went well.
    """
    limit = _number(reject)
    from smatcli.deploy.folder import Fitting, Outputs, predict_folder
    from smatcli.runs.reporter import auto_reporter

    reporter = auto_reporter()
    fitting = Fitting(support, adapt, tuple(overrides or ()), fit, skip_unreadable)
    table = predict_folder(model, fitting, images, Outputs(out, sheet, save, replace), limit, which, device, reporter)
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
