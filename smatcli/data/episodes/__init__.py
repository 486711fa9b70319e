"""Which classes and images an episode holds, and how its images are loaded."""

from smatcli.moved import attribute_error

__getattr__ = attribute_error(__name__)
