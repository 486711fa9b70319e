"""Instruction rows, their tokens, and packing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smatcli.errors import UserError
from smatcli.llm.data.bytes import byte_tokenizer
from smatcli.llm.data.packing import pack
from smatcli.llm.data.rows import Counts, Example, Message, example_of, read_rows
from smatcli.llm.data.synthetic import synthetic_examples
from smatcli.llm.data.tokens import Renderer

PAIR = {"prompt": "2 + 2 = ?", "answer": "4", "task": "sum", "category": "arithmetic"}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(prompt, answer):
    return Example((Message("user", prompt), Message("assistant", answer)))


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_both_formats(tmp_path):
    (first,) = read_rows(write(tmp_path / "a.jsonl", PAIR))
    assert (first.messages, first.task, first.category) == ((Message("user", "2 + 2 = ?"), Message("assistant", "4")), "sum", "arithmetic")
    (second,) = read_rows(write(tmp_path / "b.jsonl", CHAT))
    assert second.answer == "hello"
    assert example_of(first.record(), "") == first


def test_a_task_of_super_natural_instructions(tmp_path):
    body = {
        "Definition": ["Say the opposite."],
        "Categories": ["Word Semantics"],
        "Instances": [{"input": "hot", "output": ["cold", "cool"]}],
    }
    (tmp_path / "task001_opposites.json").write_text(json.dumps(body))
    (example,) = read_rows(tmp_path)
    assert example.messages[0].content == "Definition: Say the opposite.\n\nNow complete the following example -\nInput: hot\nOutput: "
    assert (example.answer, example.references) == ("cold", ("cold", "cool"))
    assert (example.task, example.category) == ("task001_opposites", "Word Semantics")


def test_rows_without_an_answer_are_counted(tmp_path):
    counts = Counts()
    rows = list(read_rows(write(tmp_path / "a.jsonl", PAIR, PAIR | {"answer": "  "}), counts))
    assert len(rows) == 1
    assert (counts.read, counts.kept, dict(counts.dropped)) == (2, 1, {"empty answer": 1})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PAIR, {"prompt": "x", "anwser": "y"}], r"a\.jsonl:2: unknown key 'anwser'; did you mean 'answer'"),
        ([PAIR, CHAT], r"a\.jsonl:2: has 'messages', the lines before have 'prompt'"),
        ([{"prompt": "x"}], r"a\.jsonl:1: needs 'prompt' and one of 'answer', 'completion', 'response'"),
        ([{"prompt": "x", "answer": 4}], r"a\.jsonl:1: 'answer' must be text, got 4"),
        ([{"messages": []}], "must be a list of objects"),
        ([{"messages": CHAT["messages"][:1]}], "the last message is the user's"),
        ([{"messages": CHAT["messages"][1:]}], "no message before the assistant's first"),
        ([{"messages": [{"role": "usr", "content": ""}]}], "unknown role 'usr'; did you mean 'user'"),
        ([[1]], "expected an object"),
    ],
)
def test_invalid_rows_name_the_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        list(read_rows(write(tmp_path / "a.jsonl", *rows)))


@pytest.mark.parametrize(
    ("content", "message"), [(b"{'a'\n", r"a\.jsonl:1: is not JSON"), (b"\xff\xfe\n", "is not UTF-8"), (b"\n", "has no rows")]
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / "a.jsonl"))


def test_only_answers_and_their_ends_are_trained(tokenizer):
    turns = [Message("user", "ab"), Message("assistant", "cd"), Message("user", "ab"), Message("assistant", "ab")]
    tokens = Renderer(tokenizer).tokens(Example(tuple(turns)))
    text = tokenizer.convert_ids_to_tokens(tokens.ids)
    assert text == [
        "<user>",
        "a",
        "b",
        "<end>",
        "<assistant>",
        "c",
        "d",
        "<end>",
        "<user>",
        "a",
        "b",
        "<end>",
        "<assistant>",
        "a",
        "b",
        "<end>",
    ]
    assert [t for t, kept in zip(text, tokens.trained, strict=True) if kept] == ["c", "d", "<end>", "a", "b", "<end>"]
    assert tokens.prompt == 5
    assert tokens.answers == 6


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text_of_any_script(prompt, answer):
    tokenizer = byte_tokenizer()
    prompt, answer = (text.replace("<", "").replace("\x00", "") or "x" for text in (prompt, answer))
    for template in ("chat", "plain"):
        renderer = Renderer(tokenizer, template)
        tokens = renderer.tokens(pair(prompt, answer))
        kept = [i for i, trained in zip(tokens.ids, tokens.trained, strict=True) if trained]
        assert tokenizer.decode(kept[:-1]) == answer
        assert kept[-1] == tokenizer.eos_token_id
        assert list(tokens.ids[: tokens.prompt]) == renderer.prompt(pair(prompt, answer))


def test_plain_rendering_without_a_template(tokenizer):
    plain = Renderer(tokenizer, "plain")
    assert plain.text(pair("ab", "cd").messages) == "ab\ncd<end>"
    tokens = plain.tokens(pair("ab", "cd"))
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert tokens.answers == 3


def test_padding_that_is_the_end_token_is_still_trained_at_the_end(tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokens = Renderer(tokenizer).tokens(pair("a", "b"))
    assert tokens.ids[-1] == tokenizer.pad_token_id
    assert tokens.trained[-1]


def test_templates_that_break_training_are_refused(tokenizer):
    broken = byte_tokenizer()
    broken.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(UserError, match="changes the text of the conversation before 'cd'"):
        Renderer(broken).tokens(pair("ab", "cd"))
    double = byte_tokenizer()
    double.chat_template = "<bos><bos>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="beginning-of-text"):
        Renderer(double).tokens(pair("ab", "cd"))
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        Renderer(bare, "chat")


@given(st.lists(st.integers(1, 64), max_size=60), st.integers(64, 100))
def test_packing_holds_every_example_once(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // capacity) * 1.3 + 1


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="65 tokens does not fit a row of 64"):
        pack([3, 65], 64)


def test_generated_tasks_by_hand():
    rows = {part: list(synthetic_examples(part, 5)) for part in ("train", "valid", "heldout")}
    assert {part: len(examples) for part, examples in rows.items()} == {"train": 60, "valid": 60, "heldout": 20}
    by_category = {part: {e.category for e in examples} for part, examples in rows.items()}
    assert by_category["heldout"] == {"keep-next", "reverse-capital", "sort-double", "rotate-plain"}
    assert not by_category["heldout"] & by_category["train"]
    assert rows["train"] == list(synthetic_examples("train", 5))
    assert not {e.messages[0].content for e in rows["train"]} & {e.messages[0].content for e in rows["valid"]}
    example = next(e for e in rows["heldout"] if e.category == "reverse-capital")
    assert example.answer[::-1].lower() in example.messages[0].content
    assert example.answer.isupper()
    doubled = next(e for e in rows["heldout"] if e.category == "sort-double").answer
    assert doubled[::2] == doubled[1::2] == "".join(sorted(doubled[::2]))
