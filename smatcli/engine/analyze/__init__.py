"""`smat analyze`."""

from smatcli.engine.analyze.analysis import analyze
from smatcli.moved import attribute_error

__all__ = ["analyze"]

__getattr__ = attribute_error(__name__)
