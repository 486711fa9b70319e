"""Choose the learning rate of an adaptation from the support set alone."""

import numpy as np

from smatcli.adaptation.grouped import Grouping
from smatcli.config.schema import AdaptConfig
from smatcli.engine.evaluate.rate_search import Rated, candidates, support_halves
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.methods.prototypes import accuracy
from smatcli.runs.rates import Choice
from smatcli.seams import Adaptation, Episode, Support


def with_rate(
    adapt: str, adaptation: Adaptation, settings: AdaptConfig, method: FlatMethod, support: Support
) -> tuple[Adaptation, Choice | None]:
    """Return `adaptation` with a learning rate, and how the rate was chosen (None if it was given, or if there is no rate).

    The candidates are 0 (no adaptation) and `adapt.search.rates`. They are compared by two-fold cross-validation on halves of the images of
    each class. Raises `UserError` if every class has a single image.
    """
    if getattr(adaptation, "rate", 0.0) is not None or not hasattr(adaptation, "at"):
        return adaptation, None
    rated: Rated = adaptation  # type: ignore[assignment]
    give = f"give its learning rate as adapt.{adapt}.lr=..."
    if settings.search.kind != "valid":
        raise UserError(f"{adapt}: a {settings.search.kind} search needs more than a support set; {give}, or use adapt.search.kind=valid")
    episode = Episode(support, support.images[:0], support.labels[:0], "support", 0, 0)
    halves = list(support_halves(episode))
    if not halves:
        raise UserError(f"{adapt}: every class has a single image, so no learning rate can be chosen; {give}, or use --adapt proto")
    rates = tuple(sorted({0.0, *settings.search.rates}))
    shares, grouping = [], Grouping(settings.group)
    for half in halves:
        task = method.task(half.support)
        portions = candidates(rated, task, half.support, rates, grouping)
        logits = [classifier.predict(half.query_images) for _, adapted in portions for classifier in adapted()]
        shares.append([accuracy(each, half.query_labels) for each in logits])
    choice = Choice.best("support", rates, np.mean(shares, 0).tolist(), len(halves))
    return rated.at(choice.rate), choice
