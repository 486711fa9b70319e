"""The learning rate of an adaptation where nothing but a support set is known."""

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
    """`adaptation` at a rate, and how it was chosen: None where it has none or was given one.

    The images of every class are dealt to two halves, each classified with what was learned from the other, at rate 0 (no adaptation) and
    those of `adapt.search.rates`. `UserError` where there is nothing to choose on.
    """
    if getattr(adaptation, "rate", 0.0) is not None or not hasattr(adaptation, "at"):
        return adaptation, None
    rated: Rated = adaptation  # type: ignore[assignment]
    give = f"give its learning rate by adapt.{adapt}.lr=..."
    if settings.search.kind != "valid":
        raise UserError(
            f"{adapt}: there is no {settings.search.kind} search on a support set alone; {give}, or use adapt.search.kind=valid"
        )
    known = Episode(support, support.images[:0], support.labels[:0], "support", 0, 0)
    halves = list(support_halves(known))
    if not halves:
        raise UserError(f"{adapt}: every class has a single image, so that no learning rate can be chosen; {give}, or use --adapt proto")
    rates = tuple(sorted({0.0, *settings.search.rates}))
    shares, grouping = [], Grouping(settings.group)
    for half in halves:
        task = method.task(half.support)
        portions = candidates(rated, task, half.support, rates, grouping)
        logits = [classifier.predict(half.query_images) for _, adapted in portions for classifier in adapted()]
        shares.append([accuracy(found, half.query_labels) for found in logits])
    choice = Choice.best("support", rates, np.mean(shares, 0).tolist(), len(halves))
    return rated.at(choice.rate), choice
