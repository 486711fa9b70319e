"""The command line, with one module per verb, registered in workflow order. Importing it is fast: no torch."""

import importlib
import inspect
import io
import os
import re
import sys
from typing import Annotated

import typer

from smatcli.cli.frame import DEBUG_VARIABLE, Root, catch_signals, closed_pipes
from smatcli.version import __version__

EPILOG = """
Start with [bold]smat recipes ls[/], look at one with [bold]smat recipes cat quickstart/smat[/], and run it:
[bold]smat train quickstart/smat train.steps=200[/]. Every value of a recipe can be set as key.path=value.
"""

# Verb -> module (`eval` and `import` are reserved names). A module has `app` (a group of verbs) or a function of its own name.
VERBS = {
    "data": "data",
    "pretrain": "pretrain",
    "train": "train",
    "import": "import_",
    "eval": "evaluate",
    "tune": "tune",
    "segment": "segment",
    "llm": "llm",
    "predict": "predict",
    "export": "export",
    "push": "push",
    "pull": "pull",
    "sweep": "sweep",
    "runs": "runs",
    "analyze": "analyze",
    "report": "report",
    "recipes": "recipes",
    "env": "env",
}

Root.ORDER = tuple(VERBS)

app = typer.Typer(
    name="smat",
    cls=Root,
    help="Sparse meta-tuning of vision transformers for few-shot learning, in and out of the training domains.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"smat {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (also SMAT_DEBUG=1).")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Handle the options that precede the verb."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def _register() -> None:
    for verb, name in VERBS.items():
        module = importlib.import_module(f"smatcli.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb, no_args_is_help=verb != "env", epilog=getattr(module, "EPILOG", None))(getattr(module, name))


def _unwrapped(text: str | None) -> str:
    """Join the lines of each paragraph, because typer would keep the line breaks."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", (text or "").strip())


def _unwrap_help(group: typer.Typer) -> None:
    for command in group.registered_commands:
        command.help = _unwrapped(inspect.getdoc(command.callback))
        command.epilog = _unwrapped(command.epilog)
    for child in group.registered_groups:
        if child.typer_instance is not None:
            _unwrap_help(child.typer_instance)


_register()
_unwrap_help(app)


def main() -> None:
    """Run `smat` (entry point). `--debug` may appear anywhere before `--`."""
    args = sys.argv[1:]
    end = args.index("--") if "--" in args else len(args)
    if "--debug" in args[:end]:
        os.environ[DEBUG_VARIABLE] = "1"
        args = [a for i, a in enumerate(args) if i >= end or a != "--debug"]
    catch_signals()
    for stream in (sys.stdout, sys.stderr):  # file names may not be valid text, and the terminal may not be Unicode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Spinning at OpenMP's barriers slows threads down when cores are shared (benchmarks/RESULTS.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Python processes started by libraries (loader workers, compilers) must not import modules from the current folder either.
    os.environ["PYTHONSAFEPATH"] = "1"
    with closed_pipes():
        app(args, prog_name="smat")
