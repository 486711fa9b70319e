"""`smat data prepare`: conversion of source images to stores."""

from smatcli.engine.prepare.preparation import prepare
from smatcli.moved import attribute_error

__all__ = ["prepare"]

__getattr__ = attribute_error(__name__)
