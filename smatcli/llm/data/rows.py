"""Read instruction rows: JSON Lines with prompt and answer, or with messages, and task files of Super-NaturalInstructions."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smatcli.errors import UserError, nearest
from smatcli.safe.text import parse_json, read_json, refuse_special

ANSWERS = ("answer", "completion", "response")
OPTIONAL = ("task", "category", "dataset", "references", "choices", "id")
ROLES = ("system", "user", "assistant")
LONGEST_LINE = 1 << 24  # bytes


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One example: its messages (the last one is the assistant's), and where it belongs.

    `references` are all accepted answers, `choices` the answers that are ranked by likelihood; both may be empty.
    """

    messages: tuple[Message, ...]
    task: str = ""
    category: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """The last message's text."""
        return self.messages[-1].content

    def record(self) -> dict[str, Any]:
        """Return the example as a JSON object that `read_rows` reads."""
        body: dict[str, Any] = {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        body |= {key: getattr(self, key) for key in ("task", "category") if getattr(self, key)}
        return body | {key: list(getattr(self, key)) for key in ("references", "choices") if getattr(self, key)}


@dataclass
class Counts:
    """Rows read and kept, and those dropped by reason."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def read_rows(path: Path, counts: Counts | None = None) -> Iterator[Example]:
    """Yield the examples of a .jsonl file, of a Super-NaturalInstructions task file (.json), or of all such files of a folder.

    Rows with an empty answer are counted and dropped. Raises UserError, with file and line, for a line that is not JSON, an unknown or a
    missing key, a value of the wrong type, and a file that mixes both formats.
    """
    counts = counts if counts is not None else Counts()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".json") and not p.name.startswith("."))
        if not files:
            raise UserError(f"{path}: has no .jsonl or .json file")
        for file in files:
            yield from read_rows(file, counts)
        return
    source = _task_file(path) if path.suffix == ".json" else _lines(path)
    for example in source:
        counts.read += 1
        if not all(m.content.strip() for m in example.messages if m.role == "assistant"):
            counts.dropped["empty answer"] += 1
            continue
        counts.kept += 1
        yield example


def _lines(path: Path) -> Iterator[Example]:
    refuse_special(path)
    kind = ""
    try:
        with path.open("rb") as handle:
            for number, raw in enumerate(iter(lambda: handle.readline(LONGEST_LINE + 1), b""), 1):
                where = f"{path}:{number}"
                if len(raw) > LONGEST_LINE:
                    raise UserError(f"{where}: the line is longer than {LONGEST_LINE:,} bytes")
                if not raw.strip():
                    continue
                row = _object(raw, where)
                this = "messages" if "messages" in row else "prompt"
                if kind and this != kind:
                    raise UserError(f"{where}: has {this!r}, the lines before have {kind!r}; split the file by format")
                kind = this
                yield example_of(row, where)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not kind:
        raise UserError(f"{path}: has no rows")


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8") from None
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with 'prompt' and 'answer', or with 'messages'")
    return row


def example_of(row: Mapping[str, Any], where: str) -> Example:
    """Return the example of one row; UserError, with `where`, if it is invalid."""
    answers = [key for key in ANSWERS if key in row]
    allowed = ("messages", *OPTIONAL) if "messages" in row else ("prompt", *ANSWERS, *OPTIONAL)
    if unknown := next((key for key in row if key not in allowed), None):
        raise UserError(f"{where}: unknown key {unknown!r}{nearest(unknown, list(allowed))}")
    extra = {key: _text(row, key, where) for key in ("task", "category") if key in row}
    extra |= {key: _texts(row, key, where) for key in ("references", "choices") if key in row}  # type: ignore[misc]
    if "messages" in row:
        return Example(_messages(row["messages"], where), **extra)  # type: ignore[arg-type]
    if "prompt" not in row or len(answers) != 1:
        raise UserError(f"{where}: needs 'prompt' and one of {', '.join(map(repr, ANSWERS))}")
    turns = (Message("user", _text(row, "prompt", where)), Message("assistant", _text(row, answers[0], where)))
    return Example(turns, **extra)  # type: ignore[arg-type]


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    turns = []
    for entry in value:
        if not isinstance(entry, dict) or set(entry) != {"role", "content"}:
            raise UserError(f"{where}: each message needs 'role' and 'content', and nothing else")
        role = _text(entry, "role", where)
        if role not in ROLES:
            raise UserError(f"{where}: unknown role {role!r}{nearest(role, list(ROLES))} (known: {', '.join(ROLES)})")
        turns.append(Message(role, _text(entry, "content", where)))
    if turns[-1].role != "assistant":
        raise UserError(f"{where}: the last message is the {turns[-1].role}'s; nothing could be trained, end with the assistant's")
    if all(turn.role == "assistant" for turn in turns):
        raise UserError(f"{where}: has no message before the assistant's first")
    return tuple(turns)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise UserError(f"{where}: {key!r} must be text, got {json.dumps(row[key])[:60]}")
    return str(row[key])


def _texts(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row[key]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise UserError(f"{where}: {key!r} must be a list of texts")
    return tuple(value)


def _task_file(path: Path) -> Iterator[Example]:
    """Yield the instances of a Super-NaturalInstructions task: definition and input as the prompt, every output as a reference."""
    try:
        body = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(body, dict) or not isinstance(body.get("Instances"), list) or "Definition" not in body:
        raise UserError(f"{path}: is not a task file of Super-NaturalInstructions (it needs 'Definition' and 'Instances')")
    definition = body["Definition"][0] if isinstance(body["Definition"], list) and body["Definition"] else body["Definition"]
    categories = body.get("Categories") or [""]
    for number, instance in enumerate(body["Instances"]):
        where = f"{path}: instance {number}"
        if not isinstance(instance, dict) or not {"input", "output"} <= set(instance):
            raise UserError(f"{where}: needs 'input' and 'output'")
        outputs = instance["output"] if isinstance(instance["output"], list) else [instance["output"]]
        if not outputs or not all(isinstance(text, str) for text in [*outputs, instance["input"], definition]):
            raise UserError(f"{where}: 'input' and every 'output' must be text")
        prompt = f"Definition: {definition}\n\nNow complete the following example -\nInput: {instance['input']}\nOutput: "
        turns = (Message("user", prompt), Message("assistant", outputs[0]))
        yield Example(turns, path.stem, str(categories[0]), tuple(outputs))
