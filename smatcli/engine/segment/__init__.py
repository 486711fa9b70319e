"""`smat segment`: tuning for segmentation."""

from smatcli.engine.segment.segmenting import segment
from smatcli.moved import attribute_error

__all__ = ["segment"]

__getattr__ = attribute_error(__name__)
