"""Markdown and CSV have the same content as the LaTeX, each with its own escaping."""

import csv
import html
import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smatcli.report.formats.markdown import escape, index, page, table, table_csv
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.runs.statistics import Estimate
from smatcli.safe.text import csv_number

CONTENT = Table(
    "stem",
    "Heading",
    "Caption <b> | x",
    "Dataset",
    ["A|B", "note"],
    [
        Block("In-domain", [Row("traffic_signs", [Cell(Estimate(0.57949, 0.00451), bold=True), Cell(text="3 / 4")])]),
        Block(
            "",
            [Row("<script>", [Cell(), Cell(text="")]), Row("mean", [Cell(Estimate(-0.001, math.nan), signed=True), Cell(text="x")], True)],
        ),
    ],
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("traffic_signs", "traffic_signs"),
        ("_a_", "\\_a\\_"),
        ("a|b", "a\\|b"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("*b* `c` [d](e) \\", "\\*b\\* \\`c\\` \\[d\\](e) \\\\"),
        ("a\nb\r", "a b "),
        ("&amp;", "&amp;amp;"),
    ],
)
def test_escape(text, shown):
    assert escape(text) == shown


@given(st.text())
def test_escape_can_be_undone_and_holds_no_markup(text):
    found = escape(text)
    assert "\n" not in found
    assert "<" not in found
    assert not re.search(r"(?<!\\)(\\\\)*\|", found)
    plain = re.sub(r"\\(.)", r"\1", found.replace("&#47;", "/"))
    assert html.unescape(plain) == "".join(
        " " if c.isspace() and not c.isprintable() and c in "\t\n\r\x0b\x0c" else c for c in html.unescape(plain)
    )


def test_table():
    assert table(CONTENT).splitlines() == [
        "| Dataset | A\\|B | note |",
        "| --- | ---: | ---: |",
        "| **In-domain** |  |  |",
        "| traffic_signs | **57.9** ± 0.5 | 3 / 4 |",
        "| &lt;script&gt; |  |  |",
        "| *mean* | -0.1 | x |",
    ]
    assert page(CONTENT).endswith("\nCaption &lt;b&gt; \\| x\n")


def test_csv_has_more_digits_and_plain_names():
    lines = list(csv.reader(io.StringIO(table_csv(CONTENT))))
    assert lines[0] == ["Dataset", "block", "A|B", "A|B half-width", "A|B bold", "note"]
    assert lines[1] == ["traffic_signs", "In-domain", "57.949", "0.451", "1", "3 / 4"]
    assert lines[2] == ["<script>", "", "", "", "0", ""]
    assert lines[3] == ["mean", "", "-0.100", "", "0", "x"]
    assert csv_number(-1e-9, 3) == "0.000"
    assert csv_number(math.inf, 3) == ""


def test_index_lists_everything():
    text = index("A_b <1>", [CONTENT], [("Picture", "figures/a b", "What it shows")], ["runs/x: skipped"])
    assert text.startswith("# A_b &lt;1&gt;\n")
    assert "## Heading" in text
    assert "(stem.tabular.tex)" in text
    assert table(CONTENT) in text
    assert "![Picture](figures/a%20b.png)" in text
    assert "(figures/a%20b.csv)" in text
    assert "- runs/x: skipped" in text
