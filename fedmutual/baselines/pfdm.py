"""`pfdm`: high noise is shared, low noise is each client's own (Patel, Zhang and Wang; CVPR 2026, *Personalized
Federated Training of Diffusion Models with Privacy Guarantees*).

Each client scales its samples down to the norm sqrt(d), noises each once,

    z = alpha_s x + sigma_s eps,   s the last training time before `split`,

and sends them, with its label. The server trains one denoiser on all z, which it takes for samples, at the times after
s, and sends it to all clients. Each client trains a denoiser of its own on its samples up to s, which never leaves. A
sample is drawn by the shared one down to `split`, and by the client's own from there.

Ours after the paper, of which we could not read the settings: the shared denoiser is given the label, a client's class,
as without one it would draw from all classes; the split; no client chooses an epsilon, nor a norm. Here the noise
follows from the seed, so that a comparison can be repeated, and the protocol runs in one process: what is sent is
counted.
"""

import torch
from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Rows, Trained, ignore
from fedmutual.baselines.isolated import train_alone
from fedmutual.baselines.pooled import train_conditional
from fedmutual.config import RunConfig
from fedmutual.data import ClassData
from fedmutual.device import dtype_of
from fedmutual.diffusion import Process, make_process
from fedmutual.diffusion.process import expand
from fedmutual.learning.conditional import by_sample, denoising
from fedmutual.networks import OfClass, build, build_conditional
from fedmutual.networks.split import PRIVATE, PUBLISHED, Split, border
from fedmutual.privacy.versions import level_of, norm_of, scaled_down
from fedmutual.seeds import generator


def upload(config: RunConfig, samples: Tensor, y: int, process: Process) -> Tensor:
    """What class y sends of its `samples: [n, *dims]`: each scaled down to the norm sqrt(d) and noised once."""
    rng = generator(config.seed, y, 0, "upload", device=samples.device)
    noise = torch.randn(samples.shape, generator=rng, device=samples.device, dtype=samples.dtype)
    index = torch.full((len(samples),), level_of(config), device=samples.device)
    return process.noised(scaled_down(samples, norm_of(config, samples[0].numel())), index, noise)


class Shared(nn.Module):
    """What the denoiser of noised samples says of the samples at label y: (x, t) -> c(t) s_z(x, t, y), at t after s.

    By x_t = a z + b xi the noise of x_t is (sigma_t / b) xi in the mean, its score -xi / b, and its velocity that of
    s_z times sigma_t / (alpha_s b).
    """

    times: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, y: int, config: RunConfig):
        super().__init__()
        self.network = OfClass(network, y)
        level, process = level_of(config), make_process(config.diffusion, dtype=torch.float64)
        ratio = process.sigma[level + 1 :] / process.after(level).sigma
        of_output = {"noise": ratio, "score": torch.ones_like(ratio), "velocity": ratio / process.alpha[level]}
        tables = {"times": process.times[level + 1 :], "scale": of_output[config.diffusion.parametrisation]}
        for name, table in tables.items():
            self.register_buffer(name, table.to(dtype_of(config.compute)), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = self.scale[torch.searchsorted(self.times, t.contiguous())]
        output: Tensor = self.network(x, t)
        return expand(scale, x) * output


def build_split(config: RunConfig, shape: tuple[int, ...], classes: int, y: int) -> Split:
    """Class y's network in two parts, before training: `Shared`, and its own."""
    shared = Shared(build_conditional(_of_server(config), shape, classes), y, config)
    return Split(shared, build(config.but(publish="network"), shape, y), border(config))


def pfdm(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    """As many steps as the other methods for each class's own and for the shared one, each of the rows at its times.

    The settings have publish = noise-split, from which the split and the published part's width are taken. What a
    client sends is in its line of the first round, and what it receives in that of the last.
    """
    device, level = data[0].train.device, level_of(config)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    sent = [upload(config, part.train, y, process) for y, part in enumerate(data)]
    shared = _serve(config, sent, process.after(level))
    below = process.below(border(config))
    own = config.but(publish="network", batch=_rows(config, level + 1))
    private: list[dict[str, Tensor]] = []
    lines: list[Rows] = []
    for y, part in enumerate(data):
        player, rows = train_alone(own, part, y, below)
        private.append(player.published())
        rows[0]["bytes_up"], rows[-1]["bytes_down"] = _size(sent[y]), sum(map(_size, shared.values()))
        lines.append(rows)
    for round_, row_of_each in enumerate(zip(*lines, strict=True), 1):
        on_round(round_, list(row_of_each))
    public = {f"{PUBLISHED}network.network.{name}": tensor for name, tensor in shared.items()}
    networks: dict[int | str, dict[str, Tensor]] = {
        y: public | {f"{PRIVATE}{name}": tensor for name, tensor in network.items()}
        for y, network in enumerate(private)
    }
    parameters = sum(tensor.numel() for network in (shared, *private) for tensor in network.values())
    return Trained(networks, config.rounds * config.local_steps, {"parameters": parameters})


def _serve(config: RunConfig, sent: list[Tensor], process: Process) -> dict[str, Tensor]:
    """The server's part: a conditional denoiser of what was sent, and of nothing else."""
    received = [ClassData(z, z[:0]) for z in sent]
    high = _of_server(config).but(batch=_rows(config, len(process)))
    return train_conditional(high, received, by_sample, denoising, ignore, process=process).networks["shared"]


def _of_server(config: RunConfig) -> RunConfig:
    """The settings of the shared network, which may have a width of its own."""
    whole, width, kind = config.but(publish="network"), config.publishing.width, config.network.kind
    sized = "unet" if kind.startswith("unet") else kind  # a named U-Net is of one width
    return whole.but(network=sized, width=width) if width else whole


def _rows(config: RunConfig, times: int) -> int:
    """Of a batch at all training times those at so many of them."""
    return max(1, round(config.optimiser.batch * times / config.diffusion.steps))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
