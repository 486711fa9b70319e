"""Which class is for training, validation or test: by seeded chance, or as a file says."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.data.store_format import SPLITS
from smatcli.errors import UserError, nearest

DEFAULT_SPLIT = "65/15/20"
FEWEST = 5  # classes of a part that is there at all: the ways of a common episode

Shares = tuple[float, float, float]


def parse_shares(text: str) -> Shares:
    """'70/15/15' -> (70, 15, 15), per cent of the classes for train, valid and test; UserError if they do not add up to 100."""
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(0 <= share <= 100 for share in shares):
        raise UserError(f"split {text!r}: give three percentages of the classes as train/valid/test, such as {DEFAULT_SPLIT}")
    if abs(sum(shares) - 100) > 0.01:
        raise UserError(f"split {text!r}: adds up to {sum(shares):g}, not to 100")
    return shares[0], shares[1], shares[2]


def class_counts(total: int, shares: Shares) -> tuple[int, int, int]:
    """Classes for train, valid and test out of `total`.

    Rounded shares, but a wanted part has at least 5 classes: test first, then train, then valid (none if fewer would be left, its share
    goes to train). Too few classes for test and train: all are test classes. A share of 0 stays empty.
    """
    train, valid, test = shares
    wanted = [part for part in (2, 0, 1) if shares[part] > 0]  # by priority
    if len(wanted) == 1:
        counts = [0, 0, 0]
        counts[wanted[0]] = total
        return counts[0], counts[1], counts[2]
    if total < 2 * FEWEST:
        return (0, 0, total) if test > 0 else (total, 0, 0)
    if len(wanted) == 3 and total < 3 * FEWEST:
        train, valid = train + valid, 0.0
    counts = _rounded(total, (train, valid, test))
    for part in wanted:
        if (train, valid, test)[part] > 0 and counts[part] < FEWEST:
            counts[int(np.argmax(counts))] -= FEWEST - counts[part]
            counts[part] = FEWEST
    return counts[0], counts[1], counts[2]


def split_by_chance(names: Sequence[str], dataset: str, shares: Shares, seed: int = 0) -> np.ndarray:
    """Split codes uint8 [C] (0 train, 1 valid, 2 test): a permutation keyed by seed and dataset name, never the names' order.

    The order comes from raw Philox numbers (stable between numpy versions).
    """
    key = int.from_bytes(hashlib.sha256(f"split/{seed}/{dataset}".encode()).digest()[:16], "little")
    order = np.argsort(np.random.Philox(key=key).random_raw(len(names)), kind="stable")
    codes = np.empty(len(names), np.uint8)
    codes[order] = np.repeat(np.arange(3, dtype=np.uint8), class_counts(len(names), shares))
    return codes


def split_remark(total: int, shares: Shares) -> str | None:
    """The sentence that says where `class_counts` departs from what the shares ask for, or None."""
    counts = class_counts(total, shares)
    lost = [SPLITS[part] for part in (0, 1, 2) if shares[part] > 0 and counts[part] == 0]
    if not lost:
        return None
    if counts[2] == total:
        return f"{total} classes are too few to split: all are test classes (the dataset can only be meta-tested)"
    return f"{total} classes are too few for every part: {counts[0]} train, {counts[1]} valid, {counts[2]} test"


def read_splits(path: str | Path, dataset: str) -> dict[str, str]:
    """Class name -> split from a JSON file {"train": [names], "valid": [...], "test": [...]}, or one such object per dataset name."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such splits file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict) or not data:
        raise UserError(f'{path}: expected {{"train": [class names], "valid": [...], "test": [...]}}, or one such object per dataset')
    where = str(path)
    if not any(isinstance(value, list) for value in data.values()):
        if dataset not in data:
            raise UserError(
                f"{path}: no splits for the dataset {dataset!r}{nearest(dataset, list(data))} (there: {', '.join(list(data)[:20])})"
            )
        data, where = data[dataset], f"{path}, {dataset}"
    return _by_class(data, where)


def split_by_names(names: Sequence[str], splits: dict[str, str], where: str) -> np.ndarray:
    """Split codes uint8 [C] of the named classes; UserError, with the nearest name, for a class that only one side has."""
    there = set(names)
    unknown = [name for name in splits if name not in there]
    if unknown:
        raise UserError(f"{where}: no class {_some(unknown)} in the data{nearest(unknown[0], list(names))}")
    unlisted = [name for name in names if name not in splits]
    if unlisted:
        raise UserError(f"{where}: the data's class {_some(unlisted)} is in no split{nearest(unlisted[0], list(splits))}")
    return np.array([SPLITS.index(splits[name]) for name in names], np.uint8)


def _by_class(data: Any, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected an object with train, valid and test")
    for split, names in data.items():
        if split not in SPLITS:
            raise UserError(f"{where}: there is no split {split!r} (train, valid, test){nearest(split, list(SPLITS))}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{where}: {split} is not a list of class names")
        for name in names:
            if name in found:
                raise UserError(f"{where}: the class {name!r} is listed twice ({found[name]} and {split})")
            found[name] = split
    return found


def _rounded(total: int, shares: Shares) -> list[int]:
    """Whole numbers that add up to `total`, by largest remainder."""
    exact = [total * share / 100 for share in shares]
    counts = [int(value + 1e-9) for value in exact]
    for part in sorted(range(3), key=lambda p: counts[p] - exact[p])[: total - sum(counts)]:
        counts[part] += 1
    return counts


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
