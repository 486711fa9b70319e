"""`smat train`: meta-training."""

from smatcli.engine.train.trainer import MetaLearner, train
from smatcli.moved import attribute_error

__all__ = ["MetaLearner", "train"]

__getattr__ = attribute_error(__name__)
