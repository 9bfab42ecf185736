import multiprocessing
import os
import threading

import pytest
import torch

from client.store import Busy, StaleRound, Store
from fedmutual.checkpoint import Unwritable
from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.learning.igd import local_steps
from fedmutual.learning.keeping import keep_best
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Kept, Player
from fedmutual.networks import build
from fedmutual.networks.split import parts

SHAPE = (1, 4, 4)


def config(optimizer="adam"):
    return RunConfig.of(
        {"width": 8, "depth": 2, "batch": 4, "diffusion-steps": 25, "local-steps": 3, "optimizer": optimizer}
    )


def player(settings=None):
    settings = settings or config()
    return Player.start(build(settings, SHAPE, 0), settings.optimiser)


def advance(one, round_, settings=None):
    settings = settings or config()
    data = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    local_steps(one, data, Peers(), settings, make_process(settings.diffusion), 0, round_)


def numbers(one, attempt, round_):
    return {"attempt": attempt, "round": round_, "step": one.step, "loss": 0.1 + round_ / 3}


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
    with store.locked(0):
        store.keep(one, numbers(one, 1, 1), checkpointed=0)
        assert store.restore(other, attempt=1, round_=2, checkpointed=1)["round"] == 1
    advance(one, 2, settings)
    advance(other, 2, settings)
    torch.testing.assert_close(one.published(), other.published(), rtol=0, atol=0)
    torch.testing.assert_close(one.network.state_dict(), other.network.state_dict(), rtol=0, atol=0)
    assert one.step == other.step == 6


def choose(one, *losses):
    """What a player publishes after a round with these held-out losses on ten samples."""
    told = torch.tensor([sum(losses)], dtype=torch.float64)
    one.kept = keep_best(one.kept, one.average, torch.tensor(losses).repeat(10), told)
    return {name: tensor.clone() for name, tensor in one.published().items()}


@pytest.mark.parametrize("worse", [False, True])
def test_a_restored_player_publishes_what_it_kept_and_chooses_on_as_before(store, worse):
    one, other = player(), player()
    for round_, loss in ((1, 1.0), (2, 2.0 if worse else 0.5)):
        advance(one, round_)
        published = choose(one, loss, loss + 0.1)
        store.keep(one, numbers(one, 1, round_), checkpointed=0)
    advance(other, 9)
    choose(other, 0.0, 0.0)  # a player that held something else before
    store.restore(other, attempt=1, round_=3, checkpointed=0)
    torch.testing.assert_close(other.published(), published, rtol=0, atol=0)
    assert one.kept.newest == other.kept.newest == (not worse)
    assert torch.equal(one.kept.best, other.kept.best)
    assert torch.equal(one.kept.losses, other.kept.losses)
    advance(one, 3)
    advance(other, 3)
    for loss in (1.5, 0.25):
        torch.testing.assert_close(choose(one, loss, loss), choose(other, loss, loss), rtol=0, atol=0)


@pytest.mark.parametrize("newest", [False, True])
def test_a_restored_player_keeps_its_private_part_at_the_same_round(store, newest):
    settings = config().but(publish="noise-split")
    one, other = player(settings), player(settings)
    losses, private = torch.rand(20), one.average[len(parts(one.network)[0]) :]
    told = torch.ones(1, dtype=torch.float64)
    one.kept_private = Kept([torch.rand_like(parameter) for parameter in private], losses, told, newest)
    store.keep(one, numbers(one, 1, 1), checkpointed=0)
    store.restore(other, attempt=1, round_=2, checkpointed=0)
    torch.testing.assert_close(other.published(), one.published(), rtol=0, atol=0)
    assert torch.equal(other.kept_private.best, losses)
    assert (other.kept, other.kept_private.newest) == (None, newest)


def test_going_back_forgets_what_was_best_in_the_forgotten_rounds(store):
    one, published = player(), {}
    for round_, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (4, 4.0)):
        advance(one, round_)
        published[round_] = choose(one, loss, loss + 0.1)
        store.keep(one, numbers(one, 1, round_), checkpointed=2)
    torch.testing.assert_close(published[4], published[3], rtol=0, atol=0)
    again = player()
    assert store.restore(again, attempt=2, round_=3, checkpointed=2)["round"] == 2
    torch.testing.assert_close(again.published(), published[2], rtol=0, atol=0)
    advance(again, 3)
    choose(again, 1.5, 1.6)  # worse than the forgotten round 3, better than all that are remembered
    assert again.kept.newest


def test_a_state_from_before_a_class_chose_has_nothing_kept(store):
    one, other = player(), player()
    advance(one, 1)
    store.keep(one, numbers(one, 1, 1), checkpointed=0)
    choose(other, 1.0, 1.0)
    store.restore(other, attempt=1, round_=2, checkpointed=0)
    assert other.kept is None
    torch.testing.assert_close(other.published(), one.published(), rtol=0, atol=0)


def test_an_empty_store_starts_from_the_beginning(store):
    one = player()
    before = one.published()
    assert store.restore(one, 1, 5, 4) == {}
    torch.testing.assert_close(one.published(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("attempt", "round_"), [(2, 2), (2, 1), (1, 3), (1, 4), (1, 9)])
def test_stale_orders_are_refused_and_change_nothing(store, attempt, round_):
    store.keep(player(), numbers(player(), 2, 3), checkpointed=2)
    with pytest.raises(StaleRound):
        store.restore(player(), attempt, round_, checkpointed=2)
    assert files(store) == [3]


def test_a_new_attempt_goes_back_to_what_the_server_remembers(store):
    one, steps = player(), {}
    for round_ in range(1, 6):
        advance(one, round_)
        store.keep(one, numbers(one, 1, round_), checkpointed=2)
        steps[round_] = one.step
    again = player()
    assert store.restore(again, attempt=2, round_=3, checkpointed=2)["round"] == 2
    assert again.step == steps[2]
    assert files(store) == [1, 2]


def test_states_that_no_server_can_ask_for_are_dropped(store):
    for round_ in (1, 2, 4, 7):
        store.keep(player(), numbers(player(), 1, round_), checkpointed=0)
    assert files(store) == [1, 2, 4, 7]
    store.keep(player(), numbers(player(), 1, 8), checkpointed=5)
    assert files(store) == [2, 4, 7, 8]


def test_a_damaged_state_costs_one_round_and_no_more(store):
    one = player()
    for round_ in (1, 2):
        advance(one, round_)
        store.keep(one, numbers(one, 1, round_), checkpointed=0)
    newest = store.folder / "round-000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    assert store.restore(player(), attempt=1, round_=3, checkpointed=2)["round"] == 1


def test_runs_and_classes_do_not_see_each_other(tmp_path):
    Store(tmp_path, "run", 0).keep(player(), numbers(player(), 1, 1), checkpointed=0)
    assert Store(tmp_path, "run", 1).restore(player(), 1, 1, 0) == {}
    assert Store(tmp_path, "other", 0).restore(player(), 1, 1, 0) == {}


def test_an_order_whose_reply_was_lost_is_answered_with_what_it_led_to(store):
    one = player()
    advance(one, 1)
    store.keep(one, numbers(one, 1, 1), checkpointed=0)
    again = player()
    assert store.restore(again, attempt=1, round_=1, checkpointed=0) == numbers(one, 1, 1)
    torch.testing.assert_close(again.published(), one.published(), rtol=0, atol=0)
    assert files(store) == [1]


def test_a_restarted_server_has_the_same_round_done_again(store):
    """Its order of round 2 is another one: the peers may differ, and the state of round 2 is forgotten."""
    one = player()
    for round_ in (1, 2):
        store.keep(one, numbers(one, 1, round_), checkpointed=round_ - 1)
    assert store.restore(player(), attempt=2, round_=2, checkpointed=1)["round"] == 1
    assert files(store) == [1]


def test_a_damaged_answer_is_made_again_from_the_state_before(store, caplog):
    one = player()
    for round_ in (1, 2):
        advance(one, round_)
        store.keep(one, numbers(one, 1, round_), checkpointed=0)
    newest = store.folder / "round-000002.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    again = player()
    assert store.restore(again, attempt=1, round_=2, checkpointed=0)["round"] == 1
    assert "round-000002.safetensors is damaged" in caplog.text
    advance(again, 2)
    torch.testing.assert_close(again.published(), one.published(), rtol=0, atol=0)


def test_a_state_that_cannot_be_saved_leaves_the_one_before(store):
    """The kernel's own word on a full disk: /dev/full stands where the state is to be written."""
    one = player()
    store.keep(one, numbers(one, 1, 1), checkpointed=0)
    partial = store.folder / f".round-000002.safetensors.{os.getpid()}.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(Unwritable, match="No space left on device"):
        store.keep(one, numbers(one, 1, 2), checkpointed=0)
    assert files(store) == [1]
    assert not partial.is_symlink()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(Unwritable, match="cannot be written"), Store(tmp_path, "run", 0).locked(0):
        pass


def _hold(root, held, release):
    with Store(root, "run", 0).locked(0):
        held.set()
        release.wait()


@pytest.fixture
def holder(store, tmp_path):
    """Another process at work on the store, and what makes it finish."""
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(60)
    yield process, release
    process.kill()
    process.join()


def test_another_process_is_kept_out_until_the_first_one_is_killed(store, holder):
    with pytest.raises(Busy, match="another process"), store.locked(0.2):
        pass
    holder[0].kill()
    with store.locked(60):
        pass


def test_an_order_that_comes_twice_waits_for_the_first_to_finish(store, holder):
    threading.Timer(0.3, holder[1].set).start()
    with store.locked(60):
        assert holder[1].is_set()
