"""Find recipes by path or by packaged name."""

from pathlib import Path

from smatcli.errors import UserError, nearest

SUFFIXES = (".yaml", ".yml")


def recipes_root() -> Path:
    """Return the `recipes/` folder of the source tree or, if there is none, of the installed package."""
    package = Path(__file__).resolve().parent.parent
    source = package.parent / "recipes"
    return source if source.is_dir() and (package.parent / "pyproject.toml").is_file() else package / "_recipes"


def packaged_recipes() -> dict[str, Path]:
    """Return the file of every packaged recipe by name ("quickstart/smat"), sorted by name."""
    root = recipes_root()
    files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file()) if root.is_dir() else []
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in files}


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe given by path or by packaged name, with or without `recipes/` and `.yaml`."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{name}: is a folder, not a recipe; give a YAML file (`smat recipes ls` lists examples)")
    packaged = packaged_recipes()
    key = path.as_posix().removeprefix("./").removeprefix("recipes/")
    for suffix in SUFFIXES:
        key = key.removesuffix(suffix)
    if key in packaged:
        return packaged[key]
    beside = [str(p) for p in path.parent.glob("*") if p.suffix in SUFFIXES] if path.parent.is_dir() else []
    hint = nearest(str(name), beside) or nearest(key, list(packaged)) or "; `smat recipes ls` lists the packaged ones"
    raise UserError(f"{name}: this recipe does not exist{hint}")
