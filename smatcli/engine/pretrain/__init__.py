"""`smat pretrain`."""

from smatcli.engine.pretrain.pretraining import pretrain

__all__ = ["pretrain"]
