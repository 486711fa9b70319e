"""`smat recipes`: list, print, copy and check recipes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from smatcli.config import Loaded

app = typer.Typer(help="List, print, copy and check recipes (YAML experiments).", no_args_is_help=True)


def header(text: str) -> str:
    """Return the first sentence of a recipe's opening comment, without its command lines."""
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#") or (words and words[-1].endswith(".")):
            break
        comment = line.lstrip("# ").rstrip()
        if not comment.startswith(("smat ", "make ")):
            words += comment.split()
    sentence = " ".join(words)
    return sentence.partition(". ")[0].removesuffix(".")


@app.command("ls")
def list_recipes() -> None:
    """List the packaged recipes with a description."""
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
    """Print a recipe file, including comments."""
    from smatcli.config import find_recipe

    typer.echo(_text(find_recipe(recipe)), nl=False)


@app.command("cp", no_args_is_help=True)
def copy(
    recipe: Annotated[str, typer.Argument(help="Name (quickstart/smat) or path.")],
    target: Annotated[Path, typer.Argument(help="New file, or the folder to copy it to.")] = Path("."),
) -> None:
    """Copy a recipe for editing. An existing file is never overwritten."""
    from smatcli.config import find_recipe
    from smatcli.errors import UserError
    from smatcli.safe.files import atomic_write_text

    source = find_recipe(recipe)
    file = target / source.name if target.is_dir() else target
    if file.exists():
        raise UserError(f"{file} exists; choose another name")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent}: this folder does not exist; create it first")
    atomic_write_text(file, _text(source))
    typer.echo(f"{source} -> {file}")


@app.command("validate")
def validate(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Names or paths; key.path=value changes the preceding recipe. Default: all.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only whether each recipe is valid.")] = False,
) -> None:
    """Check recipes and print every resolved value with its origin.

    Without an argument, all packaged recipes are checked and no values are printed.
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
    """Group each recipe with the overrides that follow it. A word with "=" is an override unless it is an existing file."""
    from smatcli.errors import UserError

    jobs: list[tuple[str, list[str]]] = []
    for word in words:
        if "=" in word and not Path(word).exists():
            if not jobs:
                raise UserError(f"override {word!r} comes before any recipe; give the recipe first")
            jobs[-1][1].append(word)
        else:
            jobs.append((word, []))
    return jobs


def _print(loaded: "Loaded") -> None:
    from rich.table import Table
    from rich.text import Text

    from smatcli.cli.output import console
    from smatcli.config import value_text
    from smatcli.safe.tree import flatten

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    for key, value in flatten(loaded.recipe.model_dump(mode="json")).items():
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
