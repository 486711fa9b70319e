"""Analysis `features`: support and query features of one episode on their first two principal axes, before and after tuning."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.engine.analyze.subject import AnalysisJob, Subject
from smatcli.engine.evaluate.episodes import Dataset
from smatcli.errors import UserError
from smatcli.methods.prototypes import accuracy, cosine_logits, prototypes
from smatcli.runs.analysis import Analysis, texts
from smatcli.seams import Adaptation, Episode

STAGES = ("pre-trained", "meta-tuned")


def jobs(subject: Subject) -> list[AnalysisJob]:
    """Return one analysis per adaptation, by default of the first in-domain and the first out-of-domain dataset."""
    chosen, jobs, index = subject.datasets, [], subject.options.index
    if subject.options.datasets is None:
        chosen = list({d.domain: d for d in reversed(subject.datasets)}.values())[::-1]
    for adapt in subject.adapts:
        subject.check(adapt)
        settings = {**subject.episode_settings(None, adapt), "index": index, "shown": [d.name for d in chosen]}
        name, facts = f"features-{subject.variant(adapt)}-{subject.eval_episodes.folder}", {"adapt": subject.variant(adapt)}
        analysis = Analysis("features", name, settings, facts=facts)
        jobs.append(AnalysisJob(analysis, partial(fill, subject, adapt, chosen, analysis), len(chosen)))
    return jobs


def fill(subject: Subject, adapt: str, chosen: Sequence[Dataset], analysis: Analysis) -> None:
    """Fill the analysis, one group per dataset.

    `coordinates` [K, S + Q, 2] of the unit-length features in K stages (pre-trained, meta-tuned, and adapted if the adaptation changes
    parameters), `explained` [K, 2] shares of the variance, query `accuracy` [K], `label` and `is_query` [S + Q].
    """
    index = subject.options.index
    lines = [["dataset", "stage", "image", "class", "part", "first axis", "second axis"]]
    for dataset in chosen:
        episodes = list(subject.episodes(dataset.name, 1, index))
        if not episodes:
            raise UserError(f"--index {index}: the list has only {subject.eval_episodes.counts[dataset.name]} episodes of {dataset.name}")
        plan = subject.eval_episodes.samplers[dataset.name].plan(index)
        names = [subject.stores[dataset.name].class_names[c] for c in plan.classes]
        stages, arrays = stage_features(subject, episodes[0], subject.adaptation(adapt, dataset.name))
        analysis.groups[dataset.name] = {**arrays, "stage": texts(stages), "class_names": texts(names)}
        protocol = subject.eval_episodes.protocol(dataset.name)
        analysis.attributes[dataset.name] = {"domain": dataset.domain, "index": index, "protocol": protocol}
        for k, stage in enumerate(stages):
            for i, (x, y) in enumerate(arrays["coordinates"][k]):
                part = "query" if arrays["is_query"][i] else "support"
                lines.append([dataset.name, stage, str(i), names[arrays["label"][i]], part, f"{x:.5f}", f"{y:.5f}"])
        subject.step(dataset=dataset.name, adaptation=adapt)
    analysis.tables = {"": lines}


@torch.no_grad()
def stage_features(subject: Subject, episode: Episode, adaptation: Adaptation) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of an episode's stages, and its arrays (see `fill`)."""
    task, support = subject.task(episode), episode.support
    stages = dict(zip(STAGES, (subject.method.theta_pre, task.theta), strict=True))
    adapted = getattr(adaptation.adapt(task, support), "theta", None)
    if adapted is not None and not torch.equal(adapted, task.theta):
        stages["adapted"] = adapted
    if torch.equal(task.theta, subject.method.theta_pre):
        del stages["meta-tuned"]
    points, shares, accuracies = [], [], []
    support_size = len(support.labels)
    for theta in stages.values():
        features = task.embed(torch.cat([support.images, episode.query_images]), theta).float()
        centres = prototypes(features[:support_size], support.labels, support.ways)
        accuracies.append(accuracy(cosine_logits(features[support_size:], centres, task.scale), episode.query_labels))
        coordinates, explained = principal(F.normalize(features, dim=1))
        points.append(coordinates.numpy())
        shares.append(explained.numpy())
    labels = torch.cat([support.labels, episode.query_labels]).cpu().numpy()
    arrays = {
        "coordinates": np.stack(points),
        "explained": np.stack(shares),
        "accuracy": np.array(accuracies),
        "label": labels,
        "is_query": np.arange(len(labels)) >= support_size,
    }
    return list(stages), arrays


def principal(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates [n, 2] of features [n, D] on the first two principal axes, and the axes' shares [2] of the variance.

    Both are float64 on the CPU. The sign of an axis is such that its largest entry (in absolute value) is positive.
    """
    centred = features.double().cpu()
    centred = centred - centred.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    two = torch.zeros(len(centred), 2, dtype=torch.float64)
    two[:, : min(2, len(s))] = (u * s)[:, :2]
    signs = torch.sign(two.gather(0, two.abs().argmax(0)[None, :]))
    variance = s.square()
    explained = torch.zeros(2, dtype=torch.float64)
    explained[: min(2, len(s))] = variance[:2] / variance.sum().clamp_min(1e-30)
    return two * torch.where(signs == 0, torch.ones_like(signs), signs), explained
