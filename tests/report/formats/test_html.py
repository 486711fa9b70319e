"""The HTML page is complete, self-contained and escaped; in a real browser, it has no console output and can be sorted and filtered."""

import base64
import json
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from smatcli.report import ReportOptions, manifest, report
from smatcli.report.formats import html
from smatcli.report.formats.html_tables import HtmlTable, from_grid, from_table
from smatcli.report.formats.run_grids import Grid, differences, environment
from smatcli.report.results.runs import Run
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.runs.statistics import Estimate
from tests.report.browser import Browser, find
from tests.report.fakes import make_study

NASTY = """<script>alert('x')</script> & "quotes" </table> \x00 ]]> {{x}} ünï 中"""
VOID = {"meta", "img", "input", "br"}


class Reader(HTMLParser):
    """Parser that checks closing tags and collects ids, addresses and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.addresses += [given[key] or "" for key in ("src", "href", "action") if key in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def printed(table: HtmlTable) -> str:
    """Return a single table as the page's template renders it."""
    return str(html.templates().from_string('{% from "table.html.j2" import data_table %}{{ data_table(table) }}').render(table=table))


def parsed(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_study(tmp_path_factory.mktemp("study") / "runs", 24)
    info = {"status": "finished", "device": "cpu", "versions": {"torch": "9.9.9"}, "command": ["smat", "train", "<x>"]}
    (root / "smat" / "run.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="module")
def made(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    found = report([study], out, ReportOptions(title=NASTY, formats=["html"]))
    assert found.index == out / "report.html"
    assert found.files == [found.index]
    assert set(out.iterdir()) == {found.index, out / manifest.NAME}
    return found.index


def test_is_one_self_contained_page(made: Path):
    reader = parsed(made.read_text())
    pictures = [a for a in reader.addresses if a.startswith("data:image/png;base64,iVBOR")]
    links = [a for a in reader.addresses if a.startswith("#")]
    assert len(pictures) >= 4
    assert len(pictures) + len(links) == len(reader.addresses)
    assert max(Counter(reader.ids).values()) == 1
    assert {link[1:] for link in links} <= set(reader.ids)
    assert "http" not in made.read_text().replace("http-equiv", "")
    about = ["Accuracy (5w5s10q, 24 episodes)", "Differences between recipes", "method.sparsity.tau", "skipped, a pre-training run"]
    for text in (*about, "torch 9.9.9", "smat train <x>", "5w5s10q-test", "7 runs, 12 evaluations, 7 datasets"):
        assert text in reader.text, text


def test_all_figures_have_the_same_scale(made: Path):
    shown = re.findall(r'width="(\d+)" src="data:image/png;base64,([^"]+)"', made.read_text())
    scales = [Image.open(BytesIO(base64.b64decode(data))).width / int(width) for width, data in shown]
    assert len(scales) >= 4
    assert scales == pytest.approx([scales[0]] * len(scales), rel=0.01)


def test_is_the_same_each_time(study: Path, made: Path, tmp_path: Path):
    both = report([study], tmp_path, ReportOptions(title=NASTY, formats=["files", "html"]))
    assert (tmp_path / "report.html").read_bytes() == made.read_bytes()
    assert both.index == tmp_path / "README.md"
    assert (tmp_path / "figures").is_dir()


def test_all_text_is_escaped(made: Path):
    escaped = html.templates().from_string('<p id="{{ text }}">{{ text }}</p>').render(text=NASTY)
    assert parsed(escaped).text == NASTY.replace("\x00", " ")
    assert parsed(escaped).ids == [NASTY.replace("\x00", " ")]
    reader = parsed(made.read_text())
    assert reader.text.count("<script>alert('x')</script>") > 3
    assert made.read_text().count("<script>") == 1
    rows = [Row(NASTY, [Cell(Estimate(0.5, 0.1), bold=True), Cell(text=NASTY, bold=True)])]
    table = Table("s", "h", NASTY, NASTY, [NASTY, "b"], [Block(NASTY, rows)], [(NASTY, 2)], notes=[NASTY])
    text = printed(from_table(table, "x"))
    assert parsed(text).text.count("<script>alert") == 8
    assert "<script>" not in text


def test_line_breaks_and_surrogates_become_spaces():
    assert html.templates().from_string("{{ text }}").render(text="a\nb\u2028c\ud800d\te") == "a b c d e"


def test_an_undefined_name_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="no attribute 'captoin'"):
        html.templates().from_string("{{ table.captoin }}").render(table=HtmlTable("x", [], []))


def test_style_and_script_can_be_embedded():
    for name in ("report.css", "report.js"):
        assert "</" not in (html.FOLDER / name).read_text("utf-8")


def test_numbers_carry_their_full_value():
    rows = [Row("r", [Cell(Estimate(-0.000123456, 0.01), signed=True), Cell(), Cell(text="1,234"), Cell(text="3 / 4"), Cell(text="0.89")])]
    table = Table("s", "h", "c", "k", list("abcde"), [Block("", [*rows, Row("mean", rows[0].cells, True)])])
    text = printed(from_table(table, "x"))
    assert '<td data-value="-0.000123456">+0.0 ± 1.0</td><td data-value=""></td><td data-value="1234">1,234</td><td>3 / 4</td>' in text
    assert '<td data-value="0.89">0.89</td>' in text
    assert '<tr class="average">' in text


def test_differences_and_environment(tmp_path: Path):
    recipes = [{"a": 1, "b": {"c": [1, 2], "d": "x"}}, {"a": 1, "b": {"c": [1, 3], "d": "x"}, "e": None}]
    runs = [(f"r{i}", Run(tmp_path / str(i), recipe=recipe)) for i, recipe in enumerate(recipes)]
    assert differences(runs) == Grid(["key", "r0", "r1"], [["b.c", "[1, 2]", "[1, 3]"], ["e", "", "null"]])
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "run.json").write_text("{ half")
    assert environment(runs).rows[0][2:] == [""] * 7
    assert parsed(printed(from_grid(environment(runs), "g"))).ids == ["g"]


@pytest.fixture(scope="module")
def browser(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    command = find()
    if command is None or shutil.which("bash") is None:
        pytest.skip("no Chromium on this machine")

    def late(*_: object) -> None:
        raise TimeoutError("the browser does not answer")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    found = Browser(command, tmp_path_factory.mktemp("profile"))
    try:
        found.open(made)
        yield found
    finally:
        found.close()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


ROWS = """(function(t) {{ return Array.from(document.querySelector(t).tBodies).map(b => Array.from(b.rows).filter(r => !r.hidden)
  .map(r => [r.className, r.cells[0].textContent, r.cells.length > 1 ? r.cells[{column}].textContent : ""])) }})("{table}")"""
MAIN = "table[id^=data-table-]"


def rows(browser: Browser, column: int) -> list[list[list[str]]]:
    found: list[list[list[str]]] = browser.run(ROWS.format(table=MAIN, column=column))
    return found


def test_opens_without_console_output_or_requests(browser: Browser, made: Path):
    assert browser.console == []
    assert [a[:60] for a in browser.requested if not a.startswith("data:")] == [made.as_uri()[:60]]
    assert browser.run("document.title").startswith("<script>alert")
    assert browser.run("Array.from(document.images).every(i => i.complete && i.naturalWidth > 100)")
    pixels = np.asarray(Image.open(BytesIO(browser.picture())).convert("L"))
    assert (pixels < 100).mean() > 0.003
    assert (pixels > 200).mean() > 0.5


def test_sorts_within_blocks_and_back(browser: Browser):
    click = f'document.querySelector("{MAIN} thead tr.heads th:nth-child(3) button").click()'
    original = rows(browser, 2)
    for wanted in (True, False):  # numbers: the largest first
        browser.run(click)
        for before, after in zip(original, rows(browser, 2), strict=True):
            free = [r for r in before if r[0] == ""]
            numbers = [float(r[2].split()[0]) for r in after if r[0] == ""]
            assert numbers == sorted(numbers, reverse=wanted)
            assert sorted(r[1] for r in free) == sorted(r[1] for r in after if r[0] == "")
            assert [r[0] for r in after] == [r[0] for r in before]
    assert browser.run(f'document.querySelector("{MAIN} th[aria-sort]").getAttribute("aria-sort")') == "ascending"
    browser.run(click)
    assert rows(browser, 2) == original
    browser.run(f'document.querySelector("{MAIN} thead tr.heads th:nth-child(1) button").click()')
    for body in rows(browser, 2):
        names = [r[1] for r in body if r[0] == ""]
        assert names == sorted(names)
    assert browser.console == []


def test_filters_rows(browser: Browser):
    box = f'var i = document.querySelector("input[data-for=" + CSS.escape(document.querySelector("{MAIN}").id) + "]");'
    browser.run(f'{box} i.value = "TRAFFIC"; i.dispatchEvent(new Event("input"))')
    assert [r[1] for body in rows(browser, 1) for r in body] == ["Out-of-domain", "traffic_signs"]
    browser.run(f'{box} i.value = ""; i.dispatchEvent(new Event("input"))')
    assert sum(len(body) for body in rows(browser, 1)) > 8
