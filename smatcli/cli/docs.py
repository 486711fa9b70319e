"""Write a Markdown page per verb from its `--help`: `python -m smatcli.cli.docs FOLDER`."""

import sys
from pathlib import Path
from typing import Any

WIDTH = 100


def pages() -> dict[str, str]:
    """Return the Markdown pages by file name: a page per verb, and `README.md`, which lists them."""
    import typer

    from smatcli.cli import VERBS, app

    root = typer.main.get_command(app)
    commands: dict[str, Any] = root.commands  # type: ignore[attr-defined]
    result = {"README.md": _index({verb: commands[verb] for verb in VERBS})}
    for verb in VERBS:
        text = [f"# smat {verb}", ""]
        for path in _paths(commands[verb], (verb,)):
            if len(path) > 1:
                text += [f"## smat {' '.join(path)}", ""]
            text += ["```text", _help(path), "```", ""]
        result[f"{verb}.md"] = "\n".join(text).rstrip() + "\n"
    return result


def write(folder: Path) -> list[Path]:
    """Write the pages into `folder` and remove pages of verbs that no longer exist."""
    from smatcli.safe.files import atomic_write_text

    wanted = pages()
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.md"):
        if stale.name not in wanted:
            stale.unlink()
    for name, text in wanted.items():
        atomic_write_text(folder / name, text)
    return [folder / name for name in wanted]


def _index(commands: dict[str, Any]) -> str:
    lines = ["# The command line", "", "Generated from each verb's `--help` by `make docs`.", ""]
    lines += [f"- [`smat {verb}`]({verb}.md) {command.get_short_help_str(200)}" for verb, command in commands.items()]
    return "\n".join(lines) + "\n"


def _paths(command: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", {})
    return [path] + [deeper for name, child in children.items() for deeper in _paths(child, (*path, name))]


def _help(path: tuple[str, ...]) -> str:
    from typer.testing import CliRunner

    from smatcli.cli import app

    plain = {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner(env=plain).invoke(app, [*path, "--help"], prog_name="smat")
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


if __name__ == "__main__":
    for page in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/cli")):
        print(page)
