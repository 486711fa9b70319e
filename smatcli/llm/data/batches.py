"""Examples as tokens, dealt to updates by counting, and the rows of an update: packed, or padded to the longest.

Update u of a training takes examples that are a function of (seed, u) alone, so a resumed run continues exactly.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from smatcli.data.counted import counted_rng
from smatcli.errors import UserError
from smatcli.llm.data.packing import pack
from smatcli.llm.data.rows import Example
from smatcli.llm.data.tokens import Renderer, Tokens
from smatcli.llm.loss import IGNORED

TooLong = Literal["refuse", "drop", "truncate-prompt-left"]


@dataclass
class TokenSet:
    """Examples and their tokens, aligned; `dropped` counts the skipped examples by reason."""

    examples: list[Example] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.tokens)

    def answers(self, chosen: Sequence[int]) -> int:
        """Return the number of trained tokens of examples; the first token of a sequence is predicted by nothing."""
        return sum(sum(self.tokens[i].trained[1:]) for i in chosen)


@dataclass(frozen=True)
class Rows:
    """One forward pass: `ids`, `labels` [B, T], the examples of its sequences, and what the model needs besides.

    A packed row has B = 1, `pieces` (the token range of each sequence), positions that restart and no attention mask, which would switch
    off the separation of the sequences. A padded batch has `mask`.
    """

    ids: Tensor
    labels: Tensor
    examples: list[int]
    pieces: list[tuple[int, int]] | None = None
    mask: Tensor | None = None

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return the model's keyword arguments besides the ids."""
        if self.pieces is None:
            return {} if self.mask is None else {"attention_mask": self.mask.to(device)}
        positions = torch.cat([torch.arange(stop - start) for start, stop in self.pieces])[None]
        return {"position_ids": positions.to(device)}


def tokenise(examples: Sequence[Example], renderer: Renderer, context: int, too_long: TooLong = "refuse") -> TokenSet:
    """Return the tokens of all examples, at most `context` each.

    An answer is never cut. Examples that are too long are refused (UserError with their number and the longest), dropped and counted, or
    lose the start of their prompt; an example whose answer alone is too long is dropped and counted even then.
    """
    result = TokenSet()
    lengths = []
    for example in examples:
        tokens = renderer.tokens(example)
        if not sum(tokens.trained[1:]):
            result.dropped["no answer token"] += 1
            continue
        if len(tokens.ids) > context:
            lengths.append(len(tokens.ids))
            answer = len(tokens.ids) - tokens.prompt
            if too_long != "truncate-prompt-left" or answer >= context:
                result.dropped["too long"] += 1
                continue
            cut = len(tokens.ids) - context
            tokens = Tokens(tokens.ids[cut:], tokens.trained[cut:], tokens.prompt - cut)
        result.examples.append(example)
        result.tokens.append(tokens)
    if lengths and too_long == "refuse":
        raise UserError(
            f"{len(lengths)} of {len(examples)} examples are longer than {context} tokens (the longest has {max(lengths)}); "
            "set data.too_long to drop or truncate-prompt-left, or raise data.context"
        )
    if not result.tokens:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result.dropped.items())
        raise UserError(f"no example is left to train on ({reasons})")
    return result


class Dealing:
    """Which examples each update takes: epochs in a counted order, `batch` examples per update, fewer in the last update of an epoch."""

    def __init__(self, size: int, batch: int, seed: int) -> None:
        self.size, self.batch, self.seed = size, min(batch, size), seed
        self.per_epoch = -(-size // self.batch)

    def examples(self, update: int) -> list[int]:
        """Return the examples of update `update`, counted from 0."""
        epoch, place = divmod(update, self.per_epoch)
        order = counted_rng("llm-order", self.seed, epoch).permutation(self.size)
        return [int(i) for i in order[place * self.batch : (place + 1) * self.batch]]


def rows_of(data: TokenSet, chosen: Sequence[int], capacity: int, *, packed: bool, pad: int) -> list[Rows]:
    """Return the forward passes of examples, each of at most `capacity` tokens (padding included): packed rows or padded batches."""
    if packed:
        bins = pack([len(data.tokens[i].ids) for i in chosen], capacity)
        return [_packed(data, [chosen[k] for k in row]) for row in bins]
    batches: list[list[int]] = []
    for i in sorted(chosen, key=lambda i: (-len(data.tokens[i].ids), i)):  # the first of a batch is its longest
        if batches and (len(batches[-1]) + 1) * len(data.tokens[batches[-1][0]].ids) <= capacity:
            batches[-1].append(i)
        else:
            batches.append([i])
    return [_padded(data, batch, pad) for batch in batches]


def prompts_of(data: TokenSet, chosen: Sequence[int], pad: int) -> tuple[Tensor, Tensor]:
    """Return the prompts of examples as left-padded ids and mask [B, T]."""
    width = max(data.tokens[i].prompt for i in chosen)
    ids = torch.full((len(chosen), width), pad)
    mask = torch.zeros(len(chosen), width, dtype=torch.long)
    for row, i in enumerate(chosen):
        tokens = data.tokens[i]
        ids[row, width - tokens.prompt :] = torch.tensor(tokens.ids[: tokens.prompt])
        mask[row, width - tokens.prompt :] = 1
    return ids, mask


def _labels(tokens: Tokens) -> list[int]:
    """Labels by position, never by token id: a pad token that is also the end-of-text token is trained where it ends an answer."""
    labels = [i if trained else IGNORED for i, trained in zip(tokens.ids, tokens.trained, strict=True)]
    return [IGNORED, *labels[1:]]


def _packed(data: TokenSet, chosen: list[int]) -> Rows:
    ids: list[int] = []
    labels: list[int] = []
    pieces = []
    for i in chosen:
        pieces.append((len(ids), len(ids) + len(data.tokens[i].ids)))
        ids += data.tokens[i].ids
        labels += _labels(data.tokens[i])
    return Rows(torch.tensor([ids]), torch.tensor([labels]), chosen, pieces)


def _padded(data: TokenSet, chosen: list[int], pad: int) -> Rows:
    width = max(len(data.tokens[i].ids) for i in chosen)
    ids = torch.full((len(chosen), width), pad)
    labels = torch.full((len(chosen), width), IGNORED)
    mask = torch.zeros(len(chosen), width, dtype=torch.long)
    for row, i in enumerate(chosen):
        length = len(data.tokens[i].ids)
        ids[row, :length] = torch.tensor(data.tokens[i].ids)
        labels[row, :length] = torch.tensor(_labels(data.tokens[i]))
        mask[row, :length] = 1
    return Rows(ids, labels, chosen, None, mask)
