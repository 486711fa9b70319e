"""`smat export`: write models that can be used without smat."""

from pathlib import Path
from typing import Annotated, Literal

import typer

EPILOG = """
Examples: [bold]smat export runs/smat --support photos/known --out model[/] writes a folder for
timm.create_model("local-dir:model", pretrained=True); [bold]smat export birds.smat --format onnx --out birds.onnx[/] writes a classifier
for onnxruntime; [bold]smat export runs/smat --experts --out experts.safetensors[/] writes the sparse experts.
"""


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="Run directory, or a saved classifier (.smat).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output: a folder (timm), a .onnx or a .safetensors file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the adaptation (adapt.*).")] = None,
    support: Annotated[
        Path | None, typer.Option("--support", help="Support set of the task to export: a folder or ZIP with a folder of images per class.")
    ] = None,
    average: Annotated[bool, typer.Option("--average", help="Export the average of all experts, which does not depend on a task.")] = False,
    form: Annotated[Literal["timm", "onnx"] | None, typer.Option("--format", help="Format: timm (default) or onnx.")] = None,
    experts: Annotated[bool, typer.Option("--experts", help="Export the sparse experts, compressed.")] = False,
    adapt: Annotated[str | None, typer.Option("--adapt", help="Adaptation on the support set. Default: proto.")] = None,
    fit: Annotated[
        Literal["crop", "squash"] | None, typer.Option("--fit", help="Resizing of non-square support images. Default: crop.")
    ] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Skip unreadable support images.")] = False,
    which: Annotated[str, typer.Option("--which", help="Checkpoint of a run: best or last.")] = "best",
) -> None:
    """Write the merged parameters of a task as a plain timm model or an ONNX file, or write the sparse experts of a run.

    A timm folder contains config.json and model.safetensors, which timm.create_model loads strictly. An ONNX file maps images [B, 3, S, S]
    in [0, 1] to features and, with --support, to logits. The outputs are compared with those of the run before anything is written.
    """
    from smatcli.errors import UserError

    if experts:
        given: dict[str, object] = {"--support": support, "--average": average or None, "--format": form, "--adapt": adapt, "--fit": fit}
        given |= {"--skip-unreadable": skip_unreadable or None, "settings": overrides or None}
        if extra := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{extra[0]}: cannot be combined with --experts; remove it")

    from smatcli.deploy.export import export as write
    from smatcli.deploy.export import export_experts
    from smatcli.deploy.folder import Fitting
    from smatcli.runs.reporter import auto_reporter

    reporter = auto_reporter()
    if experts:
        size, dense = export_experts(source, out, which, reporter)
        typer.echo(f"{out}: {size / 1e6:.2f} MB, {dense / size:.1f} times smaller than dense experts ({dense / 1e6:.2f} MB)")
        return
    fitting = Fitting(support, adapt, tuple(overrides or ()), fit, skip_unreadable)
    typer.echo(write(source, out, form or "timm", fitting, average, which, reporter))
