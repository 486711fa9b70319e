"""Results of tuning runs, `RUN/tune.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smatcli.errors import UserError
from smatcli.report.results.runs import Run, number, section, whole
from smatcli.safe.text import read_json

FILE = "tune.json"
FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """Test score (a fraction) of a run of `smat tune`; `label` is the label of its row, `facts` the content of tune.json."""

    run: Run
    dataset: str
    label: str
    score: float
    seed: int
    facts: dict[str, Any] = field(repr=False)

    @property
    def tuner(self) -> str:
        """The tuner's name."""
        return str(section(self.facts, "tuner").get("name", "?"))

    @property
    def metric(self) -> str:
        """The metric of the score."""
        return str(self.facts.get("metric", "accuracy"))

    @property
    def parameters(self) -> int | None:
        """Number of trained parameters, without the head."""
        return whole(section(self.facts, "parameters").get("tuner"))

    @property
    def images(self) -> tuple[Any, ...]:
        """The images behind a score (split, numbers of training and test images, content of the store); only equal ones are compared."""
        images = section(self.facts, "images")
        return (self.facts.get("split"), self.facts.get("fitted"), images.get("test"), self.facts.get("content_hash"))


def read_tuned(run: Run) -> Tuned | None:
    """Read the result of a run of `smat tune`, or None if it is unfinished. Raises UserError if it is damaged."""
    path = run.path / FILE
    if not path.is_file():
        return None
    try:
        facts = read_json(path)
        if not isinstance(facts, dict) or int(facts.get("format", 0)) > FORMAT:
            raise ValueError("it was written by another version of smat")
        dataset, score = str(facts["dataset"]), number(facts["score"])
        if score is None or not 0 <= score <= 1:
            raise ValueError(f"its score {facts['score']} is not a fraction in [0, 1]")
        return Tuned(run, dataset, label_of(facts), score, whole(facts.get("seed")) or 0, facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a result of smat tune ({error}); move it away and tune again") from None


def label_of(facts: Mapping[str, Any]) -> str:
    """Return the tuner's name with the settings that distinguish its variants."""
    tuner = section(facts, "tuner")
    name = str(tuner.get("name", "?"))
    words = [name]
    if name == "mlae":
        mask = str(tuner.get("mask"))
        words += [mask] if mask != "stochastic" else []
        words += [str(tuner["pattern"])] if isinstance(tuner.get("pattern"), str) else []
        words += (
            [f"p={tuner['p']:g}"]
            if mask in ("stochastic", "mixed") and "tuner.p" not in _searched(facts) and number(tuner.get("p")) is not None
            else []
        )
        words += [f"cell {tuner['cell']}"] if tuner.get("cell", 1) != 1 else []
        words += [f"init {tuner['init']:g}"] if tuner.get("init", 1.0) != 1 and "tuner.init" not in _searched(facts) else []
    if name == "pmoe":
        words += [str(kind)] if (kind := section(tuner, "dispatcher").get("kind", "mlp")) != "mlp" else []
        words += ["gated"] if tuner.get("gated") else []
        words += [f"{layers} layers"] if (layers := tuner.get("layers")) else []
    words += [f"rank {rank}"] if (rank := tuner.get("rank", 8)) != 8 else []
    words += [f"dropout {drop:g}"] if (drop := number(tuner.get("dropout"))) else []
    return " ".join(words)


def _searched(facts: Mapping[str, Any]) -> dict[str, Any]:
    return section(facts, "searched")
