"""Escaping, number formats, and the compiled document."""

import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smatcli.report.formats.latex import document, escape, number, percent, tabular
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.runs.statistics import UNKNOWN, Estimate

NASTY = r"""a_b & 50% #1 $x$ {y} z~t u^v w\input{/etc/passwd} <|> "q" 'r' `s` [2em] *t a---b ?` !` ,, é ñ ç ß Å ø ł τ Ω Δ ± − “” 中 🙂"""
ENGINES = [name for name in ("pdflatex", "lualatex", "xelatex", "tectonic") if shutil.which(name)]


def small(label: str = "a_b", caption: str = "c") -> Table:
    rows = [Row(label, [Cell(Estimate(0.5, 0.01), bold=True), Cell()]), Row("[4em]", [Cell(text=label), Cell(Estimate(0.1234, math.nan))])]
    average = Row("*average", [Cell(Estimate(-0.004, 0.1), signed=True), Cell(Estimate(0.0, 0.0))], average=True)
    return Table("t", "T", caption, "Dataset", ["SMAT", label], [Block("In-domain", [*rows, average])], [("One & two", 1), ("x", 1)])


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("traffic_signs", r"traffic\_signs"),
        ("50% & more #1", r"50\% \& more \#1"),
        ("a\\b", r"a\textbackslash{}b"),
        ("{x}", r"\{x\}"),
        ("a--b", "a-{}-b"),
        ("---", "-{}-{}-"),
        ("é", r"\'{e}"),
        ("e\u0301", r"\'{e}"),
        ("τ=0.9", r"\ensuremath{\tau}=0.9"),
        ("ΔΣ", r"\ensuremath{\Delta}\ensuremath{\Sigma}"),
        ("中", r"\texttt{U+4E2D}"),
        ("a\n\tb\x00", "a  b "),
    ],
)
def test_escape(text, tex):
    assert escape(text) == tex


@given(st.text())
def test_escape_leaves_plain_ascii_and_balanced_braces(text):
    found = escape(text)
    assert found.isascii()
    assert "\n" not in found
    bare = re.sub(r"\\[\\{}_&%#$]", "", found)
    assert not re.search(r"[_&%#$~\[\]]", bare.replace("{[}", "").replace("{]}", "")) or "\\~" in bare
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0


@pytest.mark.parametrize(
    ("estimate", "options", "tex"),
    [
        (Estimate(0.57949, 0.00451), {}, r"$57.9_{\pm 0.5}$"),
        (Estimate(0.57949, 0.00451), {"digits": 2, "bold": True}, r"$\mathbf{57.95}_{\pm 0.45}$"),
        (Estimate(0.0071, 0.004), {"signed": True}, r"$+0.7_{\pm 0.4}$"),
        (Estimate(-0.0001, 0.004), {"signed": True}, r"$+0.0_{\pm 0.4}$"),
        (Estimate(0.5, math.nan), {}, "$50.0$"),
        (UNKNOWN, {"bold": True}, ""),
    ],
)
def test_number(estimate, options, tex):
    assert number(estimate, **{"digits": 1, **options}) == tex
    assert str(percent(-0.0001, 1)) == "0.0"


def test_tabular_has_the_cells_of_the_table():
    text = tabular(small())
    assert text.startswith("\\begin{tabular}{lrr}\n\\toprule")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    assert r"\multicolumn{1}{c}{One \& two}" in text
    assert r"\cmidrule(lr){2-2}\cmidrule(lr){3-3}" in text
    assert r"a\_b & $\mathbf{50.0}_{\pm 1.0}$ &  \\" in text
    assert "{[}4em{]}" in text
    assert "\n{*}average" in text
    assert tabular(small()) in document(small()).replace("%\n}", "\n}")


@pytest.mark.parametrize(
    "engine", ENGINES or [pytest.param("none", marks=pytest.mark.skip("no LaTeX here: apt-get install texlive-latex-recommended"))]
)
def test_compiles_with_a_real_latex(engine, tmp_path: Path):
    """Compile the document, and the bare tabular in a document without font packages."""
    (tmp_path / "own.tex").write_text(document(replace(small(NASTY, NASTY), notes=[NASTY, "a second note"])), encoding="utf-8")
    (tmp_path / "bare.tabular.tex").write_text(tabular(small(NASTY)), encoding="utf-8")
    (tmp_path / "bare.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{bare.tabular.tex}\\end{document}\n", encoding="utf-8"
    )
    for name in ("own", "bare"):
        options = [] if engine == "tectonic" else ["-halt-on-error", "-interaction=nonstopmode"]
        done = subprocess.run(
            [engine, *options, f"{name}.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120
        )
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / f"{name}.pdf").stat().st_size > 1000
        assert "Missing character" not in done.stdout
