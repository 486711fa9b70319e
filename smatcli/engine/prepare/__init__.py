"""`smat prepare`."""

from smatcli.engine.prepare.preparation import prepare
from smatcli.moved import attribute_error

__all__ = ["prepare"]

__getattr__ = attribute_error(__name__)
