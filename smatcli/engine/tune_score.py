"""How well logits [N, C] tell classes apart: accuracy, mean accuracy of the classes, area under the ROC curve."""

import numpy as np


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Shares `accuracy` (top-1), `per-class` (mean over the classes that occur) and `auc` (NaN where one class alone occurs)."""
    right = logits.argmax(1) == labels
    totals = np.bincount(labels, minlength=logits.shape[1])
    hits = np.bincount(labels, weights=right, minlength=logits.shape[1])
    there = totals > 0
    return {"accuracy": float(right.mean()), "per-class": float((hits[there] / totals[there]).mean()), "auc": auc(logits, labels)}


def auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of the softmax: of class 1 of two, else of each class against the rest, averaged over those there."""
    shifted = logits.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(1, keepdims=True))
    chances = shifted / shifted.sum(1, keepdims=True)
    classes = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    found = [_binary(chances[:, c], labels == c) for c in classes if 0 < np.count_nonzero(labels == c) < len(labels)]
    return float(np.mean(found)) if found else float("nan")


def _binary(values: np.ndarray, positive: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties counted half: Mann-Whitney's U / (n+ n-)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    ahead = int(positive.sum())
    return float((ranks[positive].sum() - ahead * (ahead + 1) / 2) / (ahead * (len(values) - ahead)))
