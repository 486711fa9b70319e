"""Sample episodes and load their images."""

from smatcli.moved import attribute_error

__getattr__ = attribute_error(__name__)
