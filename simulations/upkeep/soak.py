"""Hundreds of rounds under seeded faults, through Flower's engine with Ray: does memory grow, is anything left behind?

The faults strike the real thing: the client that runs in Ray's processes raises, is killed, answers late, or
answers with garbage or with what it said before; and replies are lost on their way. After every round the
resident memory of every process is read off the kernel.
"""

import csv
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, cast

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from client.app import class_of, hello, train
from fedmutual.config import RunConfig
from fedmutual.course import OnPhase
from fedmutual.data import num_classes
from fedmutual.records import unpack_order
from fedmutual.run_folder import read_history
from fedmutual.seeds import derive
from server.app import prepare, serve
from server.flower import GridOver
from server.orders import OnRound, Run
from simulations.deployment.loopback import MARK, living
from simulations.engine.simulation import App, Simulation

SETTINGS = {
    "data": "digits",
    "head-count": 20,
    "imbalance-ratio": 0.2,
    "diffusion-steps": 25,
    "width": 16,
    "depth": 2,
    "batch": 8,
    "local-steps": 3,
    "ema": 0.5,
    "samples": 0,
    "timeout": 45.0,
}
"""Nothing to learn, everything to go wrong: ten clients and rounds of a fraction of a second."""

FAULTS = {
    "raises": (0.02, "error"),
    "garbage": (0.02, "rejected"),
    "replay": (0.02, "rejected"),
    "killed": (0.001, "ok"),
    "late": (0.001, "missing"),
    "lost": (0.001, "missing"),
}
"""{fault of a reply: (share of all replies, its status in the history)}."""

ALONE = ("killed", "late", "lost")
"""Faults that last longer than a round, and come one at a time."""

APART = 3
"""Rounds between them."""

SETTLED = 50
"""Rounds after which a process has all the memory that it will ever need."""

LAST = 10
"""Rounds whose median is what a process has in the end."""

GROWTH = 0.05
"""More than this is a leak."""

GRACE = 60.0
"""Seconds that Ray's processes get to end by themselves, on a machine that may be busy."""


@lru_cache(maxsize=1)
def plan(rounds: int, classes: int, seed: int) -> dict[tuple[int, int], str]:
    """{(round, class): fault}, the same in every process. Round 1 is spared: nobody has anything to replay yet."""
    rng, faults = random.Random(derive(seed, "soak")), {}
    lonely = [(round_, rng.randrange(classes)) for round_ in range(2, rounds + 1, APART)]
    others = [(round_, y) for round_ in range(2, rounds + 1) for y in range(classes) if (round_ - 2) % APART]
    rng.shuffle(lonely)
    rng.shuffle(others)
    for fault, (share, _) in FAULTS.items():
        places = lonely if fault in ALONE else others
        for _ in range(max(1, round(share * rounds * classes))):
            faults[places.pop()] = fault
    return faults


# The client's side

client = ClientApp()
client.query()(hello)


@client.train()
def struck(message: Message, context: Context) -> Message:
    """A round of the real client, with the fault that the plan has for it."""
    order = unpack_order(message.content)
    settings, classes = order["settings"], int(context.node_config["num-partitions"])
    place = (order["round"], class_of(context))
    fault = plan(settings["rounds"], classes, settings["seed"]).get(place)
    if fault == "raises":
        raise RuntimeError("struck before training")
    before = RecordDict(dict(context.state))
    reply = train(message, context)
    context.state.update(reply.content)
    mark = Path(settings["store"]) / f"killed-{place}"
    if fault == "killed" and not mark.exists():  # once: the server sends the order again
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "late":
        time.sleep(settings["timeout"] + 1)
    if fault == "garbage":
        network = reply.content.array_records["network"]
        reply.content["network"] = ArrayRecord({name: Array(a.numpy() * float("nan")) for name, a in network.items()})
    return Message(before, reply_to=message) if fault == "replay" else reply


# The server's side


class Lossy(GridOver):
    """A grid on which the replies that the plan names are lost on their way, so that the round lasts its timeout."""

    def __init__(self, grid: Grid, plan: dict[tuple[int, int], str]):
        super().__init__(grid)
        self.plan = plan

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        orders, began = list(messages), time.monotonic()
        replies = list(self.grid.send_and_receive(orders, timeout=timeout))
        rounds = {order.metadata.message_id: _round_of(order) for order in orders}
        kept = [reply for reply in replies if not self._lost(reply, rounds)]
        if len(kept) < len(replies) and timeout is not None:
            time.sleep(max(0.0, began + timeout - time.monotonic()))
        return kept

    def _lost(self, reply: Message, rounds: dict[str, int]) -> bool:
        numbers = reply.content.metric_records.get("numbers") if reply.has_content() else None
        if numbers is None:
            return False
        place = (rounds.get(reply.metadata.reply_to_message_id, 0), cast(int, numbers["class"]))
        return self.plan.get(place) == "lost"


def _round_of(order: Message) -> int:
    """The round of an order; 0 of a greeting."""
    record = order.content.config_records.get("order")
    return 0 if record is None else cast(int, record["round"])


class Soak(Simulation[Run]):
    """A simulation whose replies are struck by the plan, and whose processes are measured after every round."""

    def __init__(self, config: RunConfig, cpus: int = 0):
        self.plan = plan(config.rounds, num_classes(config.data), config.seed)
        super().__init__(config, cpus, gpus=0, app=App(prepare, self._serve, client))

    def _serve(self, grid: Grid, run: Run, on_round: OnRound) -> None:
        serve(Lossy(grid, self.plan), run, on_round)

    def run(self, on_round: OnRound = lambda rows: None, on_phase: OnPhase = lambda *phase: None) -> Path:
        folder = self.journal.folder
        os.environ[MARK] = str(folder)  # Ray's processes inherit it, and are known by it
        with (folder / "memory.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("round", "pid", "process", "resident"))

            def measured(rows: list[dict[str, Any]]) -> None:
                for pid in (os.getpid(), *living(folder)):
                    with suppress(OSError):  # it has just ended
                        table.writerow((rows[0]["round"], pid, *resident(pid)))
                file.flush()
                on_round(rows)

            return super().run(measured, on_phase)


def resident(pid: int) -> tuple[str, float]:
    """(what process that is, its resident memory in MB)."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    name = next((Path(word).stem for word in words if word.endswith(".py")), Path(words[0]).name)
    kilobytes = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE)
    if kilobytes is None:  # a process that has ended and was not waited for has no memory any more
        raise ProcessLookupError(f"process {pid} has ended")
    return "server" if pid == os.getpid() else name.partition(".")[0], int(kilobytes[1]) / 1024


# What became of it


Rows = Sequence[Mapping[str, Any]]


def soak(rounds: int, out: Path, cpus: int, on_round: OnRound) -> tuple[Rows, Rows, list[str]]:
    """A soak in the new folder `out`, with its figure `memory.png`; a row a fault, a row a process, what is wrong.

    Raises:
        UserError: the folder holds a run.
        RunFailed: no client gets through.
    """
    simulation = Soak(RunConfig.of(SETTINGS, {"rounds": rounds, "out": str(out)}), cpus)
    folder = simulation.run(on_round)
    deadline = time.monotonic() + GRACE
    while (left := living(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    accounts, wrong = account(read_history(folder), simulation.plan, rounds, simulation.classes)
    memory = read_memory(folder)
    grown = growth(memory)
    draw(memory, [round_ for (round_, _), fault in simulation.plan.items() if fault == "killed"], folder / "memory.png")
    wrong += [f"process {pid} was left behind" for pid in left]
    wrong += [f"{row['process']} grew by {row['growth']:.1%}" for row in grown if row["growth"] > GROWTH]
    return accounts, grown, wrong


def account(history: Rows, faults: dict[tuple[int, int], str], rounds: int, classes: int) -> tuple[Rows, list[str]]:
    """For each fault how many replies it struck and what the history says of them; and lines that should be others."""
    places = [(line["round"], line["class"]) for line in history]
    complete = places == [(round_, y) for round_ in range(1, rounds + 1) for y in range(classes)]
    wrong = (
        [] if complete else [f"the history has {len(places)} lines, not one for each round and class in their order"]
    )
    seen: dict[str, Counter[str]] = {fault: Counter() for fault in ("none", *FAULTS)}
    for place, line in zip(places, history, strict=True):
        fault, status = faults.get(place, "none"), line["status"]
        seen[fault][status] += 1
        expected = FAULTS[fault][1] if fault in FAULTS else "ok"
        if status != expected:
            wrong.append(f"round {place[0]}, class {place[1]}, {fault}: {status}, not {expected}: {line['reason']}")
    statuses = ("ok", "error", "rejected", "missing", "idle")
    table = [{"fault": fault, "replies": seen[fault].total()} | {s: seen[fault][s] for s in statuses} for fault in seen]
    return table, wrong


def read_memory(folder: Path) -> dict[tuple[str, int], dict[int, float]]:
    """{(process, pid): {round: resident memory in MB}} of a soak. A process has the last name that it took."""
    names: dict[int, str] = {}
    resident_by_pid: dict[int, dict[int, float]] = {}
    with (folder / "memory.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            pid = int(row["pid"])
            names[pid] = row["process"]
            resident_by_pid.setdefault(pid, {})[int(row["round"])] = float(row["resident"])
    return {(names[pid], pid): measured for pid, measured in resident_by_pid.items()}


def growth(memory: dict[tuple[str, int], dict[int, float]]) -> Rows:
    """For each process that outlived its first rounds: MB after them, in the end and at most, and growth.

    Growth is from the former to the end, the median of the last `LAST` rounds: a peak that goes away is none.
    """
    rows = []
    for (process, pid), measured in memory.items():
        values = list(measured.values())
        if len(values) > SETTLED:
            before, after = values[SETTLED - 1], median(values[SETTLED:][-LAST:])
            row = {"process": process, "pid": pid, "rounds": len(values), "settled_mb": before, "end_mb": after}
            rows.append(row | {"most_mb": max(values[SETTLED:]), "growth": after / before - 1})
    return rows


def draw(memory: dict[tuple[str, int], dict[int, float]], killed: list[int], path: Path) -> None:
    """Resident memory of every process over the rounds, a colour for each kind; where a client process was killed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    kinds = list(dict.fromkeys(process for process, _ in memory))
    for (process, _), measured in memory.items():
        axes.plot(
            list(measured), list(measured.values()), color=f"C{kinds.index(process)}", label=process, linewidth=1.2
        )
    for round_ in killed:
        axes.axvline(round_, color="0.8", label="a client process is killed", linewidth=0.8, zorder=0)
    lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one for each kind
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False)
    axes.set(xlabel="round", ylabel="resident memory, MB", ylim=(0, None))
    figure.savefig(path, dpi=130)
    plt.close(figure)
