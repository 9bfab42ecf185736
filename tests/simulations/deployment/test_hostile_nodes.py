"""Nodes with registered keys that send what they like, over a real SuperLink: none gets in, none ends the run."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedmutual.run_folder import read_history
from simulations.deployment.loopback import Deployment
from simulations.runs.networks import read_networks
from tests.simulations.deployment.test_deployed import SETTINGS as SMALLEST
from tests.support.hostile import KINDS, HostileNode

pytestmark = pytest.mark.faults

HOSTILE = 5
"""Classes held by hostile nodes, each trying another kind in each round; class 0 is honest."""

REPLAYED, WITHHELD = "a replayed reply", "pieces that never come"

KIND_NAMES = [*KINDS, REPLAYED, WITHHELD]
ROUNDS = 2 + -(-len(KIND_NAMES) // HOSTILE)
"""A good one, one for each kind that a node tries, and a good one."""

SETTINGS = {**SMALLEST, "classes": 1 + HOSTILE, "timeout": 120.0}


class Memory(threading.Thread):
    """Largest resident size of the run's server, by round of the history."""

    def __init__(self, federation: Deployment, out: Path):
        super().__init__(daemon=True)
        self.federation, self.out, self.peak, self.ended = federation, out, {}, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            round_ = max((line["round"] for line in read_history(self.out)), default=0)
            for pid in self.federation.living("flwr-serverapp"):
                try:
                    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                except OSError:
                    continue
                result = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
                self.peak[round_] = max(self.peak.get(round_, 0), *result)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A run with one honest client and many hostile nodes: (history, networks, nodes, memory)."""
    root = tmp_path_factory.mktemp("attacked")
    script = {y: {} for y in range(1, 1 + HOSTILE)}
    for index, kind in enumerate(KIND_NAMES):
        script[1 + index % HOSTILE][2 + index // HOSTILE] = kind
    with Deployment(root / "federation", 2 + HOSTILE) as federation:
        federation.start_superlink()
        digits = load_digits()
        np.savez(root / "zeros.npz", images=(digits.images[digits.target == 0][:40] / 16 * 255).astype(np.uint8))
        for y in range(2 + HOSTILE):
            federation.register(federation.keys / f"client-{y}.pub")
        where = {"data_path": str(root / "zeros.npz"), "store": str(root / "store")}
        federation.start_supernode("client-0", federation.keys / "client-0", partition_id=0, **where)
        nodes = {
            y: HostileNode(
                f"127.0.0.1:{federation.port}", federation.keys / "ca.crt", federation.keys / f"client-{y}", y, kinds
            )
            for y, kinds in {**script, 1 + HOSTILE: {}}.items()
        }
        nodes[1 + HOSTILE].hello = {"class": 3, "partitions": [1, 2]}
        for node in nodes.values():
            node.start()
        federation.wait_for_supernodes(2 + HOSTILE)
        memory = Memory(federation, root / "run")
        memory.start()
        began = time.monotonic()
        run = federation.run({**SETTINGS, "rounds": ROUNDS, "out": str(root / "run")})
        federation.wait(lambda: federation.status(run).startswith("finished"), "the run finishes", 900.0, every=3.0)
        seconds = time.monotonic() - began
        for thread in (memory, *nodes.values()):
            thread.ended.set()
        status, log = federation.status(run), federation.run_log(run)
        for node in nodes.values():
            node.join(30.0)
    print(f"\n{ROUNDS} rounds in {seconds:.0f} s; memory of the server by round: {memory.peak}")
    for line in read_history(root / "run"):
        kind = script.get(line["class"], {}).get(line["round"], "good")
        print(f"{kind} | {line['status']} | {line['reason'][:150]} | {line['round_seconds']:.1f}")
    assert status == "finished:completed", log
    return read_history(root / "run"), read_networks(root / "run")[1], nodes, memory, log


def line_of(history, kind):
    index = KIND_NAMES.index(kind)
    return next(r for r in history if (r["class"], r["round"]) == (1 + index % HOSTILE, 2 + index // HOSTILE))


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_hostile_reply_is_refused_with_its_reason(attacked, kind):
    line = line_of(attacked[0], kind)
    reasons = {REPLAYED: "round is 1, and the order was for", WITHHELD: "no reply in time"}
    statuses = {"an error in many lines": "error", WITHHELD: "missing"}
    assert line["status"] == statuses.get(kind, "rejected")
    assert (reasons.get(kind) or KINDS[kind][1]) in line["reason"]
    assert line["reason"].isprintable()
    assert len(line["reason"]) <= 300


def test_the_honest_client_trains_on_and_so_may_the_others(attacked):
    history = attacked[0]
    assert [r["status"] for r in history if r["class"] == 0] == ["ok"] * ROUNDS
    assert {r["status"] for r in history if r["round"] in (1, ROUNDS)} == {"ok"}


def test_the_last_good_networks_stay(attacked):
    """The last checkpoint holds what each hostile node sent in the last round, bit for bit, and nothing else."""
    _, networks, nodes, _, _ = attacked
    for y in range(1, 1 + HOSTILE):
        sent = nodes[y].sent[ROUNDS]
        assert networks[y].keys() == sent.keys()
        for name, array in sent.items():
            np.testing.assert_array_equal(networks[y][name].numpy(), array)


def test_memory_stays_bounded(attacked):
    """10 GB announced in three ways and 40 MB sent cost the server less than a hundred megabytes."""
    peak = attacked[3].peak
    assert max(peak.values()) - peak[1] < 100e6


def test_a_greeting_that_is_no_greeting_is_left_out(attacked):
    assert "is left out: partitions = [1, 2] is not a finite number from 0" in attacked[4]
