"""The pages of `make docs`: one per verb, complete."""

import typer

from smatcli.cli import VERBS, app
from smatcli.cli.docs import pages, write


def commands(command, path=()):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


def test_every_command_and_option_is_on_its_page():
    made = pages()
    assert set(made) == {"README.md", *(f"{verb}.md" for verb in VERBS)}
    for path, command in commands(typer.main.get_command(app)):
        if path:
            page = made[f"{path[0]}.md"]
            assert f"# smat {' '.join(path)}\n" in page
            for parameter in command.params:
                assert all(option in page for option in parameter.opts if option.startswith("--")), (path, parameter.opts)
    assert "\x1b" not in "".join(made.values())


def test_write_replaces_and_removes(tmp_path):
    (tmp_path / "gone.md").write_text("old")
    (tmp_path / "note.txt").write_text("kept")
    files = write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in files} | {"note.txt"}


def test_committed_pages_cover_every_verb(repo):
    folder = repo / "docs/cli"
    assert {p.stem for p in folder.glob("*.md")} == {"README", *VERBS}, "run `make docs`"
