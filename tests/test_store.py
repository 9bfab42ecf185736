import multiprocessing

import pytest
import torch

from client.store import Busy, StaleRound, Store
from fedmutual.config import RunConfig
from fedmutual.learning.igd import Peers, Player, local_steps, make_process
from fedmutual.networks import build

SHAPE = (1, 4, 4)


def config(optimizer="adam"):
    return RunConfig.of(
        {"width": 8, "depth": 2, "batch": 4, "diffusion-steps": 25, "local-steps": 3, "optimizer": optimizer}
    )


def player(settings=None):
    settings = settings or config()
    return Player.start(build(settings, SHAPE, 0), settings)


def advance(one, round_, settings=None):
    settings = settings or config()
    data = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    local_steps(one, data, Peers(), settings, make_process(settings), 0, round_)


def files(store):
    return sorted(int(path.stem[-6:]) for path in store.folder.glob("round-*"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, "run", 0)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_restored_player_goes_on_bit_for_bit(store, optimizer):
    settings = config(optimizer)
    one, other = player(settings), player(settings)
    advance(one, 1, settings)
    with store.locked():
        store.keep(one, attempt=1, round_=1, checkpointed=0)
        assert store.restore(other, attempt=1, round_=2, checkpointed=1) == 1
    advance(one, 2, settings)
    advance(other, 2, settings)
    torch.testing.assert_close(one.published(), other.published(), rtol=0, atol=0)
    torch.testing.assert_close(one.network.state_dict(), other.network.state_dict(), rtol=0, atol=0)
    assert one.step == other.step == 6


def test_an_empty_store_starts_from_the_beginning(store):
    one = player()
    before = one.published()
    assert store.restore(one, 1, 5, 4) == 0
    torch.testing.assert_close(one.published(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("attempt", "round_"), [(2, 3), (2, 2), (1, 4), (1, 9)])
def test_stale_orders_are_refused_and_change_nothing(store, attempt, round_):
    store.keep(player(), attempt=2, round_=3, checkpointed=2)
    with pytest.raises(StaleRound):
        store.restore(player(), attempt, round_, checkpointed=2)
    assert files(store) == [3]


def test_a_new_attempt_goes_back_to_what_the_server_remembers(store):
    one, steps = player(), {}
    for round_ in range(1, 6):
        advance(one, round_)
        store.keep(one, attempt=1, round_=round_, checkpointed=2)
        steps[round_] = one.step
    again = player()
    assert store.restore(again, attempt=2, round_=3, checkpointed=2) == 2
    assert again.step == steps[2]
    assert files(store) == [1, 2]


def test_states_that_no_server_can_ask_for_are_dropped(store):
    for round_ in (1, 2, 4, 7):
        store.keep(player(), attempt=1, round_=round_, checkpointed=0)
    assert files(store) == [1, 2, 4, 7]
    store.keep(player(), attempt=1, round_=8, checkpointed=5)
    assert files(store) == [2, 4, 7, 8]


def test_a_damaged_state_costs_one_round_and_no_more(store):
    one = player()
    for round_ in (1, 2):
        advance(one, round_)
        store.keep(one, attempt=1, round_=round_, checkpointed=0)
    newest = store.folder / "round-000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    assert store.restore(player(), attempt=1, round_=3, checkpointed=2) == 1


def test_runs_and_classes_do_not_see_each_other(tmp_path):
    Store(tmp_path, "run", 0).keep(player(), attempt=1, round_=1, checkpointed=0)
    assert Store(tmp_path, "run", 1).restore(player(), 1, 1, 0) == 0
    assert Store(tmp_path, "other", 0).restore(player(), 1, 1, 0) == 0


def _hold(root, held, release):
    with Store(root, "run", 0).locked():
        held.set()
        release.wait()


def test_another_process_is_kept_out_until_the_first_one_is_gone(store, tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(60)
    with pytest.raises(Busy, match="another process"), store.locked():
        pass
    process.kill()
    process.join()
    with store.locked():
        pass
