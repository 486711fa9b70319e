"""Read and write the YAML of recipes: `1e-3` is a number, `no` and dates are text, and duplicate keys are errors."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from smatcli.safe.text import yaml_value

_NUMBER = re.compile(
    r"""[-+]?(?: [0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
             | \.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
             | [0-9][0-9_]*[eE][-+]?[0-9]+
             | \.(?:inf|Inf|INF))$
        | \.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$|0x[0-9a-fA-F]+$")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")


class _Loader(yaml.SafeLoader):
    """Safe loader with the scalars of the YAML 1.2 core schema (YAML 1.1 reads `1e-3` as text and `no` as false)."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is not text (quote it)", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


class _ValueLoader(_Loader):
    """Loader in which a comment is an error."""

    def scan_to_next_token(self) -> None:
        while self.peek() == " ":
            self.forward()
        if self.peek() == "#":
            raise yaml.scanner.ScannerError(problem="' #' starts a comment; quote the text", problem_mark=self.get_mark())
        super().scan_to_next_token()


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes every text that `_Loader` or YAML 1.1 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _short_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=not any(isinstance(item, (dict, list)) for item in data))


_Dumper.add_representer(list, _short_list)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


class _OneLine(_Dumper):
    """Dumper in flow style that puts text with line breaks in double quotes."""


def _one_line_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\n" in data else None)


_OneLine.add_representer(list, yaml.SafeDumper.represent_list)
_OneLine.add_representer(str, _one_line_text)


def parse(text: str) -> Any:
    """Return the value of a YAML document. Raises `yaml.YAMLError` if it is invalid, too deep, or too large once aliases are expanded."""
    return yaml_value(_Loader(text))


def parse_value(text: str) -> Any:
    """Return the value of a command-line override: a number, `true`, `null`, quoted text, a list or mapping in brackets, or plain text.

    It is a value, not a document: " #", ": ", "---" and "&" are part of a plain text, and a comment in a list is a `yaml.YAMLError`.
    """
    if text[:1] in ("[", "{"):
        return yaml_value(_ValueLoader(text))
    if text[:1] in ("'", '"'):
        try:
            value = yaml_value(_ValueLoader(text))
        except yaml.YAMLError:
            return text
        return value if isinstance(value, str) else text
    loader: Any = _Loader("")
    try:
        return loader.construct_object(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))
    except (yaml.YAMLError, ValueError):
        return text
    finally:
        loader.dispose()


def dump(data: Any) -> str:
    """Return YAML text that `parse` reads back as an equal value, with the keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=140)


def flow(value: Any) -> str:
    """Return a value as YAML on one line, as it would follow `key: `."""
    text = yaml.dump(value, Dumper=_OneLine, sort_keys=False, allow_unicode=True, default_flow_style=True, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...")
