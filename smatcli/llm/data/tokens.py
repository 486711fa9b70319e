"""Tokens of an example: rendered once, with the answers found by character offsets.

Trained are the assistant's texts and the end-of-turn token behind each; never the header before an answer, never padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smatcli.errors import UserError
from smatcli.llm.data.rows import Example, Message

Template = Literal["auto", "chat", "plain"]


@dataclass(frozen=True)
class Tokens:
    """`ids` [T] of one example, `trained` [T] (is the token part of an answer?) and the tokens of the prompt before the first answer."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    prompt: int

    @property
    def answers(self) -> int:
        """Number of trained tokens."""
        return sum(self.trained)


class Renderer:
    """Turn examples into tokens with a tokenizer's chat template, or plainly: prompt, newline, answer, end-of-text token.

    Raises UserError for a tokenizer without offsets, or without an end-of-text token.
    """

    def __init__(self, tokenizer: Any, template: Template = "auto") -> None:
        self.tokenizer = tokenizer
        self.chat = template == "chat" or (template == "auto" and bool(getattr(tokenizer, "chat_template", None)))
        if template == "chat" and not getattr(tokenizer, "chat_template", None):
            raise UserError("data.template: chat, but the tokenizer has no chat template; use plain")
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(f"{type(tokenizer).__name__}: gives no character offsets; use the tokenizer's fast version")
        if tokenizer.eos_token_id is None:
            raise UserError(f"{type(tokenizer).__name__}: has no end-of-text token; generation would never stop")
        self.specials = set(tokenizer.all_special_ids)

    def text(self, messages: Sequence[Message], answer_next: bool = False) -> str:
        """Render messages as text; with `answer_next`, up to the place where the assistant's answer begins."""
        if self.chat:
            turns = [{"role": m.role, "content": m.content} for m in messages]
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next))
        parts = []
        for message in messages:
            ended = message.role == "assistant"
            parts.append(message.content + (self.tokenizer.eos_token if ended else "\n"))
        return "".join(parts)

    def tokens(self, example: Example) -> Tokens:
        """Return the tokens of an example; UserError if the template loses an answer or repeats the first token."""
        text = self.text(example.messages)
        ids, offsets = self._encode(text)
        trained = [False] * len(ids)
        for start, stop in self._answers(text, example.messages):
            covered = [t for t, (a, b) in enumerate(offsets) if b > start and a < stop and b > a]
            after = covered[-1] + 1 if covered else len(ids)
            if after < len(ids) and ids[after] in self.specials:
                covered.append(after)  # the end of the turn: without it the model never learns to stop
            for t in covered:
                trained[t] = True
        first = next((t for t, kept in enumerate(trained) if kept), len(ids))
        bos = self.tokenizer.bos_token_id
        if bos is not None and list(ids[:2]) == [bos, bos]:
            raise UserError("the tokenizer adds a beginning-of-text token to a template that has one; use data.template: plain")
        return Tokens(tuple(ids), tuple(trained), first)

    def prompt(self, example: Example) -> list[int]:
        """Return the tokens of everything before the last answer, header included: what generation starts from."""
        return self._encode(self.text(example.messages[:-1], answer_next=True))[0]

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        bos = self.tokenizer.bos_token
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if not self.chat and bos and bos != self.tokenizer.eos_token and not text.startswith(bos):  # a chat template writes its own
            ids, offsets = [self.tokenizer.bos_token_id, *ids], [(0, 0), *offsets]
        return ids, offsets

    def _answers(self, text: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Character ranges of the assistant's texts in the rendering `text` of `messages`.

        An answer begins where the rendering of the turns before it, with the header of the answer, ends. Searching for its text from the
        start would find a short answer inside of an earlier turn or of a header.
        """
        ranges = []
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self.text(messages[:number], answer_next=True)
            place = len(before) if text.startswith(before) else -1
            content = message.content if text.find(message.content, place) >= 0 else message.content.strip()
            start = text.find(content, place) if place >= 0 else -1
            if start < 0:
                raise UserError(
                    f"the chat template changes the text of the conversation before {message.content[:40]!r}; use data.template: plain"
                )
            ranges.append((start, start + len(content)))
        return ranges
