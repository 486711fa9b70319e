"""`smat recipes`: list, print, copy and check recipes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from smatcli.config import Loaded

app = typer.Typer(help="List, print, copy and check recipes (YAML experiments).", no_args_is_help=True)


def header(text: str) -> str:
    """The first sentence of a recipe's opening comment, the command lines left out."""
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#") or (words and words[-1].endswith(".")):
            break
        said = line.lstrip("# ").rstrip()
        if not said.startswith(("smat ", "make ")):
            words += said.split()
    sentence = " ".join(words)
    return sentence.partition(". ")[0].removesuffix(".")


@app.command("ls")
def list_recipes() -> None:
    """List the packaged recipes with the first line of each."""
    from rich.table import Table
    from rich.text import Text

    from smatcli.cli.output import console
    from smatcli.config import packaged_recipes

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, path in packaged_recipes().items():
        table.add_row(Text(name), Text(header(path.read_text(encoding="utf-8"))))
    console().print(table)


@app.command("cat", no_args_is_help=True)
def cat(recipe: Annotated[str, typer.Argument(help="Name (quickstart/smat) or path.")]) -> None:
    """Print a recipe as it is written, comments included."""
    from smatcli.config import find_recipe

    typer.echo(_text(find_recipe(recipe)), nl=False)


@app.command("cp", no_args_is_help=True)
def copy(
    recipe: Annotated[str, typer.Argument(help="Name (quickstart/smat) or path.")],
    target: Annotated[Path, typer.Argument(help="New file, or a folder to put it in.")] = Path("."),
) -> None:
    """Copy a recipe, to change it; an existing file is never overwritten."""
    from smatcli.config import find_recipe
    from smatcli.errors import UserError
    from smatcli.safe.files import atomic_write_text

    source = find_recipe(recipe)
    file = target / source.name if target.is_dir() else target
    if file.exists():
        raise UserError(f"{file} exists; choose another name")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent}: there is no such folder; make it first")
    atomic_write_text(file, _text(source))
    typer.echo(f"{source} -> {file}")


@app.command("validate")
def validate(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Names or paths; a key.path=value changes the one before. Default: all.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say which recipes are valid.")] = False,
) -> None:
    """Check recipes and print every resolved value with its origin.

    Without an argument all packaged recipes are checked, briefly.
    """
    from smatcli.config import load_recipe, packaged_recipes
    from smatcli.errors import UserError

    jobs = _jobs(paths or [])
    brief = quiet or not jobs
    errors = []
    for name, overrides in jobs or [(str(path), []) for path in packaged_recipes().values()]:
        try:
            loaded = load_recipe(name, overrides)
        except UserError as error:
            errors.append(str(error))
            continue
        typer.echo(f"{loaded.path}: valid {loaded.recipe.kind} recipe")
        if not brief:
            _print(loaded)
    for line in errors[:-1]:
        typer.echo(line, err=True)
    if errors:
        raise UserError(errors[-1])


def _jobs(words: list[str]) -> list[tuple[str, list[str]]]:
    """Recipes with the overrides that follow each; a word with "=" that is no file is an override."""
    from smatcli.errors import UserError

    jobs: list[tuple[str, list[str]]] = []
    for word in words:
        if "=" in word and not Path(word).exists():
            if not jobs:
                raise UserError(f"override {word!r} stands before any recipe; write the recipe first")
            jobs[-1][1].append(word)
        else:
            jobs.append((word, []))
    return jobs


def _print(loaded: "Loaded") -> None:
    from rich.table import Table
    from rich.text import Text

    from smatcli.cli.output import console
    from smatcli.config import leaves, value_text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    for key, value in leaves(loaded.recipe.model_dump(mode="json")).items():
        origin = loaded.origins[key]
        style = {"default": "dim", "command line": "yellow"}.get(origin, "green")
        table.add_row(f"  {key}", Text(value_text(value)), Text(origin.split(" ")[0] if origin.startswith("file") else origin, style=style))
    console().print(table)


def _text(path: Path) -> str:
    from smatcli.errors import UserError

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; a recipe is YAML") from None
