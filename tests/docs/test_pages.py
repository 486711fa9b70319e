"""Pages: links and anchors resolve, commands and options exist, recipes exist, and the site builds."""

import pkgutil
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml

from smatcli.cli import app
from tests.docs.pages import PAGES, ROOT, anchors, commands, links

OWN = [page for page in PAGES if "cli" not in page.parts]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in links(page):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)}: {target}: there is no such file"
        if ROOT / "docs" in page.parents:
            assert file.is_relative_to(ROOT / "docs"), f"{name(page)}: {target} leads out of the site; name the file instead"
        if anchor:
            assert anchor in anchors(file), f"{name(page)}: {target}: no such heading ({', '.join(sorted(anchors(file)))})"


@cache
def root():
    return typer.main.get_command(app)


def problem(command: str) -> str:
    """Return the error of a command line as shown on a page, or an empty string."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        return f"cannot be read: {error}"
    here, path = root(), ["smat"]
    options = {option for p in here.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h", "--install-completion"}
    for i, word in enumerate(words):
        children = getattr(here, "commands", {})
        if word.startswith("-"):
            flag = word.split("=")[0]
            if flag not in options and flag != "--":
                return f"{' '.join(path)} has no option {flag}"
        elif children:
            if word in children:
                here = children[word]
                path.append(word)
                options |= {option for p in here.params for option in (*p.opts, *p.secondary_opts)}
            elif word.isupper() or word in ("...", "npz") or (i == 0 and word.startswith("{")):
                return ""  # a placeholder, or the plugin that a page builds
            else:
                return f"{' '.join(path)} has no {word}"
        elif word.startswith("recipes/") and not list(ROOT.glob(word)):
            return f"there is no {word}"
    return ""


@pytest.mark.parametrize("page", OWN, ids=name)
def test_commands_exist_with_their_options(page):
    wrong = [f"smat {command}: {why}" for command in commands(page) if (why := problem(command))]
    assert wrong == []


def resolves(name: str) -> bool:
    """Whether `a.b.C.d` is a module, or an attribute of one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", OWN, ids=name)
def test_python_names_exist(page):
    names = set(re.findall(r"(?<![\w\"./-])smatcli(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not name.endswith(".py") and not resolves(name)] == []


def test_the_commands_are_found():
    counts = {name(page): len(list(commands(page))) for page in OWN}
    assert counts["README.md"] > 15
    assert counts["docs/reproduce.md"] > 20
    assert counts["docs/tutorial.md"] > 10
    assert counts["docs/faq.md"] > 10


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("trian recipes/quickstart/smat.yaml", "smat has no trian"),
        ("train recipes/quickstart/smat.yaml --reusme", "smat train has no option --reusme"),
        ("data prepare floder x", "smat data prepare has no floder"),
        ("train recipes/none.yaml", "there is no recipes/none.yaml"),
        ("data prepare KIND ...", ""),
        ("eval runs/smat --adapt proto --episodes 5", ""),
    ],
)
def test_a_wrong_command_would_be_seen(command, wrong):
    assert problem(command) == wrong


def test_the_site_has_every_page_that_its_contents_name():
    def files(entry):
        inner = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
        return [entry] if isinstance(entry, str) else [file for one in inner for file in files(one)]

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = files(config["nav"])
    assert all((ROOT / "docs" / file).is_file() for file in listed), listed
    assert len(set(listed)) == len(listed)


@pytest.mark.skipif(find_spec("mkdocs") is None or find_spec("material") is None, reason="mkdocs-material is not installed (extra `docs`)")
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site/tutorial.html").read_text()
    assert "figures/quickstart-gains.png" in page
    assert "fonts.googleapis" not in page
