"""`smat pretrain`: supervised pre-training of a backbone."""

from smatcli.engine.pretrain.pretraining import pretrain
from smatcli.moved import attribute_error

__all__ = ["pretrain"]

__getattr__ = attribute_error(__name__)
