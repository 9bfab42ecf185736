"""Private long-tailed data: where it comes from and how one class's part is cut."""

from fedmutual.data.source import (
    ClassData,
    class_names,
    load_class,
    load_test,
    load_unseen,
    num_classes,
    sample_shape,
    training_counts,
)

__all__ = [
    "ClassData",
    "class_names",
    "load_class",
    "load_test",
    "load_unseen",
    "num_classes",
    "sample_shape",
    "training_counts",
]
