"""Sparse meta-tuning of vision transformers for few-shot learning."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smatcli.deploy.classifier import FewShotClassifier
    from smatcli.deploy.model import FewShotModel

from smatcli import moved
from smatcli.version import __version__

__all__ = ["__version__", "load", "load_classifier"]

moved.install()


def load(run: str | Path, which: str = "best", device: str | None = None) -> "FewShotModel":
    """A trained run, ready for `.adapt(images, labels).predict(images)`; `which` is its checkpoint (best or last)."""
    from smatcli.deploy.model import FewShotModel

    return FewShotModel.open(run, which, device)


def load_classifier(file: str | Path, device: str | None = None) -> "FewShotClassifier":
    """A classifier that `.save(file)` wrote, ready for `.predict(images)`."""
    from smatcli.deploy.classifier import read_classifier

    return read_classifier(file, device)
