"""What a new minor release of Flower must still offer, and that one file alone relies on what is not public.

After an upgrade of Flower, run this file first: each test below names one thing that the project needs.
"""

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.vce_api import _register_nodes
from flwr.server.superlink.linkstate import LinkStateFactory, linkstate_factory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState, RunRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy
from flwr.simulation import run_simulation
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

import server.flower
from fedmutual.records import pack_network
from server.flower import ENVIRONMENT, GridOver, message_of, pieces_of, pool_of_clients, record_of, views_of
from simulations.engine.pool import ClientProcesses
from tests.support.hostile import parts_of

ROOT = Path(__file__).parents[2]

PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation", "flwr.common.logger")

MAY_KNOW_INTERNALS = {"server/flower.py", "tests/server/test_flower.py"}
"""Beside `tests/support`, which speaks Flower's own wire."""


def imports_of_flower(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module))
    return {module for module in modules if module.split(".")[0] == "flwr"}


def is_public(module: str) -> bool:
    """A public package itself, or the strategies, which Flower documents as a package of their own."""
    return module in (*PUBLIC, "flwr.serverapp.strategy")


def test_only_one_file_knows_flowers_internals():
    knowing = {}
    for top in ("fedmutual", "client", "server", "simulations", "tests"):
        for path in (ROOT / top).rglob("*.py"):
            internal = {module for module in imports_of_flower(path) if not is_public(module)}
            if internal and not path.is_relative_to(ROOT / "tests" / "support"):
                knowing[str(path.relative_to(ROOT))] = internal
    assert set(knowing) <= MAY_KNOW_INTERNALS, knowing


# The internals: where they are, and how they are called

INTERNALS = {
    "flwr.app.message.arraychunk.ArrayChunk": None,
    "flwr.common.constant.ErrorCode": None,
    "flwr.common.constant.SYSTEM_TIME_TOLERANCE": None,
    "flwr.common.constant.TIMESTAMP_TOLERANCE": None,
    "flwr.proto.message_pb2.ConfirmMessageReceivedRequest": None,
    "flwr.proto.message_pb2.ObjectTree": None,
    "flwr.proto.runtime_pb2.PullAppMessagesRequest": None,
    "flwr.server.superlink.linkstate.linkstate_factory": None,
    "flwr.server.superlink.linkstate.linkstate_factory.InMemoryLinkState": None,
    "flwr.server.superlink.linkstate.in_memory_linkstate.InMemoryLinkState": None,
    "flwr.server.superlink.linkstate.in_memory_linkstate.InMemoryLinkState.store_message_ins": ("self", "message"),
    "flwr.server.superlink.linkstate.in_memory_linkstate.InMemoryLinkState.get_message_ins": (
        "self",
        "node_id",
        "limit",
        "run_id",
    ),
    "flwr.server.superlink.linkstate.in_memory_linkstate.InMemoryLinkState.get_message_res": (
        "self",
        "message_ids",
        "run_id",
    ),
    "flwr.serverapp.strategy.fedopt.FedOpt": None,
    "flwr.supercore.inflatable.inflatable_object.get_object_body": ("object_content", "cls"),
    "flwr.supercore.inflatable.inflatable_object.get_object_head_values_from_object_content": ("object_content",),
    "flwr.supercore.inflatable.inflatable_object.iterate_object_tree": ("tree",),
    "flwr.supercore.inflatable.inflatable_protobuf_utils.make_pull_object_fn_protobuf": (
        "pull_object_protobuf",
        "node",
        "run_id",
    ),
    "flwr.supercore.inflatable.inflatable_utils.ObjectPullError": None,
    "flwr.supercore.inflatable.inflatable_utils.ObjectUnavailableError": None,
    "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": ("object_id", "object_contents"),
    "flwr.supercore.utils.get_flwr_home": (),
    "flwr.superlink.grid.HttpGrid": None,
    "flwr.superlink.grid.HttpGrid.push_messages": ("self", "messages"),
    "flwr.superlink.grid.HttpGrid.get_node_ids": ("self",),
    "flwr.cli.flower_config.parse_superlink_connection": ("conn_dict", "name"),
    "flwr.cli.flower_config.read_flower_config": (),
    "flwr.server.superlink.fleet.vce.backend.raybackend": None,
    "flwr.server.superlink.fleet.vce.backend.raybackend.BasicActorPool": (
        "actor_type",
        "client_resources",
        "actor_kwargs",
    ),
    "flwr.supercore.runtime.RuntimeHttpClient.PullMessages": ("self", "request"),
    "flwr.supercore.runtime.RuntimeHttpClient.PullObject": ("self", "request"),
    "flwr.supercore.runtime.RuntimeHttpClient.ConfirmMessageReceived": ("self", "request"),
}
"""{name: its first parameters, or None where it is not called by position}."""


def resolve(name: str):
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", INTERNALS)
def test_flower_still_has_the_internal(name):
    thing, wanted = resolve(name), INTERNALS[name]
    if wanted is not None:
        assert tuple(inspect.signature(thing).parameters)[: len(wanted)] == wanted


def test_every_internal_that_the_adapter_imports_is_named_here():
    """So that the list above is whole."""
    wanted = set()
    for node in ast.walk(ast.parse(Path(server.flower.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("flwr.") and not is_public(node.module):
            wanted |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert wanted <= set(INTERNALS)


def test_a_grid_over_http_has_a_client_whose_answers_can_be_weighed():
    """`Replies` hangs a hook into the HTTP client of Flower's own client, and reads the grid's node and run."""
    grid = resolve("flwr.superlink.grid.HttpGrid")("127.0.0.1:1", insecure=True, token="t")
    try:
        assert isinstance(grid._runtime_client._client.event_hooks["response"], list)
        assert grid.node.node_id
        assert server.flower.is_remote(grid)
        replies = server.flower.Replies(grid, lambda size: None)
        assert len(grid._runtime_client._client.event_hooks["response"]) >= 1
        assert replies._client is grid._runtime_client
    finally:
        grid._disconnect()


def test_fetches_go_where_the_adapter_weighs_them():
    source = inspect.getsource(resolve("flwr.supercore.runtime.runtime_http_client"))
    assert [path for path in server.flower.FETCHES if f'"{path}"' not in source] == []


def test_the_codes_of_dead_clients_are_the_ones_that_were_tried():
    codes = resolve("flwr.common.constant.ErrorCode")
    assert (codes.UNKNOWN, codes.MESSAGE_UNAVAILABLE, codes.CLIENT_APP_CRASHED) == (0, 3, 8)


def test_clocks_are_trusted_as_the_documentation_says():
    assert (server.flower.CLOCK_AHEAD, server.flower.CLOCK_BEHIND) == (5, 305)


# How a message lies in a SuperLink

NETWORK = {"w": torch.randn(30, 50), "k": torch.tensor(3.0)}


def test_a_message_is_made_of_heads_arrays_and_pieces():
    content = RecordDict({"network": pack_network(NETWORK), "numbers": MetricRecord({"loss": 0.5})})
    message = Message(content, 7, MessageType.TRAIN)
    contents = parts_of(message)
    heads = {part: server.flower.head_of(content) for part, content in contents.items()}
    assert {kind for kind, _ in heads.values()} >= {"Message", server.flower.ARRAY, server.flower.PIECE}
    for part, (kind, children) in heads.items():
        assert set(children) <= set(contents)
        if kind == server.flower.ARRAY:
            pieces = pieces_of(contents[part], children)
            assert all(heads[piece][0] == server.flower.PIECE for piece in pieces)
    assert message_of(message.object_id, contents).content == content


def test_an_error_may_stand_for_a_reply_and_keeps_its_kind():
    class Refusal(Error):
        pass

    order = Message(RecordDict(), 7, MessageType.TRAIN)
    order.metadata.__dict__["_message_id"] = "an id"
    reply = Message(Refusal(422, "why"), reply_to=order)
    assert isinstance(reply.error, Refusal)
    assert reply.metadata.reply_to_message_id == "an id"


def test_an_array_reads_any_buffer():
    """What `lending` relies on: bytes in Ray's store are read where they lie."""
    record = pack_network(NETWORK)
    lent = record_of({n: (d, s, e, np.array(b)) for n, (d, s, e, b) in views_of(record).items()})
    torch.testing.assert_close(lent.to_torch_state_dict(), NETWORK)
    assert lent.count_bytes() == record.count_bytes()
    assert {type(array.data) for array in lent.values()} == {memoryview}
    assert isinstance(vars(record), dict), "a record carries the reference that it is lent by"


# What Flower calls


def test_a_strategy_is_started_and_called_as_ever():
    assert Strategy.__abstractmethods__ == {
        "configure_train",
        "aggregate_train",
        "configure_evaluate",
        "aggregate_evaluate",
        "summary",
    }
    started = tuple(inspect.signature(Strategy.start).parameters)
    assert started[:5] == ("self", "grid", "initial_arrays", "num_rounds", "timeout")
    assert "train_config" in started
    for averaging in (FedAvg, FedProx):
        assert issubclass(averaging, Strategy)
        assert {"min_train_nodes", "min_available_nodes"} <= set(inspect.signature(averaging).parameters)


def test_a_grid_over_another_one_passes_everything_on():
    assert Grid.__abstractmethods__ <= set(vars(GridOver))


def test_a_simulation_uses_the_ray_that_runs_already():
    """`own_ray` starts it; Flower would start one by the surroundings."""
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    lines = inspect.getsource(RayBackend.init_ray).split('"""')[-1].strip().splitlines()
    assert lines[0].strip() == "if not ray.is_initialized():"
    wanted = {"server_app", "client_app", "num_supernodes", "backend_config"}
    assert wanted <= set(inspect.signature(run_simulation).parameters)


def test_a_pool_of_our_own_has_what_flowers_backend_asks_of_it():
    from flwr.server.superlink.fleet.vce.backend import raybackend

    source = inspect.getsource(raybackend.RayBackend)
    asked = set(re.findall(r"self\.pool\.(\w+)", source))
    assert asked <= set(dir(ClientProcesses)) | {"num_actors", "actors_capacity"}
    theirs, ours = (inspect.signature(pool).parameters for pool in (raybackend.BasicActorPool, ClientProcesses))
    assert [*ours][2:] == [*theirs]
    terminate = raybackend.RayBackend.terminate
    assert "ray.shutdown()" in inspect.getsource(terminate)  # which is not Flower's to do here
    with pool_of_clients(ClientProcesses):
        assert raybackend.BasicActorPool is ClientProcesses
        assert raybackend.RayBackend.terminate is not terminate
    assert raybackend.BasicActorPool is not ClientProcesses
    assert raybackend.RayBackend.terminate is terminate


# The messages of a simulation


class Post:
    """A grid over `state`, with that many nodes, as `run_simulation` makes it; counts the looks at stored orders."""

    def __init__(self, kind: type, nodes: int):
        self.looks = 0

        def look(state, message_ids, run_id=None):
            self.looks += len(message_ids)
            return kind._check_stored_messages(state, message_ids, run_id)

        run = Run.create_empty(TaskIdentity.run_id)
        run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        with server.flower._replaced(
            linkstate_factory, "InMemoryLinkState", type("Counted", (kind,), {"_check_stored_messages": look})
        ):
            self.state = factory.state()
        self.state.run_ids[run.run_id] = RunRecord(run=run)
        self.state.task_store[1] = Task(task_id=1, run_id=run.run_id)
        self.grid = InMemoryGrid(factory)
        self.grid.set_run(run)
        self.nodes = list(_register_nodes(nodes, factory))

    def play(self) -> list:
        """What becomes of two rounds in which all nodes reply, the second in two halves, and one order is twice."""
        seen = []
        for round_ in (1, 2):
            orders = [Message(RecordDict(), node, MessageType.TRAIN) for node in (*self.nodes, self.nodes[0])]
            ids = list(self.grid.push_messages(orders))
            assert self.grid.pull_messages(ids) == []
            given = [self.state.get_message_ins(node, limit=1) for node in self.nodes]
            seen.append([[self.nodes.index(order.metadata.dst_node_id) for order in orders] for orders in given])
            assert all(order.metadata.delivered_at for (order,) in given)
            seen.append([len(self.state.get_message_ins(node, limit=1)) for node in self.nodes])
            seen.append([len(self.state.get_message_ins(node, limit=None)) for node in self.nodes])
            for part in [given] if round_ == 1 else [given[::2], given[1::2]]:
                for (order,) in part:
                    reply = Message(RecordDict(), reply_to=order)
                    reply.metadata.__dict__["_message_id"] = f"reply to {order.metadata.message_id}"
                    self.state.store_message_res(reply)
                replies = {reply.metadata.reply_to_message_id for reply in self.grid.pull_messages(ids)}
                ids = [order for order in ids if order not in replies]
                seen.append(sorted(self.nodes.index(order.metadata.dst_node_id) for (order,) in part))
                assert replies == {order.metadata.message_id for (order,) in part}
            assert len(ids) == 1, "the order that was sent twice and answered once"
        return seen


def test_orders_and_replies_are_those_of_flowers_own_state():
    assert Post(server.flower.IndexedState, 7).play() == Post(InMemoryLinkState, 7).play()


def test_a_message_costs_no_more_where_there_are_more_nodes():
    """What `IndexedState` is for: were Flower's own state as good, this would fail, and it could go."""
    few, many = Post(server.flower.IndexedState, 10), Post(server.flower.IndexedState, 80)
    few.play(), many.play()
    assert many.looks / 80 <= 1.1 * few.looks / 10
    few, many = Post(InMemoryLinkState, 10), Post(InMemoryLinkState, 80)
    few.play(), many.play()
    assert many.looks / 80 > 4 * few.looks / 10


def test_a_simulation_that_starts_in_the_block_has_an_indexed_state():
    def made() -> object:
        return LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()).state()

    with server.flower.indexed_messages():
        assert isinstance(made(), server.flower.IndexedState)
    assert type(made()) is InMemoryLinkState
    source = inspect.getsource(resolve("flwr.simulation.run_simulation._main_loop"))
    assert "LinkStateFactory(" in source
    assert "FLWR_IN_MEMORY_DB_NAME" in source


def test_apps_are_made_and_called_as_ever():
    client, seen = ClientApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(context.node_config["partition-id"])
        return Message(RecordDict(), reply_to=message)

    order = Message(RecordDict(), 7, MessageType.TRAIN)
    order.metadata.__dict__["_message_id"] = "an id"
    client(order, Context(1, 7, {"partition-id": 3}, RecordDict(), {}))
    assert seen == [3]
    assert callable(ServerApp().main())


# What Flower's programs are given

PROGRAMS = {
    "flower-superlink": [
        "--ssl-ca-certfile",
        "--ssl-certfile",
        "--ssl-keyfile",
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--host",
        "--port",
        "--database",
    ],
    "flower-supernode": [
        "--superlink",
        "--root-certificates",
        "--host",
        "--port",
        "--auth-supernode-private-key",
        "--node-config",
    ],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_flower_has_the_options_it_is_started_with(program):
    command = [str(Path(sys.executable).parent / program), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert [option for option in PROGRAMS[program] if option not in shown] == []


def test_services_report_to_nobody():
    readers = ("flwr.supercore.telemetry", "flwr.supercore.update_check", "flwr.superlink.cli.flower_superlink")
    source = "".join(inspect.getsource(import_module(name)) for name in readers)
    assert [name for name in ENVIRONMENT if name not in source] == []
