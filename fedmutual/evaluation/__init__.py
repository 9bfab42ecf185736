"""What generated samples are worth: measures on arrays, for each class and for the worst one."""

from fedmutual.evaluation.metrics import (
    ClassSummary,
    class_metrics,
    f_beta,
    frechet_distance,
    inception_score,
    kernel_distance,
    memorisation,
    near_copies,
    precision_recall,
    summarise,
    two_nearest,
)
from fedmutual.evaluation.registry import COUNTS, DISTANCES, METRICS, Metric, in_order, name_in

__all__ = [
    "COUNTS",
    "DISTANCES",
    "METRICS",
    "ClassSummary",
    "Metric",
    "class_metrics",
    "f_beta",
    "frechet_distance",
    "in_order",
    "inception_score",
    "kernel_distance",
    "memorisation",
    "name_in",
    "near_copies",
    "precision_recall",
    "summarise",
    "two_nearest",
]
