"""The registry of methods: what each does with the data, the order of tables, and what it is in one sentence.

How a method is run is the business of `simulations.experiments.methods`; what reads or shows runs needs these facts
alone, and no client or server.
"""

from dataclasses import dataclass
from typing import Literal

DATA = {"stays": "Data stays", "pooled": "Data is pooled", "control": "Controls"}
"""What a method does with the data, in the order in which arms are shown."""


@dataclass(frozen=True)
class Method:
    """data: whether samples stay with their clients, are pooled, or the method is a control that claims neither."""

    name: str
    data: Literal["stays", "pooled", "control"]
    gloss: str
    mutual: bool = False
    """Whether it is the mutual learning that the others are compared with."""


METHODS = {
    method.name: method
    for method in (
        Method("mutual", "stays", "a network a class, pulled towards its peers by the beta rule of its settings", True),
        Method(
            "mutual-auto",
            "stays",
            "a network a class, pulled towards its peers by what its held-out samples say that they are worth",
            True,
        ),
        Method(
            "mutual-scarcity",
            "stays",
            "a network a class, pulled towards its peers by beta r / (r + n): the more samples, the less pull",
            True,
        ),
        Method(
            "mutual-constant", "stays", "a network a class, pulled towards its peers by the same beta for all", True
        ),
        Method("isolated", "stays", "a network a class, each on its own (beta 0)"),
        Method("fedavg", "stays", "one conditional network, averaged by Flower's FedAvg"),
        Method("fedprox", "stays", "one conditional network by Flower's FedProx, clients held near the average"),
        Method("fedavgm", "stays", "as fedavg, the server stepping to the average with momentum"),
        Method("fedadam", "stays", "as fedavg, the server stepping to the average by Adam"),
        Method("fedyogi", "stays", "as fedavg, the server stepping to the average by Yogi"),
        Method("scaffold", "stays", "as fedavg, clients' gradients corrected by control variates"),
        Method("fedper", "stays", "a network a class, all but its first and last layers averaged"),
        Method("finetuned", "stays", "one network without labels, averaged, then each class on its own"),
        Method(
            "pfdm",
            "stays",
            "samples noised once are sent, one network of high noise learns them, low noise is each class's own",
        ),
        Method("predictions", "stays", "the networks of isolated, drawn from by what all of them predict at each step"),
        Method("pooled", "pooled", "one conditional network on all samples in one place"),
        Method("reweighted", "pooled", "the same as pooled, every class drawn as often"),
        Method("cbdm", "pooled", "the same as pooled with the loss of CBDM"),
        Method("ccua", "pooled", "the same as pooled, at high noise held to its prediction without a label"),
        Method("coral", "pooled", "the same as pooled, labels set apart at the bottleneck by CORAL's contrast"),
        Method("oc", "pooled", "the same as pooled, rare labels taught by likely neighbours of larger ones (T2H)"),
        Method("cm", "pooled", "the same as pooled, a low-rank part of its weights held back for rare labels"),
        Method("central-igd", "pooled", "a network a class, peers exchanged at every step"),
        Method("shared-igd", "pooled", "one conditional network, classes take turns, their peers its other labels"),
        Method("ridge", "control", "isolated with weight decay, each class's chosen by its held-out samples"),
        Method("copy-head", "control", "the largest class's network for every class"),
        Method(
            "kernel-density", "control", "a Gaussian around each training sample, as wide as held-out ones like best"
        ),
        Method("memory", "control", "the training samples themselves as the generated ones"),
    )
}
"""By name, in the order of tables. Runs of `simulate` are `mutual` or `isolated`; a comparison names the beta rule."""

OURS = ("mutual-auto", "mutual-scarcity", "mutual", "mutual-constant")
"""The arm that speaks for mutual learning is the first of these that is there: not the best on the test samples."""


def place(name: str) -> int:
    """Where a method stands in tables; those that are not known come after all others."""
    return list(METHODS).index(name) if name in METHODS else len(METHODS)
