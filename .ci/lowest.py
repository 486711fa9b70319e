"""Print the lowest declared version of every dependency as a pip constraint; the tools of the extra `dev` stay unconstrained."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "dev"}
for line in [*project["dependencies"], *(line for lines in extras.values() for line in lines)]:
    if match := re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?\s*>=\s*([\w.]+).*", line):
        print(f"{match[1]}=={match[2]}")
