"""Analysis `flip`: support loss and query accuracy after each state of the flip search (the search never uses the latter)."""

import numpy as np
import torch

from smatcli.adaptation.flip import Flip
from smatcli.adaptation.states import normalised
from smatcli.engine.analyze.subject import AnalysisJob, Subject
from smatcli.methods.prototypes import accuracy, cosine_logits, prototypes
from smatcli.runs.analysis import Analysis, Arrays
from smatcli.seams import Episode

EPISODES = 20
HEADS = ["dataset", "domain", "state", "episodes", "lowest support loss", "query accuracy"]


def jobs(subject: Subject) -> list[AnalysisJob]:
    """Return the single analysis."""
    count = subject.options.episodes or EPISODES
    analysis = Analysis("flip", f"{subject.variant('flip')}-{subject.eval_episodes.folder}", subject.episode_settings(count, "flip"))
    return [AnalysisJob(analysis, lambda: fill(subject, count, analysis), count * len(subject.datasets))]


def fill(subject: Subject, count: int, analysis: Analysis) -> None:
    """Fill the analysis, one group per dataset, with arrays [E, T] over episodes and measured states.

    `loss`: support loss of the state (NaN after the end of the search); `lowest`: lowest loss so far; `accuracy`: query accuracy of the
    state with the lowest loss so far. State 0 is the router's scores. `states` [E]: number of states.
    """
    lines = [HEADS]
    for dataset in subject.datasets:
        traces = []
        for episode in subject.episodes(dataset.name, count):
            traces.append(trace(subject, episode))
            subject.step(dataset=dataset.name)
        arrays = _padded(traces)
        analysis.groups[dataset.name] = arrays
        analysis.attributes[dataset.name] = {"domain": dataset.domain, "protocol": subject.eval_episodes.protocol(dataset.name)}
        for t, values in enumerate(zip(arrays["lowest"].mean(0), arrays["accuracy"].mean(0), strict=True)):
            lines.append([dataset.name, dataset.domain, str(t), str(len(traces)), *(f"{v:.6f}" for v in values)])
    analysis.tables = {"": lines}


@torch.no_grad()
def trace(subject: Subject, episode: Episode) -> np.ndarray:
    """Return [3, T] float64 for one search: loss of each state, lowest loss so far, query accuracy of the state with the lowest loss."""
    task = subject.task(episode)
    assert task.alpha is not None
    assert task.merge is not None
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
