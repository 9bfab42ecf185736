"""What generated samples are worth: measures on arrays, for each class and for the worst one."""

from fedmutual.evaluation.metrics import (
    LARGER_IS_WORSE,
    SMALLER_IS_WORSE,
    ClassSummary,
    class_metrics,
    f_beta,
    frechet_distance,
    inception_score,
    kernel_distance,
    memorisation,
    precision_recall,
    summarise,
)

__all__ = [
    "LARGER_IS_WORSE",
    "SMALLER_IS_WORSE",
    "ClassSummary",
    "class_metrics",
    "f_beta",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "memorisation",
    "precision_recall",
    "summarise",
]
