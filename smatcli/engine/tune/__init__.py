"""`smat tune`: tuning on a single dataset."""

from smatcli.engine.tune.tuning import tune
from smatcli.moved import attribute_error

__all__ = ["tune"]

__getattr__ = attribute_error(__name__)
