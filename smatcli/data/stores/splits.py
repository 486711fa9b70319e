"""Assignment of classes to training, validation and test: random with a seed, or from a file."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.data.stores.format import SPLITS
from smatcli.errors import UserError, nearest
from smatcli.safe.text import read_json, refuse_special

DEFAULT_SPLIT = "65/15/20"
FEWEST = 5  # minimum of classes per part: the ways of a common episode

Shares = tuple[float, float, float]


def parse_shares(text: str) -> Shares:
    """Parse '70/15/15' to (70, 15, 15), percentages of the classes for train, valid and test; UserError unless they add up to 100."""
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
    """Return the numbers of train, valid and test classes out of `total`.

    Shares are rounded, but each part with a positive share gets at least 5 classes: test first, then train, then valid (if too few
    remain, valid is empty and its share goes to train). With too few classes for test and train, all are test classes.
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
        while (train, valid, test)[part] > 0 and counts[part] < FEWEST:
            counts[int(np.argmax(counts))] -= 1  # one at a time, so that no other part falls below FEWEST
            counts[part] += 1
    return counts[0], counts[1], counts[2]


def split_by_chance(names: Sequence[str], dataset: str, shares: Shares, seed: int = 0) -> np.ndarray:
    """Return random split codes uint8 [C] (0 train, 1 valid, 2 test), keyed by seed and dataset name.

    The permutation is that of raw Philox numbers, which are stable across numpy versions.
    """
    key = int.from_bytes(hashlib.sha256(f"split/{seed}/{dataset}".encode()).digest()[:16], "little")
    order = np.argsort(np.random.Philox(key=key).random_raw(len(names)), kind="stable")
    codes = np.empty(len(names), np.uint8)
    codes[order] = np.repeat(np.arange(3, dtype=np.uint8), class_counts(len(names), shares))
    return codes


def split_remark(total: int, shares: Shares) -> str | None:
    """Return a sentence about the parts that `class_counts` leaves empty despite a positive share, or None."""
    counts = class_counts(total, shares)
    lost = [SPLITS[part] for part in (0, 1, 2) if shares[part] > 0 and counts[part] == 0]
    if not lost:
        return None
    if counts[2] == total:
        return f"{total} classes are too few to split: all are test classes (the dataset can only be meta-tested)"
    return f"{total} classes are too few for every part: {counts[0]} train, {counts[1]} valid, {counts[2]} test"


def read_splits(path: str | Path, dataset: str) -> dict[str, str]:
    """Map class name to split from a JSON file {"train": [names], "valid": [...], "test": [...]}, or one such object per dataset name.

    Meta-Dataset's `*_splits.json` are of the first kind; its older ones give numbers, which become strings.
    """
    path = Path(path)
    try:
        refuse_special(path)
        data = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: splits file does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict) or not data:
        raise UserError(f'{path}: expected {{"train": [class names], "valid": [...], "test": [...]}}, or one such object per dataset')
    if "__class__" in data and "class_names" in data:
        raise UserError(f"{path}: is a dataset_spec.json, not a list of splits; `smat data prepare meta-dataset` reads it with its records")
    where = str(path)
    if not any(isinstance(value, list) for value in data.values()):
        if dataset not in data:
            raise UserError(
                f"{path}: no splits for the dataset {dataset!r}{nearest(dataset, list(data))} (there: {', '.join(list(data)[:20])})"
            )
        data, where = data[dataset], f"{path}, {dataset}"
    return _by_class(data, where)


def match_splits(names: Sequence[str], splits: dict[str, str], where: str, dropped: Sequence[str] = ()) -> dict[str, str]:
    """Map each class of the data to a split; the splits file may spell class names differently.

    A pair matches by the first rule that is unambiguous: the same name; a group of classes by its folder ("Greek" for
    "Greek/character01"); the same letters and digits ("F-16A/B", "F-16A_B"); the same without a leading number ("035.alpine sea holly",
    "alpine_sea_holly"); the number alone ("35" or "00035"). `dropped` are classes that the source skips but the file may list.
    Raises UserError, with the nearest name, for a class that exists on one side only.
    """
    matches: dict[str, str] = {}
    names = [*names, *dropped]
    for rule in (str, _group, _letters, _unnumbered, _number):
        left = [name for name in names if name not in matches]
        used = set(matches.values())
        listed = [name for name in splits if name not in used] if left else []
        matches.update(_pairs(left, listed, rule))
    used = set(matches.values())
    unknown = [name for name in splits if name not in used]
    if unknown:
        raise UserError(f"{where}: no class {_some(unknown)} in the data{nearest(unknown[0], list(names))}")
    unlisted = [name for name in names if name not in matches and name not in dropped]
    if unlisted:
        raise UserError(f"{where}: the data's class {_some(unlisted)} is in no split{nearest(unlisted[0], list(splits))}")
    return {name: splits[listed] for name, listed in matches.items() if name not in dropped}


def split_by_names(names: Sequence[str], splits: dict[str, str], where: str, dropped: Sequence[str] = ()) -> np.ndarray:
    """Return the split codes uint8 [C] of the named classes, see `match_splits`."""
    matches = match_splits(names, splits, where, dropped)
    return np.array([SPLITS.index(matches[name]) for name in names], np.uint8)


def _pairs(names: Sequence[str], listed: Sequence[str], rule: Callable[[str], str | None]) -> dict[str, str]:
    """Map class to listed name with the same key, if the key is unique among the listed and (except for groups) among the classes."""
    ours, theirs = _by_key(names, rule), _by_key(listed, str if rule is _group else rule)
    pairs: dict[str, str] = {}
    for key, group in ours.items():
        other = theirs.get(key, [])
        if len(other) != 1 or (len(group) > 1 and rule is not _group):
            continue
        if rule is _number and not (other[0].isdigit() or group[0].isdigit()):
            continue  # two names that share only their number
        pairs.update(dict.fromkeys(group, other[0]))
    return pairs


def _by_key(names: Sequence[str], rule: Callable[[str], str | None]) -> dict[str, list[str]]:
    by_key: dict[str, list[str]] = {}
    for name in names:
        if (key := rule(name)) is not None:
            by_key.setdefault(key, []).append(name)
    return by_key


def _group(name: str) -> str | None:
    return name.rpartition("/")[0] or None


def _letters(name: str) -> str | None:
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFC", name).casefold())) or None


def _unnumbered(name: str) -> str | None:
    return _letters(re.sub(r"^\d+\.", "", name))


def _number(name: str) -> str | None:
    start = re.match(r"\d+(?=\.|$)", name)
    return str(int(start[0])) if start and len(start[0]) < 16 else None


def _by_class(data: Any, where: str) -> dict[str, str]:
    by_class: dict[str, str] = {}
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected an object with train, valid and test")
    for split, names in data.items():
        if split not in SPLITS:
            raise UserError(f"{where}: unknown split {split!r} (train, valid, test){nearest(split, list(SPLITS))}")
        if not isinstance(names, list) or not (all(type(name) is int for name in names) or all(type(name) is str for name in names)):
            raise UserError(f"{where}: {split} is not a list of class names")
        for name in map(str, names):
            if name in by_class:
                raise UserError(f"{where}: the class {name!r} is listed twice ({by_class[name]} and {split})")
            by_class[name] = split
    return by_class


def _rounded(total: int, shares: Shares) -> list[int]:
    """Round to whole numbers that add up to `total`, by largest remainder."""
    exact = [total * share / 100 for share in shares]
    counts = [int(value + 1e-9) for value in exact]
    for part in sorted(range(3), key=lambda p: counts[p] - exact[p])[: total - sum(counts)]:
        counts[part] += 1
    return counts


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
