"""The flip search step by step: the support loss that it follows, and the query accuracy that it never sees."""

import numpy as np
import torch

from smatcli.adaptation.flip import Flip
from smatcli.adaptation.states import normalised
from smatcli.engine.analyze.subject import Job, Subject
from smatcli.methods.prototypes import accuracy, cosine_logits, prototypes
from smatcli.runs.analysis import Analysis, Arrays
from smatcli.seams import Episode

EPISODES = 20
HEADS = ["dataset", "domain", "state", "episodes", "lowest support loss", "query accuracy"]


def jobs(subject: Subject) -> list[Job]:
    """One analysis."""
    count = subject.episodes or EPISODES
    found = Analysis("flip", f"{subject.variant('flip')}-{subject.questions.folder}", subject.asked(count, "flip"))
    return [Job(found, lambda: fill(subject, count, found), count * len(subject.datasets))]


def fill(subject: Subject, count: int, found: Analysis) -> None:
    """By dataset, for episode e and the t-th measured state: support `loss` [E, T] (NaN after the end), the lowest so far (`lowest`), and
    the query `accuracy` of the state that has it. State 0 is the router's own scores; after its end a search keeps its answer."""
    lines = [HEADS]
    for dataset in subject.datasets:
        traces = []
        for episode in subject.each(dataset.name, count):
            traces.append(trace(subject, episode))
            subject.step(dataset=dataset.name)
        arrays = _padded(traces)
        found.groups[dataset.name] = arrays
        found.attributes[dataset.name] = {"domain": dataset.domain, "protocol": subject.questions.protocol(dataset.name)}
        for t, values in enumerate(zip(arrays["lowest"].mean(0), arrays["accuracy"].mean(0), strict=True)):
            lines.append([dataset.name, dataset.domain, str(t), str(len(traces)), *(f"{v:.6f}" for v in values)])
    found.tables = {"": lines}


@torch.no_grad()
def trace(subject: Subject, episode: Episode) -> np.ndarray:
    """[3, T] float64 of one search: loss of each measured state, lowest so far, query accuracy of the state that has it."""
    task = subject.task(episode)
    assert task.alpha is not None and task.merge is not None
    measured = Flip(subject.recipe.adapt.flip).adapt(task, episode.support).info["trace"]
    lowest, share, rows = np.inf, np.nan, []
    support = episode.support
    for bits, loss in measured:
        if loss < lowest:
            theta = task.theta if bits is None else task.merge(normalised(bits, task.alpha))
            centres = prototypes(task.embed(support.images, theta), support.labels, support.ways)
            share = accuracy(cosine_logits(task.embed(episode.query_images, theta), centres, task.scale), episode.query_labels)
            lowest = loss
        rows.append((loss, lowest, share))
    return np.array(rows).T


def _padded(traces: list[np.ndarray]) -> Arrays:
    longest = max(t.shape[1] for t in traces)
    loss, lowest, share = (np.full((len(traces), longest), np.nan) for _ in range(3))
    for i, (a, b, c) in enumerate(traces):
        loss[i, : len(a)] = a
        lowest[i] = np.pad(b, (0, longest - len(b)), mode="edge")
        share[i] = np.pad(c, (0, longest - len(c)), mode="edge")
    return {"loss": loss, "lowest": lowest, "accuracy": share, "states": np.array([t.shape[1] for t in traces])}
