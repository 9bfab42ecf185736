"""Private long-tailed data: where it comes from and how one class's part is cut."""

from fedmutual.data.check import check
from fedmutual.data.opening import class_names, num_classes, open_source, sample_shape
from fedmutual.data.source import ClassData, Source

__all__ = ["ClassData", "Source", "check", "class_names", "num_classes", "open_source", "sample_shape"]
