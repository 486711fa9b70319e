"""`smat train`."""

from smatcli.engine.train.trainer import Trainer, train

__all__ = ["Trainer", "train"]
