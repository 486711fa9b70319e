"""`smat prepare`."""

from smatcli.engine.prepare.preparation import prepare

__all__ = ["prepare"]
