"""`predictions`: predictions are exchanged in place of networks, as in *Diffusion Federated Dataset* (Hahn and Lee;
NeurIPS 2025).

There each client trains alone; samples are drawn together, each step by what all clients predict of the same x_t, in
the composition of a mixture of their distributions. Where a client is a class, the part of such a mixture that has its
label is the class's own network, and nothing is gained. So ours is another composition, of the same exchange: class y
draws its samples by the output that minimises the mutual objective at each x_t, lambda ||s - s_y||² + beta_y omega
||s - E_Q s_{y'}||²,

    s(x, t) = s_y(x, t) + w(t) (E_Q s_{y'}(x, t) - s_y(x, t)),   w = beta_y omega / (lambda + beta_y omega),

towards which nobody has trained; beta 0 is `isolated`. The queries are the x_t of the samples that are drawn, with no
training sample behind them. The last of them nearly are those samples, and whoever may ask for a peer's predictions can
draw that peer's samples and attack it by its losses. The exchange runs in one process: what would be sent is counted.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Rows, Trained, ignore
from fedmutual.baselines.isolated import train_alone
from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.diffusion.process import expand
from fedmutual.learning.peers import effective_beta


class Composed(nn.Module):
    """(x: [batch, *dims], t: [batch]) -> own + w(t) (mean of the peers - own); `share: [N]` is w at `times`."""

    times: Tensor
    share: Tensor

    def __init__(self, own: nn.Module, peers: Sequence[nn.Module], times: Tensor, share: Tensor):
        super().__init__()
        self.own, self.peers = own, nn.ModuleList(peers)
        self.register_buffer("times", times)
        self.register_buffer("share", share)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        own: Tensor = self.own(x, t)
        mean = torch.stack([peer(x, t) for peer in self.peers]).mean(0)
        share = self.share[torch.searchsorted(self.times, t.contiguous())]
        return own + expand(share, own) * (mean - own)


def compose(
    networks: Mapping[int, nn.Module], counts: Sequence[int], config: RunConfig, device: torch.device
) -> dict[int, nn.Module]:
    """{class: what it draws by} from the network of each; `counts` are their training samples."""
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    weight, pull = process.weight(config.diffusion.lambda_weight), process.weight(config.mutual.omega_weight)
    composed: dict[int, nn.Module] = {}
    for y, own in networks.items():
        strength = effective_beta(config.mutual, counts[y]) * pull
        peers = [network for z, network in networks.items() if z != y]
        composed[y] = Composed(own, peers, process.times, strength / (weight + strength)).eval()
    return composed


def predictions(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    """The networks of `isolated`, which stay with their classes: readers compose them, see `compose`.

    What drawing the samples of the settings moves is in the lines of the last round.
    """
    networks: dict[int | str, dict[str, Tensor]] = {}
    lines: list[Rows] = []
    moved = exchanged(config, len(data), data[0].train[0])
    for y, part in enumerate(data):
        player, rows = train_alone(config, part, y)
        rows[-1] |= {"bytes_up": moved, "bytes_down": moved}
        networks[y] = player.published()
        lines.append(rows)
    for round_, row_of_each in enumerate(zip(*lines, strict=True), 1):
        on_round(round_, list(row_of_each))
    return Trained(networks, config.rounds * config.local_steps)


def exchanged(config: RunConfig, classes: int, sample: Tensor) -> int:
    """Bytes that a client sends while all classes draw the samples of the settings, and as many that it receives.

    For each step of a sample its class sends x_t to the server and receives the mean of the predictions; each peer
    receives x_t and sends a prediction.
    """
    steps = config.measuring.sampling_steps or config.diffusion.steps
    return classes * config.measuring.samples * steps * sample.numel() * sample.element_size()
