"""Automatic footnotes of a table: settings in which its columns differ, and conditions that favour some of them."""

from collections.abc import Callable, Mapping, Sequence

from smatcli.report.results.compare import same_episode_list
from smatcli.report.results.frame import EvaluationResult
from smatcli.report.results.groups import DOMAINS, Column, Key, ResultGroup

# Settings that a fair comparison keeps equal, by their name in the footnote.
_FACTS: dict[str, Callable[[EvaluationResult], str]] = {
    "Image size": lambda e: _pixels(e.settings.get("image_size") or e.run.image_size),
    "Backbone": lambda e: e.run.backbone,
    "Precision": lambda e: str(e.settings.get("precision") or ""),
    "Training steps": lambda e: str(_training(e).get("steps") or "") if e.run.method != "pretrained" else "",
    "Training datasets": lambda e: ", ".join(map(str, _data(e).get("train") or [])) if e.run.method != "pretrained" else "",
}
MOST = 6  # columns named in a footnote


def notes(group: ResultGroup, columns: Sequence[Column]) -> list[str]:
    """Return footnotes on episodes, image sizes, searches and seeds, as far as columns differ."""
    keys = [key for domain in DOMAINS for key in group.keys(domain, columns)]
    lines = [*_episodes(group, columns, keys), *_searches(columns, keys)]
    for title, read in _FACTS.items():
        values = {column.label: read(column.evaluation) for column in columns}
        lines += _differing(title, {label: value for label, value in values.items() if value})
    return [*lines, *overlaps(group, columns), *_seeds(columns)]


def overlaps(group: ResultGroup, columns: Sequence[Column]) -> list[str]:
    """Return a footnote per dataset that is a copy of a training dataset or of another dataset (data.allow_overlap)."""
    keys = [key for domain in DOMAINS for key in group.keys(domain, columns)]
    labels: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        for name in dict.fromkeys(key.dataset for key in keys):
            if original := column.evaluation.drawn.get(name, {}).get("copy_of"):
                labels.setdefault((name, str(original)), []).append(column.label)
    return [
        f"Overlap: {name} has the content of {original}, so its accuracy is not that of an unseen dataset ({_listed(who)})."
        for (name, original), who in labels.items()
    ]


def _episodes(group: ResultGroup, columns: Sequence[Column], keys: Sequence[Key]) -> list[str]:
    odd: dict[str, list[str]] = {}
    for key in keys:
        own = [column for column in columns if key in column.estimates]
        others = [c.label for c in own[1:] if not same_episode_list(own[0], c, key)]
        if others:
            odd.setdefault(f"{_listed(others)} had different episodes from {own[0].label}", []).append(group.row_label(key))
    everything = len(keys)
    return [
        f"Different episodes: {who} on {'every dataset' if len(names) == everything else _listed(names)}; such differences are not paired."
        for who, names in odd.items()
    ]


def _searches(columns: Sequence[Column], keys: Sequence[Key]) -> list[str]:
    """Return footnotes on the choice of learning rates: where columns differ, and whenever query labels of the test were used."""
    datasets = {key.dataset for key in keys}
    kinds: dict[str, str] = {}
    for column in columns:
        used = sorted({r.search.partition(":")[0] for r in column.evaluation.results if r.dataset in datasets and r.search})
        if used:
            kinds[column.label] = "+".join(used)
    lines = _differing("Learning rate chosen on", kinds)
    flattered = [label for label, kind in kinds.items() if "paper" in kind.split("+")]
    if flattered:
        lines.append(
            f"{_listed(flattered)}: the learning rate was chosen on episodes of the test itself with their query labels (search paper), "
            "as the papers did; this favours them."
        )
    return lines


def _seeds(columns: Sequence[Column]) -> list[str]:
    means = [c for c in columns if c.evaluation.members]
    if not means:
        return []
    each = _listed([f"{c.label} ({len(c.evaluation.members)})" for c in means])
    single = " Other columns are single trainings." if len(means) < len(columns) else ""
    return [f"Mean over seeds: {each}; intervals here are over episodes; the table of seeds has those over seeds.{single}"]


def _differing(title: str, values: Mapping[str, str]) -> list[str]:
    """Return `Image size differs: 128 px for A and B; 224 px for C.`, or nothing if all are equal."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    if len(labels) < 2:
        return []
    return [f"{title} differs: {'; '.join(f'{value} for {_listed(who)}' for value, who in labels.items())}."]


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:MOST]) + ([f"{len(names) - MOST} more"] if len(names) > MOST else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _pixels(size: object) -> str:
    return f"{size} px" if size else ""


def _training(evaluation: EvaluationResult) -> dict[str, object]:
    found = evaluation.run.recipe.get("train")
    return found if isinstance(found, dict) else {}


def _data(evaluation: EvaluationResult) -> dict[str, list[object]]:
    found = evaluation.run.recipe.get("data")
    return found if isinstance(found, dict) else {}
