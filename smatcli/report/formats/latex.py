"""Tables as LaTeX (booktabs): a bare `tabular` for \\input, and a complete document. All text is escaped."""

import math
import re
import unicodedata

from smatcli.report.tables.table import Cell, Row, Table
from smatcli.runs.statistics import Estimate

_PLAIN = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\ensuremath{''}",
    "`": r"\textquoteleft{}",
    "'": r"\textquoteright{}",
    # at the start of a row, a bracket or an asterisk would be parsed as an argument of the `\\` before it
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
_LETTERS = {
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}",
    "å": r"\aa{}", "Å": r"\AA{}", "ı": r"\i{}", "–": r"\textendash{}", "—": r"\textemdash{}", "…": r"\dots{}", "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}", "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}", "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "−": r"\ensuremath{-}", "·": r"\ensuremath{\cdot}", "°": r"\ensuremath{^\circ}", "≤": r"\ensuremath{\le}", "≥": r"\ensuremath{\ge}",
    "µ": r"\ensuremath{\mu}", "→": r"\ensuremath{\to}", "✓": r"\ensuremath{\surd}", "∞": r"\ensuremath{\infty}", "•": r"\textbullet{}",
}  # fmt: skip
_LIGATURE = re.compile(r"([-,])(?=\1)")
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"', "\u030a": "r",
    "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c",
}  # fmt: skip
UPRIGHT = 14  # columns; a table with more has rotated heads and a landscape page
_GREEK = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "omicron", "pi",
    "rho", "varsigma", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
]  # fmt: skip
_GREEK_CAPITALS = {"Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"}


def escape(text: str) -> str:
    """Escape `text` for any LaTeX engine and font encoding; a character without a LaTeX command becomes its code (U+4E2D)."""
    return _LIGATURE.sub(r"\1{}", "".join(_character(c) for c in unicodedata.normalize("NFC", text)))


def _character(char: str) -> str:
    if char in _PLAIN or char in _LETTERS:
        return _PLAIN.get(char) or _LETTERS[char]
    if " " <= char <= "~":
        return char
    if unicodedata.category(char) in ("Cc", "Zs", "Zl", "Zp"):
        return " "
    base, *marks = list(unicodedata.normalize("NFD", char))
    if len(marks) == 1 and base.isascii() and base.isalpha() and marks[0] in _ACCENTS:
        return f"\\{_ACCENTS[marks[0]]}{{{base}}}"
    greek = _greek(char)
    if greek:
        return f"\\ensuremath{{\\{greek}}}"
    return f"\\texttt{{U+{ord(char):04X}}}"


def _greek(char: str) -> str:
    name = unicodedata.name(char, "")
    if name.startswith("GREEK CAPITAL LETTER "):
        word = name.rsplit(" ", 1)[1].replace("LAMDA", "LAMBDA").capitalize()
        return word if word in _GREEK_CAPITALS else ""
    index = ord(char) - 0x3B1
    word = _GREEK[index] if 0 <= index < len(_GREEK) else ""
    return "" if word == "omicron" else word


def number(estimate: Estimate, digits: int, signed: bool = False, bold: bool = False) -> str:
    """Return a number such as `$57.9_{\\pm 0.5}$`, in percent; empty if unknown."""
    if not estimate.known:
        return ""
    mean = f"{percent(estimate.mean, digits):{'+' if signed else ''}.{digits}f}"
    mean = rf"\mathbf{{{mean}}}" if bold else mean
    spread = rf"_{{\pm {percent(estimate.half_width, digits):.{digits}f}}}" if math.isfinite(estimate.half_width) else ""
    return f"${mean}{spread}$"


def percent(share: float, digits: int) -> float:
    """Return a share in percent, rounded, never a negative zero."""
    return round(100 * share, digits) + 0.0


def tabular(table: Table) -> str:
    """Return the bare `tabular` environment; it needs booktabs, and graphicx if its heads are rotated."""
    width = len(table.heads)
    lines = [rf"\begin{{tabular}}{{l{'r' * width}}}", r"\toprule"]
    if table.families:
        lines.append("".join(rf" & \multicolumn{{{n}}}{{c}}{{{escape(title)}}}" for title, n in table.families) + r" \\")
        start, rules = 2, []
        for title, n in table.families:
            rules += [rf"\cmidrule(lr){{{start}-{start + n - 1}}}"] if title else []
            start += n
        lines.append("".join(rules))
    lines.append(" & ".join([escape(table.corner), *(_head(head, width > UPRIGHT) for head in table.heads)]) + r" \\")
    for block in table.blocks:
        lines.append(r"\midrule")
        if block.title:
            lines.append(rf"\multicolumn{{{width + 1}}}{{l}}{{\textit{{{escape(block.title)}}}}} \\")
        for row in block.rows:
            lines += [r"\cmidrule{1-" + f"{width + 1}}}"] if row.average else []
            lines.append(_row(row, table.digits))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _head(head: str, rotated: bool) -> str:
    if rotated:
        return rf"\multicolumn{{1}}{{c}}{{\rotatebox{{90}}{{{escape(head)}}}}}"
    return rf"\multicolumn{{1}}{{r}}{{{escape(head)}}}"


def _row(row: Row, digits: int) -> str:
    return " & ".join([escape(row.label), *(_cell(cell, digits) for cell in row.cells)]) + r" \\"


def _cell(cell: Cell, digits: int) -> str:
    if cell.text is not None:
        text = escape(cell.text)
        return rf"\textbf{{{text}}}" if text and cell.bold else text
    return number(cell.estimate, digits, cell.signed, cell.bold)


def document(table: Table) -> str:
    """Return a document with one floating table, shrunk to the page width if necessary; needs booktabs and graphicx."""
    return "\n".join(
        [
            r"\documentclass{article}",
            rf"\usepackage[a4paper,margin=2cm{',landscape' if len(table.heads) > UPRIGHT else ''}]{{geometry}}",
            r"\usepackage{booktabs}",
            r"\usepackage{graphicx}",
            r"\begin{document}",
            r"\begin{table}[p]",
            r"\centering",
            r"\small",
            r"\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{8pt}",
            rf"\caption{{{escape(table.caption)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            tabular(table).rstrip("\n") + "%",
            "}",
            *(rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\footnotesize {escape(note)}\end{{minipage}}" for note in table.notes),
            r"\end{table}",
            r"\end{document}",
            "",
        ]
    )
