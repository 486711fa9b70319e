"""Sampling of episodes, and loading of their images."""

from smatcli.moved import attribute_error

__getattr__ = attribute_error(__name__)
