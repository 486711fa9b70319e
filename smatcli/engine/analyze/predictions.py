"""What a run says of every query image, and how sure it is: for calibration, confusion, and the pairs of classes it cannot tell apart."""

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from smatcli.data.stores.store import Store
from smatcli.engine.analyze.subject import Job, Subject
from smatcli.runs.analysis import Analysis, Arrays, texts
from smatcli.runs.statistics import confused_pairs, reliability

EPISODES, PAIRS, SIDE = 50, 6, 48  # a dataset; most confused pairs kept; pixels of a thumbnail
HEADS = ["dataset", "domain", "queries", "accuracy", "confidence", "calibration error", "log loss"]


def jobs(subject: Subject) -> list[Job]:
    """One analysis an adaptation."""
    count, made = subject.episodes or EPISODES, []
    for adapt in subject.adapts:
        subject.check(adapt)
        name = f"predictions-{subject.variant(adapt)}-{subject.questions.folder}"
        found = Analysis("predictions", name, subject.asked(count, adapt), facts={"adapt": subject.variant(adapt)})
        made.append(Job(found, partial(fill, subject, adapt, count, found), count * len(subject.datasets)))
    return made


def fill(subject: Subject, adapt: str, count: int, found: Analysis) -> None:
    """By dataset the `episode`, `row` of the store, true `label`, `predicted` class (both of the store),
    `confidence` (largest softmax output) and `loss` (nats) of every query image, and the most confused pairs with thumbnails."""
    lines, pairs = [HEADS], [["dataset", "first", "second", "confused", "asked"]]
    for dataset in subject.datasets:
        store, arrays = subject.stores[dataset.name], _predictions(subject, adapt, dataset.name, count)
        thumbnails, named = _pairs(store, arrays)
        correct = arrays["label"] == arrays["predicted"]
        error = reliability(arrays["confidence"], correct).error
        means = [correct.mean(), arrays["confidence"].mean(), error, arrays["loss"].mean()]
        lines.append([dataset.name, dataset.domain, str(len(correct)), *(f"{v:.6f}" for v in means)])
        pairs += [[dataset.name, *words] for words in named]
        found.groups[dataset.name] = {**arrays, **thumbnails}
        found.attributes[dataset.name] = {
            "domain": dataset.domain,
            "split": subject.questions.splits[dataset.name],
            "protocol": subject.questions.protocol(dataset.name),
            "episodes": len(np.unique(arrays["episode"])),
        }
    found.tables = {"": lines, "pairs": pairs}


@torch.no_grad()
def _predictions(subject: Subject, adapt: str, dataset: str, count: int) -> Arrays:
    adaptation, sampler = subject.adaptation(adapt, dataset), subject.questions.samplers[dataset]
    columns: dict[str, list[Any]] = {key: [] for key in ("episode", "row", "label", "predicted", "confidence", "loss")}
    for episode in subject.each(dataset, count):
        logits = adaptation.adapt(subject.task(episode), episode.support).predict(episode.query_images).float().cpu()
        plan, log_shares = sampler.plan(episode.index), torch.log_softmax(logits, 1)
        best, labels = log_shares.max(1), episode.query_labels.cpu()
        columns["episode"].append(np.full(len(labels), episode.index))
        columns["row"].append(plan.query)
        columns["label"].append(plan.classes[plan.query_labels])
        columns["predicted"].append(plan.classes[best.indices.numpy()])
        columns["confidence"].append(best.values.exp().numpy())
        columns["loss"].append(-log_shares.gather(1, labels[:, None])[:, 0].numpy())
        subject.step(dataset=dataset, adaptation=adapt)
    return {key: np.concatenate(values) for key, values in columns.items()}


def _pairs(store: Store, arrays: Arrays) -> tuple[Arrays, list[list[str]]]:
    """The most confused pairs as arrays, two thumbnails each (an image that was taken for the other class), and as lines of text."""
    found = confused_pairs(arrays["episode"], arrays["label"], arrays["predicted"], PAIRS)
    pictures = [[_thumbnail(store, arrays, a, b) for a, b in ((p.first, p.second), (p.second, p.first))] for p in found]
    names = [[store.class_names[p.first], store.class_names[p.second]] for p in found]
    kept: Arrays = {
        "class_names": texts(store.class_names),
        "pair": np.array([[p.first, p.second] for p in found], np.int64).reshape(-1, 2),
        "pair_count": np.array([p.count for p in found], np.int64),
        "pair_asked": np.array([p.asked for p in found], np.int64),
        "pair_thumbnails": np.array(pictures, np.uint8).reshape(-1, 2, SIDE, SIDE, 3),
    }
    return kept, [[*words, str(p.count), str(p.asked)] for words, p in zip(names, found, strict=True)]


def _thumbnail(store: Store, arrays: Arrays, label: int, other: int) -> np.ndarray:
    """A query image of `label` that was taken for `other`, else any image of it, uint8 [SIDE, SIDE, 3]."""
    taken = arrays["row"][(arrays["label"] == label) & (arrays["predicted"] == other)]
    row = int(taken[0]) if len(taken) else int(store.class_offsets[label])
    pixels = np.asarray(store.images[np.array([row])])[0]
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
