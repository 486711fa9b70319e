"""The Markdown pages of the source tree, and what stands in them."""

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
    """The text without code blocks and inline code: links in these are no links."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^(?: {4}|\t).*$", "", text)
    return re.sub(r"`[^`\n]*(?:\n[^`\n]*)?`", "", text)


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    return LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Names of the headings as GitHub and mkdocs make them; where the two differ, neither is given."""
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
    """What follows `smat ` in the page's code: blocks (a line that ends in a backslash goes on) and inline code."""
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
