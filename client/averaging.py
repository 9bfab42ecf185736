"""The ClientApp of federated averaging: local steps from the parameters that the server has averaged.

What is averaged is a part of `fedmutual.learning.averaged`. The client keeps the rest, its optimiser and, for SCAFFOLD,
its control variate in its store, from which it also answers an order that comes again. A method to compare with, in
simulations: what arrives is not checked as in `client.app`, and is not meant for strangers.
"""

import json
import time
from typing import Any, cast

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from client.app import class_of, hello, node_settings, own_data, store_root
from client.store import LostState, Numbers, Store
from fedmutual.config import RunConfig
from fedmutual.data import ClassData, num_classes
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.learning.averaged import (
    Part,
    add_proximal_term,
    averaged_parameters,
    build_averaged,
    moments_of,
    of_class,
    take_over,
)
from fedmutual.learning.control_variates import CONTROL, Controlled
from fedmutual.learning.held_out import held_out_loss
from fedmutual.learning.igd import local_steps
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.records import pack_network

app = ClientApp()
app.query()(hello)


class Trainee:
    """Class y's player, and which of its parameters are averaged."""

    def __init__(self, order: dict[str, Any], config: RunConfig, shape: tuple[int, ...], y: int):
        part = cast(Part, order["part"])
        network = build_averaged(part, config, shape, num_classes(config.data)).to(pick_device(config.compute))
        self.averaged = averaged_parameters(part, network)
        own: nn.Module = of_class(part, network, y)
        self.controlled = Controlled(own) if order["control"] else None
        self.player = Player.start(self.controlled or own, config.optimiser)
        self.config, self.y = config, y
        self.remembers = part != "network" or bool(order["control"]) or config.rivals.optimizer_state == "kept"
        """Whether a round needs more of the one before than the server sends."""

    def receive(self, arrays: dict[str, Tensor], round_: int, proximal_mu: float) -> list[Tensor]:
        """Go on from the server's parameters, where some came; the sums of gradients for the control variate."""
        self.player.step = (round_ - 1) * self.config.local_steps  # which the learning rate goes by
        if arrays:
            if self.config.rivals.optimizer_state != "kept":
                self.player.optimizer.state.clear()
            take_over(self.player, self.averaged, arrays)
        if proximal_mu:
            add_proximal_term(self.averaged.values(), proximal_mu)
        if self.controlled is None:
            return []
        device = next(iter(self.averaged.values())).device
        return self.controlled.correct([arrays[f"{CONTROL}/{name}"].to(device) for name in self.averaged])

    def reply(self) -> dict[str, Tensor]:
        """What is to be averaged."""
        arrays: dict[str, Tensor] = {name: parameter.detach() for name, parameter in self.averaged.items()}
        if self.config.rivals.optimizer_state == "averaged":
            arrays |= moments_of(self.player, self.averaged)
        if self.controlled is not None:
            controls = zip(self.averaged, self.controlled.controls(), strict=True)
            arrays |= {f"{CONTROL}/{name}": control for name, control in controls}
        return {name: tensor.cpu() for name, tensor in arrays.items()}


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round: `local-steps` from the server's parameters; reply with where they led, and the listed numbers.

    Flower's strategies weigh a client by `weight`, its number of samples unless `averaging-weights` says otherwise, or
    the method is SCAFFOLD, whose paper takes the plain mean.
    """
    order = cast(dict[str, Any], message.content.config_records["config"])  # of our own server, in a simulation
    config = RunConfig.of(json.loads(order["settings"]), node_settings(context))
    y, round_, attempt, checkpointed = class_of(context), order["server-round"], order["attempt"], order["checkpointed"]
    data = own_data(config, y, pick_device(config.compute))
    trainee = Trainee(order, config, tuple(data.train.shape[1:]), y)
    store = Store(store_root(config), order["run"], y)
    with store.locked(config.federation.timeout):
        numbers = store.restore(trainee.player, attempt, round_, checkpointed)
        if not numbers and checkpointed and trainee.remembers:
            raise LostState(f"this client's state of round {checkpointed} is gone: restore its store")
        if numbers.get("round") != round_:
            arrays = message.content.array_records["arrays"].to_torch_state_dict()
            sums = trainee.receive(arrays, round_, float(order.get("proximal-mu", 0.0)))
            measured = _round(trainee, data, sums, round_)
            numbers = {"class": y, "attempt": attempt, "round": round_, **measured}
            store.keep(trainee.player, numbers, checkpointed)
    content = RecordDict({"numbers": MetricRecord(dict(numbers))})
    if order["average"]:
        content["arrays"] = ArrayRecord(trainee.reply())
    if order["publish"]:
        content["network"] = pack_network(trainee.player.published())
    return Message(content, reply_to=message)


def _round(trainee: Trainee, data: ClassData, sums: list[Tensor], round_: int) -> Numbers:
    """Take the round's local steps; what they measured."""
    player, config, y = trainee.player, trainee.config, trainee.y
    process = make_process(config.diffusion, data.train.device, dtype_of(config.compute))
    started = time.perf_counter()
    steps = local_steps(player, data.train, Peers(), config, process, y, round_)
    if trainee.controlled is not None:
        trainee.controlled.learn(sums, config.local_steps)
    numbers: Numbers = {
        "weight": 1 if trainee.controlled or config.rivals.averaging_weights == "classes" else len(data.train),
        "step": player.step,
        "loss": steps.loss,
        "gradient-norm": steps.gradient_norm,
        "seconds": time.perf_counter() - started,
    }
    if config.federation.evaluate_every and round_ % config.federation.evaluate_every == 0 and len(data.held_out):
        numbers["held-out-loss"] = held_out_loss(
            player.network, data.held_out, config.diffusion, config.compute.autocast, process, config.seed, y
        )
    return numbers
