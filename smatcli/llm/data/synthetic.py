"""Generated instruction tasks: sixteen categories of one form with conflicting rules, four of them held out.

A prompt names a rule for the order of the letters and a rule for each letter; the answer applies both to a word. The same word has a
different answer in every category, so that one set of weights must serve conflicting rules, and an unseen pair of rules can be answered
by who has learned each rule. Example i of (seed, part, category) is a function of these alone.
"""

from collections.abc import Callable, Iterator

from smatcli.data.counted import counted_rng
from smatcli.llm.data.rows import Example, Message

LETTERS = "abcdefghijklmnop"
ORDERS: dict[str, Callable[[str], str]] = {
    "keep": lambda word: word,
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "rotate": lambda word: word[1:] + word[:1],
}
CHANGES: dict[str, Callable[[str], str]] = {
    "plain": lambda word: word,
    "capital": str.upper,
    "next": lambda word: "".join(chr(ord(letter) + 1) for letter in word),
    "double": lambda word: "".join(2 * letter for letter in word),
}
HELD_OUT = (("keep", "next"), ("reverse", "capital"), ("sort", "double"), ("rotate", "plain"))
FORMS = ("{order} {change}: {word}", "{word} -> {order}, {change}", "{change} after {order} of {word}")


def categories(held_out: bool) -> list[tuple[str, str]]:
    """Return the (order, change) pairs that are trained, or those that are held out."""
    return [(o, c) for o in ORDERS for c in CHANGES if ((o, c) in HELD_OUT) == held_out]


def synthetic_examples(part: str, per_category: int, seed: int = 0) -> Iterator[Example]:
    """Yield `per_category` examples of every category: `train` and `valid` of the trained pairs, `heldout` of the others."""
    for order, change in categories(part == "heldout"):
        name = f"{order}-{change}"
        for number in range(per_category):
            rng = counted_rng("llm-synthetic", seed, part, name, number)
            word = "".join(LETTERS[k] for k in rng.integers(0, len(LETTERS), int(rng.integers(3, 7))))
            form = int(rng.integers(len(FORMS)))
            prompt = FORMS[form].format(order=order, change=change, word=word)
            answer = CHANGES[change](ORDERS[order](word))
            yield Example((Message("user", prompt), Message("assistant", answer)), f"{name}-{form}", name, (answer,))


def pretraining_examples(count: int, seed: int = 0) -> Iterator[Example]:
    """Yield text in the form of the tasks, without any rule: a word and the same word, or its neighbour in the alphabet."""
    for number in range(count):
        rng = counted_rng("llm-pretraining", seed, number)
        word = "".join(LETTERS[k] for k in rng.integers(0, len(LETTERS), int(rng.integers(3, 9))))
        order, change = (list(rules)[int(rng.integers(4))] for rules in (ORDERS, CHANGES))
        form = FORMS[int(rng.integers(len(FORMS)))].format(order=order, change=change, word=word)
        yield Example((Message("user", form), Message("assistant", word)), "copy", "copy")
