"""Scores of generated answers: exact match and ROUGE-L."""

import re
import string
from collections.abc import Sequence
from functools import cache
from typing import Any

from smatcli.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return a text without case, punctuation, articles and repeated spaces, as SQuAD's evaluation does (Rajpurkar et al., 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the normalised answer is that of a reference, else 0. References without a letter or digit are compared as they are."""
    if any(normalised(reference) and normalised(answer) == normalised(reference) for reference in references):
        return 1.0
    return float(any(answer.strip() == reference.strip() for reference in references))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return the largest F-measure of ROUGE-L over the references, with Porter's stemmer: Tk-Instruct's definition (Wang et al., 2022)."""
    scorer = _scorer()
    return max(float(scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references)


def require_rouge() -> None:
    """Raise UserError if ROUGE-L cannot be computed."""
    _scorer()


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE-L needs the package rouge-score: pip install 'smatcli[llm]', or give --no-generate") from None
    return RougeScorer(["rougeL"], use_stemmer=True)
