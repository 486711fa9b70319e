"""The Markdown pages of the source tree, and functions that parse them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "data/README.md", "benchmarks/RESULTS.md"))]
)
FENCE = re.compile(r"^(```+)(.*?)^\1[ \t]*$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


def prose(page: Path) -> str:
    """Return the text without code blocks and inline code, whose links do not count."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^(?: {4}|\t).*$", "", text)
    return re.sub(r"`[^`\n]*(?:\n[^`\n]*)?`", "", text)


def links(page: Path) -> list[str]:
    """Return the targets of links and pictures."""
    return LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Return the anchors of headings as GitHub and mkdocs create them, without those on which the two differ."""
    found: dict[str, int] = {}
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"(?m)^#{1,6}\s+(.*?)\s*#*$", text):
        plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower()
        github = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-")
        if github == site:
            found[github] = found.get(github, 0) + 1
    return set(found)


def commands(page: Path) -> Iterator[str]:
    """Return the text after `smat ` in the page's code: blocks (joining lines that end in a backslash) and inline code."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`(smat [^`]+)`", FENCE.sub("", text))
    blocks = [body for _, body in FENCE.findall(text)]
    indented = re.findall(r"(?m)^(?: {4}|\t)(?!\s)(?:[^\n]*\\\n)*[^\n]*$", FENCE.sub("", text))
    for code in (*blocks, *indented):
        for line in re.sub(r"\\\n\s*", " ", code).splitlines():
            if not line.lstrip().startswith(("Usage:", "#")) and (
                found := re.search(r"(?:^|[;|&$]|\bdo|timeout \d+)\s*(smat .*)", line.strip())
            ):
                inline.append(found.group(1))
    for command in inline:
        yield re.split(r"\s#\s|\s#$|;|\s[|>]\s", re.sub(r"\s*\n\s*", " ", command).removeprefix("smat "))[0].strip()
