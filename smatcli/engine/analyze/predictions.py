"""Analysis `predictions`: predicted class and confidence of every query image, for calibration and confusion."""

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from smatcli.data.stores.store import Store
from smatcli.engine.analyze.subject import AnalysisJob, Subject
from smatcli.runs.analysis import Analysis, Arrays, texts
from smatcli.runs.statistics import confused_pairs, reliability

EPISODES, PAIRS, SIDE = 50, 6, 48  # episodes and most confused pairs per dataset; side of a thumbnail in pixels
HEADS = ["dataset", "domain", "queries", "accuracy", "confidence", "calibration error", "log loss"]


def jobs(subject: Subject) -> list[AnalysisJob]:
    """Return one analysis per adaptation."""
    count, jobs = subject.options.episodes or EPISODES, []
    for adapt in subject.adapts:
        subject.check(adapt)
        name = f"predictions-{subject.variant(adapt)}-{subject.eval_episodes.folder}"
        analysis = Analysis("predictions", name, subject.episode_settings(count, adapt), facts={"adapt": subject.variant(adapt)})
        jobs.append(AnalysisJob(analysis, partial(fill, subject, adapt, count, analysis), count * len(subject.datasets)))
    return jobs


def fill(subject: Subject, adapt: str, count: int, analysis: Analysis) -> None:
    """Fill the analysis, one group per dataset, with arrays over all query images, and the most confused pairs with thumbnails.

    `episode`; `row` in the store; `label` and `predicted`: true and predicted class in the store; `confidence`: largest softmax output;
    `loss`: cross-entropy in nats.
    """
    lines, pairs = [HEADS], [["dataset", "first", "second", "confused", "asked"]]
    for dataset in subject.datasets:
        store, arrays = subject.stores[dataset.name], _predictions(subject, adapt, dataset.name, count)
        thumbnails, named = _pairs(store, arrays)
        correct = arrays["label"] == arrays["predicted"]
        error = reliability(arrays["confidence"], correct).error
        means = [correct.mean(), arrays["confidence"].mean(), error, arrays["loss"].mean()]
        lines.append([dataset.name, dataset.domain, str(len(correct)), *(f"{v:.6f}" for v in means)])
        pairs += [[dataset.name, *words] for words in named]
        analysis.groups[dataset.name] = {**arrays, **thumbnails}
        analysis.attributes[dataset.name] = {
            "domain": dataset.domain,
            "split": subject.eval_episodes.splits[dataset.name],
            "protocol": subject.eval_episodes.protocol(dataset.name),
            "episodes": len(np.unique(arrays["episode"])),
        }
    analysis.tables = {"": lines, "pairs": pairs}


@torch.no_grad()
def _predictions(subject: Subject, adapt: str, dataset: str, count: int) -> Arrays:
    adaptation, sampler = subject.adaptation(adapt, dataset), subject.eval_episodes.samplers[dataset]
    columns: dict[str, list[Any]] = {key: [] for key in ("episode", "row", "label", "predicted", "confidence", "loss")}
    for episode in subject.episodes(dataset, count):
        logits = adaptation.adapt(subject.task(episode), episode.support).predict(episode.query_images).float().cpu()
        plan, log_probabilities = sampler.plan(episode.index), torch.log_softmax(logits, 1)
        best, labels = log_probabilities.max(1), episode.query_labels.cpu()
        columns["episode"].append(np.full(len(labels), episode.index))
        columns["row"].append(plan.query)
        columns["label"].append(plan.classes[plan.query_labels])
        columns["predicted"].append(plan.classes[best.indices.numpy()])
        columns["confidence"].append(best.values.exp().numpy())
        columns["loss"].append(-log_probabilities.gather(1, labels[:, None])[:, 0].numpy())
        subject.step(dataset=dataset, adaptation=adapt)
    return {key: np.concatenate(values) for key, values in columns.items()}


def _pairs(store: Store, arrays: Arrays) -> tuple[Arrays, list[list[str]]]:
    """Return the most confused pairs twice: as arrays with thumbnails (a misclassified image of each class), and as lines of text."""
    pairs = confused_pairs(arrays["episode"], arrays["label"], arrays["predicted"], PAIRS)
    pictures = [[_thumbnail(store, arrays, a, b) for a, b in ((p.first, p.second), (p.second, p.first))] for p in pairs]
    names = [[store.class_names[p.first], store.class_names[p.second]] for p in pairs]
    columns: Arrays = {
        "class_names": texts(store.class_names),
        "pair": np.array([[p.first, p.second] for p in pairs], np.int64).reshape(-1, 2),
        "pair_count": np.array([p.count for p in pairs], np.int64),
        "pair_asked": np.array([p.asked for p in pairs], np.int64),
        "pair_thumbnails": np.array(pictures, np.uint8).reshape(-1, 2, SIDE, SIDE, 3),
    }
    return columns, [[*words, str(p.count), str(p.asked)] for words, p in zip(names, pairs, strict=True)]


def _thumbnail(store: Store, arrays: Arrays, label: int, other: int) -> np.ndarray:
    """Return a query image of class `label` that was classified as `other`, or if there is none any image of `label`.

    The image is uint8 [SIDE, SIDE, 3].
    """
    taken = arrays["row"][(arrays["label"] == label) & (arrays["predicted"] == other)]
    row = int(taken[0]) if len(taken) else int(store.class_offsets[label])
    pixels = np.asarray(store.images[np.array([row])])[0]
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
