"""`smat llm generate`: answers of a run to prompts."""

from collections.abc import Callable, Sequence

import torch

from smatcli.engine.llm.loading import LanguageRun
from smatcli.errors import UserError
from smatcli.llm.data.rows import Example, Message


@torch.no_grad()
def generate(
    run: LanguageRun, examples: Sequence[Example], tokens: int, batch: int, beams: int = 1, progress: Callable[[int], None] | None = None
) -> list[str]:
    """Return the answers to everything before the last message of each example: greedy, or by beam search; at most `tokens` tokens each.

    Prompts of similar length are answered side by side, padded on the left. UserError for a prompt that leaves no room for an answer.
    """
    prompts = [run.renderer.prompt(example) for example in examples]
    longest = max(map(len, prompts), default=0)
    if run.base.longest is not None and longest + tokens > run.base.longest:
        raise UserError(
            f"a prompt of {longest} tokens and an answer of {tokens} exceed the {run.base.longest} tokens of the model; shorten the prompt"
        )
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), run.base.pad)
        mask = torch.zeros(len(chosen), width, dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with run.precision.autocast():
            out = run.method.generate(
                ids.to(run.device), mask.to(run.device), max_new_tokens=tokens, do_sample=False, num_beams=beams, pad_token_id=run.base.pad
            )
        for row, i in enumerate(chosen):
            answers[i] = run.base.tokenizer.decode(out[row, width:], skip_special_tokens=True).strip()
        if progress is not None:
            progress(start + len(chosen))
    return answers


def as_example(prompt: str) -> Example:
    """Return the example of a prompt without an answer."""
    if not prompt.strip():
        raise UserError("--prompt: is empty")
    return Example((Message("user", prompt), Message("assistant", "")))
