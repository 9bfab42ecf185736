"""The ClientApp of federated averaging: local steps on the one network that the server averages.

The network is conditional and this client trains it at its own label. Nothing is kept between rounds. A method
to compare with, in simulations: what arrives is not checked as in `client.app`, and is not meant for strangers.
"""

import json
import time
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.app import class_of, node_settings, own_data
from fedmutual.config import RunConfig
from fedmutual.data import num_classes
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.learning.held_out import held_out_loss
from fedmutual.learning.igd import local_steps
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.networks import OfClass, build_conditional

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round: `local-steps` from the server's network; reply with where they led, and the listed numbers.

    Flower's strategies weigh a client by `num-examples`, so that this method tells the server each class's size.
    """
    order = cast(dict[str, Any], message.content.config_records["config"])  # of our own server, in a simulation
    config = RunConfig.of(json.loads(order["settings"]), node_settings(context))
    y, round_, device = class_of(context), int(order["server-round"]), pick_device(config.compute)
    data = own_data(config, y, device)
    network = build_conditional(config, tuple(data.train.shape[1:]), num_classes(config.data)).to(device)
    # Only parameters travel: buffers are the same everywhere, and their average would round.
    network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict(), strict=False)
    own = OfClass(network, y)
    player = Player.start(own, config.optimiser)
    player.step = (round_ - 1) * config.local_steps  # which the learning rate goes by
    if mu := float(order.get("proximal-mu", 0.0)):
        add_proximal_term(network, mu)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    started = time.perf_counter()
    steps = local_steps(player, data.train, Peers(), config, process, y, round_)
    numbers: dict[str, int | float | list[int] | list[float]] = {
        "class": y,
        "num-examples": len(data.train),
        "loss": steps.loss,
        "gradient-norm": steps.gradient_norm,
        "seconds": time.perf_counter() - started,
    }
    if config.federation.evaluate_every and round_ % config.federation.evaluate_every == 0 and len(data.held_out):
        numbers["held-out-loss"] = held_out_loss(
            own, data.held_out, config.diffusion, config.compute.autocast, process, config.seed, y
        )
    reply = RecordDict({"arrays": pack_parameters(network), "numbers": MetricRecord(numbers)})
    return Message(reply, reply_to=message)


def add_proximal_term(network: nn.Module, mu: float) -> None:
    """Add mu / 2 ||w - w_0||² to whatever loss is descended next, w_0 the parameters now (Li et al., 2020).

    Its gradient mu (w - w_0) joins each parameter's as soon as that is there, ahead of clipping.
    """

    start: dict[torch.Tensor, torch.Tensor] = {p: p.detach().clone() for p in network.parameters()}

    def pull_back(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start[parameter], alpha=mu)

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(pull_back)


def pack_parameters(network: nn.Module) -> ArrayRecord:
    """A network's parameters, without its buffers, as an ArrayRecord."""
    return ArrayRecord({name: parameter.detach().cpu() for name, parameter in network.named_parameters()})
