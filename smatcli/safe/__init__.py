"""Bounded readers of untrusted files, and atomic writers."""

from smatcli.moved import attribute_error

__getattr__ = attribute_error(__name__)
