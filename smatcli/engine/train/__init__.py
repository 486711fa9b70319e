"""`smat train`."""

from smatcli.engine.train.trainer import Trainer, train
from smatcli.moved import attribute_error

__all__ = ["Trainer", "train"]

__getattr__ = attribute_error(__name__)
