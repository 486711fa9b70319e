"""Learning rates chosen by a search. An evaluation keeps them in search.json, so that it continues with the same rates."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from smatcli.errors import UserError
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import read_json

FILE = "search.json"
GIVEN = "given"  # label of a rate that was not searched


@dataclass(frozen=True)
class Choice:
    """The learning rate chosen for one dataset, with the `accuracies` (fractions) of the candidates `rates`.

    `label` names the data it was chosen on: valid (episodes of the dataset's validation classes), support (held-out images of the support
    sets), valid:a+b (validation classes of other datasets), paper (episodes of the evaluation itself, with their query labels).
    """

    label: str
    rate: float
    rates: tuple[float, ...]
    accuracies: tuple[float, ...]
    tasks: int

    @classmethod
    def best(cls, label: str, rates: Sequence[float], accuracies: Sequence[float], tasks: int) -> "Choice":
        """Choose the rate with the highest accuracy, the smallest rate if several are equally accurate."""
        rate = max(zip(accuracies, (-r for r in rates), strict=True))[1]
        return cls(label, abs(rate), tuple(rates), tuple(accuracies), tasks)

    def __str__(self) -> str:
        table = ", ".join(f"{rate:g}: {100 * share:.1f}" for rate, share in zip(self.rates, self.accuracies, strict=True))
        return f"learning rate {self.rate:g} (search {self.label}, {self.tasks} tasks; accuracy in % by rate: {table})"


def read_choices(folder: Path) -> dict[str, Choice]:
    """Return the choices by dataset, empty without a search. Raises UserError for a damaged file."""
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        body = read_json(file)
        choices = {}
        for name, c in body.items():
            rates, accuracies = (tuple(float(x) for x in c[key]) for key in ("rates", "accuracies"))
            choice = Choice(str(c["label"]), float(c["rate"]), rates, accuracies, int(c["tasks"]))
            if choice.rate not in choice.rates or len(choice.rates) != len(choice.accuracies):
                raise ValueError(name)
            choices[name] = choice
        return choices
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged; move its folder away to evaluate again") from None


def write_choices(folder: Path, choices: Mapping[str, Choice]) -> None:
    """Write search.json atomically."""
    atomic_write_text(folder / FILE, json.dumps({name: asdict(choice) for name, choice in choices.items()}, indent=1) + "\n")
