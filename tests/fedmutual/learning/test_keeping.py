"""Which round a class publishes: the last, unless its own held-out samples find it worse than an earlier one."""

import pytest
import torch

from fedmutual.baselines.isolated import train_alone
from fedmutual.baselines.pooled import pooled
from fedmutual.config import RunConfig
from fedmutual.data import ClassData
from fedmutual.diffusion import make_process
from fedmutual.learning.held_out import held_out_loss
from fedmutual.learning.igd import local_steps
from fedmutual.learning.keeping import end_round, keep_best
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.networks import build
from fedmutual.networks.split import sent
from fedmutual.privacy.versions import versions_for
from tests.support.federation import assert_same

SHAPE = (1, 4, 4)


def config(**settings):
    base = {"width": 64, "depth": 2, "batch": 8, "diffusion-steps": 25, "local-steps": 30, "rounds": 12, "ema": 0.5}
    base |= {"schedule": "constant", "learning-rate": 0.01, "keep": "best", "beta": 0.0}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in settings.items()})


def player_of(settings):
    return Player.start(build(settings, SHAPE, 0), settings.optimiser)


@pytest.fixture
def few():
    """Three samples to train on, so that a class overfits within rounds, and twenty held out."""
    samples = torch.rand(23, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ClassData(samples[:3], samples[3:])


def published_rounds(sequence):
    """The round published after each of the rounds that have these held-out losses, one a sample."""
    player, published = player_of(config()), []
    for round_, losses in enumerate(sequence, 1):
        for parameter in player.average:
            parameter.fill_(round_)
        told = torch.tensor([float(round_)], dtype=torch.float64)
        player.kept = keep_best(player.kept, player.average, torch.tensor(losses, dtype=torch.float64), told)
        tensors = {tensor.unique().item() for name, tensor in player.published().items() if "weight" in name}
        assert len(tensors) == 1
        published.append(int(tensors.pop()))
        assert player.kept.losses.tolist() == [published[-1]]
    return published


def around(mean, spread):
    """Eight losses with this mean, which lie so far from those of `around(other, 0)`."""
    return [mean + spread * sign for sign in (1, -1) * 4]


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ([around(3, 0), around(2, 1), around(1, 0)], [1, 2, 3]),  # learning
        ([around(1, 0), around(2, 0.1), around(2, 0.1)], [1, 1, 1]),  # overfitting
        ([around(1, 0), around(2, 0.1), around(0.5, 0.1)], [1, 1, 3]),  # a bad round on the way
        ([around(1, 0), around(1.1, 1), around(1.1, 1)], [1, 2, 3]),  # worse, but not beyond its error
        ([around(1, 0), around(1, 0)], [1, 2]),  # as good
        # Each is hardly worse than the one before; what counts is the best.
        ([around(1, 0), around(1.3, 1), around(1.6, 1), around(1.9, 1)], [1, 2, 2, 2]),
        ([around(1, 0), [float("nan")] * 8, around(0.5, 0)], [1, 1, 3]),
    ],
)
def test_the_last_round_is_published_unless_held_out_samples_find_it_worse(sequence, expected):
    assert published_rounds(sequence) == expected


def test_an_error_of_few_samples_is_widened_by_students_t():
    """One standard error holds 68 % of a normal distribution: 1.08 errors of eight samples."""
    error = 8**-0.5 * (8 / 7) ** 0.5  # of the mean of eight that lie 1 above or below it
    within, beyond = around(1.0 + 1.05 * error, 1), around(1.0 + 1.10 * error, 1)
    assert published_rounds([around(1, 0), within]) == [1, 2]
    assert published_rounds([around(1, 0), beyond]) == [1, 1]


def test_a_class_that_overfits_publishes_an_earlier_round_and_trains_on_as_before(few):
    settings, process = config(), make_process(config().diffusion)
    keeping, going_on = player_of(settings), player_of(settings)
    last = settings.but(keep="last")
    for round_ in range(1, 13):
        for player, own in ((keeping, settings), (going_on, last)):
            local_steps(player, few.train, Peers(), own, process, 0, round_)
            told = end_round(player, {0: few.held_out}, own, process, round_)
            network = build(own, SHAPE, 0)
            network.load_state_dict(player.published())
            loss = held_out_loss(network, few.held_out, own.diffusion, "none", process, own.seed, 0)
            assert told[0] == pytest.approx(loss, rel=1e-6)
            player.told = told[0]
    assert not keeping.kept.newest
    assert going_on.kept is None
    assert keeping.told < 0.9 * going_on.told
    assert_same({0: keeping.network.state_dict()}, {0: going_on.network.state_dict()})
    torch.testing.assert_close(keeping.average, going_on.average, rtol=0, atol=0)


def test_with_too_few_held_out_samples_the_last_round_is_published(few):
    published = {}
    for held_out in (7, 8):
        data = ClassData(few.train, few.held_out[:held_out])
        published[held_out] = [train_alone(config(keep=keep), data, 0)[0].published() for keep in ("best", "last")]
    assert_same({0: published[7][0]}, {0: published[7][1]})
    assert any(not torch.equal(published[8][0][name], published[8][1][name]) for name in published[8][0])


@pytest.mark.parametrize(("every", "rounds"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4])])
def test_the_choice_needs_no_round_that_reports(few, every, rounds):
    settings, process = config(evaluate_every=every), make_process(config().diffusion)
    player, told = player_of(settings), []
    for round_ in range(1, 5):
        local_steps(player, few.train, Peers(), settings, process, 0, round_)
        if end_round(player, {0: few.held_out}, settings, process, round_):
            told.append(round_)
        assert player.kept
    assert told == rounds


def test_one_network_for_all_classes_chooses_by_the_held_out_samples_of_all(few):
    data, told, published = [few, ClassData(-few.train, -few.held_out)], {}, {}
    for keep in ("best", "last"):
        rows = []
        trained = pooled(config(rounds=6, keep=keep), data, lambda round_, lines, rows=rows: rows.append(lines))
        told[keep] = [sum(line["held_out"] for line in lines) / 2 for lines in rows]
        published[keep] = trained.networks["shared"]
    assert told["best"][-1] < 0.95 * told["last"][-1]
    assert told["best"][-1] in told["last"][:-1]  # the network of an earlier round
    assert any(not torch.equal(published["best"][name], published["last"][name]) for name in published["last"])


def test_each_part_of_a_network_is_kept_at_a_round_of_its_own(few):
    """The private part as it was after the round that its own losses find best, and what is reported is of both."""
    settings = config(publish="noise-split", split=0.5)
    process, player, averages = make_process(settings.diffusion), player_of(settings), {}
    names = [name for name, _ in player.network.named_parameters()]
    for round_ in range(1, 13):
        local_steps(player, few.train, Peers(), settings, process, 0, round_)
        averages[round_] = {name: t.clone() for name, t in zip(names, player.average, strict=True)}
        told = end_round(player, {0: few.held_out}, settings, process, round_)[0]
        network = build(settings, SHAPE, 0)
        network.load_state_dict(player.published())
        loss = held_out_loss(network, few.held_out, settings.diffusion, "none", process, settings.seed, 0)
        assert told == pytest.approx(loss, rel=1e-6)
    rounds = {part: published_round(player, averages, part) for part in ("published.", "private.")}
    assert rounds["private."] != rounds["published."]
    assert rounds["private."] < 12


def published_round(player, averages, part):
    """The one round after which that part was as it is published now."""
    now = player.published()
    (round_,) = (
        number
        for number, then in averages.items()
        if all(torch.equal(tensor, now[name]) for name, tensor in then.items() if name.startswith(part))
    )
    return round_


def test_where_what_is_sent_is_proved_held_out_samples_choose_the_private_part_alone(few):
    settings = config(publish="noise-budget", split=0.5, evaluate_every=0)
    process, player, averages = make_process(settings.diffusion), player_of(settings), {}
    versions, names = versions_for(settings, few.train), [name for name, _ in player.network.named_parameters()]
    for round_ in range(1, 13):
        local_steps(player, few.train, Peers(), settings, process, 0, round_, versions)
        averages[round_] = {name: t.clone() for name, t in zip(names, player.average, strict=True)}
        assert end_round(player, {0: few.held_out}, settings, process, round_) == {}
    assert published_round(player, averages, "published.") == 12
    assert published_round(player, averages, "private.") < 12


def test_the_part_that_never_leaves_has_no_say_in_the_round_that_is_sent(few):
    """However good or bad the private part is, the same published part goes out."""
    settings = config(publish="noise-split", split=0.5)
    process, sent_networks = make_process(settings.diffusion), []
    for spoil in (False, True):
        player = player_of(settings)
        for round_ in range(1, 13):
            local_steps(player, few.train, Peers(), settings, process, 0, round_)
            average = dict(zip([name for name, _ in player.network.named_parameters()], player.average, strict=True))
            if spoil and round_ == 12:
                for name, parameter in average.items():
                    if name.startswith("private."):
                        parameter.mul_(100)
            end_round(player, {0: few.held_out}, settings, process, round_)
        sent_networks.append(sent(player.published()))
    assert_same({0: sent_networks[0]}, {0: sent_networks[1]})
