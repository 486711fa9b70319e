"""The package in docs/extend.md, installed next to smat as `pip install` would."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.M | re.S)


def files() -> dict[str, str]:
    """Return {path: text} of every titled code block of the page."""
    return {path: text for _, path, text in BLOCK.findall((ROOT / "docs/extend.md").read_text())}


def install(site: Path, **entries: dict[str, str]) -> None:
    """Write the package and its metadata below `site`; `entries` (group -> name -> object) replaces the entry points of a group."""
    made = files()
    project = tomllib.loads(made.pop("pyproject.toml"))["project"]
    for path, text in made.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (site / project["name"] / "__init__.py").touch()
    groups = project["entry-points"] | {f"smatcli.{group}": own for group, own in entries.items()}
    write_metadata(site, project["name"], project["version"], groups)


def write_metadata(site: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> None:
    """Write the metadata that `pip install` writes next to the code of a package."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in own.items()) for group, own in groups.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines))
