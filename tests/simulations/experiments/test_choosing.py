"""What is chosen for some data and some minutes, on made-up speeds: no data and no clock take part."""

import math
from dataclasses import replace

import pytest

from fedmutual.config import RunConfig
from fedmutual.data.facts import Facts
from fedmutual.errors import UserError
from simulations.experiments.choosing import MARGIN, MOST_STEPS, choose, worth_timing
from simulations.experiments.foreseen import Machine, Speed, foresee
from simulations.experiments.methods import RECIPES
from simulations.experiments.rungs import SIMULATION, Rung, Task, rungs

MACHINE = Machine(at_once=2, start=4.0, reading=1e-4, spent=15.0)
COMPARISON = Task(("mutual-scarcity", "isolated", "reweighted"), seeds=3, audited=True)


def facts(classes=10, each=200, shape=(1, 28, 28), **more):
    return Facts([f"class {y}" for y in range(classes)], [each] * classes, [shape], **more)


def speed_of(rung, faster=1.0):
    """A made-up machine: seconds that grow with the pixels and the square root of the channels' product."""
    config = RunConfig.of(dict(rung.settings))
    if config.network.kind == "mlp":
        return Speed(0.002 / faster, 0.0015 / faster, 1e-5 / faster, 1e-5 / faster, 0.01 / faster, 0.05)
    height, width = config.data.dims[1:]
    levels = len(config.network.multipliers.split(","))
    alone = 0.13 * (height * width / 784) * (config.network.width / 16) * config.network.depth * levels / 3 / faster
    return Speed(1.3 * alone, alone, alone / 64, alone / 100, 0.08 * height * width / 784 / faster, 0.2)


def decided(of, minutes, machine=MACHINE, task=SIMULATION, faster=1.0, **fixed):
    """The choice, its rung's speed, and how many rungs had to be timed."""
    timed = []
    for rung in rungs(of, {key.replace("_", "-"): value for key, value in fixed.items()}, task):
        if not worth_timing(rung, of, machine, timed, minutes, task):
            break
        timed.append((rung, speed_of(rung, faster)))
    return choose(of, machine, timed, minutes, task), timed


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("each", [5, 200, 20_000])
@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 90, 120), (1, 512, 512), (3, 512, 512), (24,)]
)
def test_every_choice_is_whole_and_foresees_the_time_that_was_asked_for(classes, each, shape):
    of = facts(classes, each, shape)
    machine = replace(MACHINE, reading=1e-6)
    choice, timed = decided(of, 60, machine, faster=4)
    config = RunConfig.of(choice.settings, {"data": "npz", "data-path": "made-up.npz"})
    assert config.data.imbalance == "none"
    assert config.data.test >= 2
    assert each - config.data.test - config.data.held_out >= 1
    foreseen = machine.spent + sum(choice.parts.values())
    steps = config.rounds * config.local_steps
    assert steps >= timed[0][0].least
    if steps < MOST_STEPS - config.rounds:
        assert foreseen == pytest.approx(60 * 60 * MARGIN, rel=0.02)
    else:
        assert foreseen < 60 * 60
    images = len(shape) == 3 and min(shape[1:]) >= 16
    assert config.network.kind.startswith("unet") == images
    assert config.diffusion.parametrisation == ("velocity" if images else "noise")


@pytest.mark.parametrize("minutes", [3, 5, 10, 15, 30, 120, 600])
def test_more_minutes_never_take_a_smaller_network_and_are_filled(minutes):
    of = facts(shape=(3, 96, 96))
    orders = [rung.settings["shape"] + rung.settings["multipliers"] for rung in rungs(of, {})]

    def place(asked):
        settings = decided(of, asked)[0].settings
        return orders.index(settings["shape"] + settings["multipliers"])

    assert place(minutes) <= place(2 * minutes)
    choice, _ = decided(of, minutes)
    assert MACHINE.spent + sum(choice.parts.values()) == pytest.approx(60 * minutes * MARGIN, rel=0.02)


def test_a_small_network_with_enough_steps_is_taken_before_a_large_one_without():
    """Ten classes of 28 x 28 on two cores: half the resolution in 3 minutes, the preset fashion's network in 15."""
    short, full, long = (decided(facts(), minutes)[0].settings for minutes in (3, 15, 600))
    assert (short["shape"], short["size"], short["multipliers"]) == ("1,14,14", 14, "1,2")
    assert (full["shape"], full["multipliers"], full["width"]) == ("1,28,28", "1,2,4", 16)
    assert "size" not in full
    assert (long["width"], long["depth"]) == (32, 2)
    assert long["rounds"] * long["local-steps"] >= 4000
    for settings in (short, full, long):
        assert settings["rounds"] * settings["local-steps"] >= 100


def test_a_faster_machine_gets_more_steps_or_a_larger_network():
    slow, fast = (decided(facts(), 15, faster=faster)[0].settings for faster in (1, 40))
    assert fast["width"] > slow["width"]


def test_networks_that_cannot_get_their_steps_are_not_timed():
    assert len(decided(facts(), 3)[1]) == 2
    assert len(decided(facts(), 600)[1]) == 3


def test_too_little_time_says_how_much_is_needed():
    with pytest.raises(UserError, match="give 2 or more"):
        choose(facts(), MACHINE, [], 1.5)
    with pytest.raises(UserError, match="give 2 or more"):
        choose(facts(), MACHINE, [], float("nan"))
    with pytest.raises(
        UserError, match=r"2 minutes are too few for a simulation of these 100 classes .* \d+ or more are needed"
    ) as said:
        decided(facts(classes=100), 2)
    needed = int(str(said.value).split("now: ")[1].split()[0])
    assert decided(facts(classes=100), needed + 1)[0].settings["local-steps"] > 0
    with pytest.raises(UserError, match="lower --seeds"):
        decided(facts(), 3, task=COMPARISON)


def test_large_images_are_read_smaller_and_that_is_told():
    of = Facts(["a", "b"], [300, 300], [(1, 200, 300), (3, 120, 90)])
    choice, _ = decided(of, 4)
    assert (choice.settings["shape"], choice.settings["size"]) == ("3,32,32", 32) or choice.settings["size"] == 16
    assert any("2 shapes up to 300 x 200 are cut to the square in their middle" in notice for notice in choice.notices)
    assert decided(of, 600)[0].settings["size"] == 64
    assert decided(of, 600, size=32)[0].settings["size"] == 32
    assert decided(of, 600, shape="1,48,40")[0].settings["shape"] == "1,48,40"
    plain = decided(facts(2, shape=(3, 32, 32)), 60)[0]
    assert "size" not in plain.settings
    assert plain.notices == []


def test_what_a_person_gives_is_kept():
    settings = decided(facts(), 30, rounds=7, beta=0.0, samples=77, network="unet-small", extractor="")[0].settings
    kept = {key: settings[key] for key in ("rounds", "beta", "samples", "network", "extractor")}
    assert kept == {"rounds": 7, "beta": 0.0, "samples": 77, "network": "unet-small", "extractor": ""}


def test_few_images_are_measured_by_pixels_and_that_is_told():
    few, many = decided(facts(each=20), 15)[0], decided(facts(each=400), 15)[0]
    assert "extractor" not in few.settings
    assert any("measured by pixels alone" in notice for notice in few.notices)
    assert many.settings["extractor"] == "train"
    assert 60 <= many.settings["extractor-steps"] <= 1500
    assert not any("pixels" in notice for notice in many.notices)


def test_parts_that_the_data_come_with_are_used():
    own = facts(each=30, test=[40] * 10, held_out=[9] * 10)
    settings = decided(own, 15)[0].settings
    assert (settings["test"], settings["held-out"]) == (0, 50)
    cut = decided(facts(each=30), 15)[0].settings
    assert (cut["test"], cut["held-out"]) == (7, 3)


def test_a_class_that_is_too_small_is_named():
    tail = Facts(["many", "few"], [100, 3], [(1, 28, 28)])
    with pytest.raises(UserError, match="class few has 3 samples, and 4 are needed"):
        rungs(tail, {})
    with pytest.raises(UserError, match="class few has 3 samples"):
        rungs(tail, {}, COMPARISON)
    tail = Facts(["many", "few"], [100, 12], [(1, 28, 28)])
    settings = rungs(tail, {}, COMPARISON)[0].settings
    assert settings["test"] + settings["held-out"] >= 10


def test_clients_that_do_not_fill_the_cores_are_waited_for():
    """Three clients on two cores take two turns, as four do."""
    rung, machine = Rung({}), MACHINE
    settings = {"rounds": 5, "local-steps": 100, "samples": 10, "sampling-steps": 10, "held-out": 0, "test": 2}
    speed = Speed(1.0, 1.0, 0.0, 0.0)
    three, four = (foresee(settings, facts(classes), machine, speed)["training"] for classes in (3, 4))
    assert rung.least == 100
    assert three == pytest.approx(four, rel=0.01)


def test_a_comparison_foresees_every_arm():
    settings = decided(facts(), 120, task=COMPARISON)[0].settings
    speed = speed_of(rungs(facts(), {}, COMPARISON)[0])
    parts = {seeds: foresee(settings, facts(), MACHINE, speed, replace(COMPARISON, seeds=seeds)) for seeds in (1, 2)}
    for name in ("extractor", "measuring"):
        assert parts[2][name] == pytest.approx(2 * parts[1][name])
    for method in RECIPES:
        one = foresee(settings, facts(), MACHINE, speed, Task((method,), audited=True))
        assert all(seconds >= 0 for seconds in one.values())
    whole = {name: foresee(settings, facts(), MACHINE, speed, Task((name,), audited=True)) for name in RECIPES}
    costs = {name: parts["training"] for name, parts in whole.items()}
    assert whole["predictions"]["measuring"] > 5 * whole["pooled"]["measuring"]  # every class's network is asked
    assert costs["memory"] < costs["copy-head"] < costs["pooled"] < costs["cbdm"] < costs["ridge"]
    assert costs["isolated"] < costs["mutual-scarcity"]


def test_many_classes_are_sent_a_few_peers_each():
    assert decided(facts(classes=100), 240)[0].settings["peers-per-round"] == 8
    assert "peers-per-round" not in decided(facts(), 60)[0].settings


def test_weighing_peers_and_testing_samples_take_time():
    settings = decided(facts(), 120, task=COMPARISON)[0].settings
    speed = speed_of(rungs(facts(), {}, COMPARISON)[0])

    def parts(method, **more):
        return foresee({**settings, **more}, facts(), MACHINE, speed, Task((method,)))

    auto, plain = parts("mutual-auto")["training"], parts("mutual-scarcity")["training"]
    forwards = settings["rounds"] * 10 * 5 * 2 * settings["held-out"]  # networks, ranges of noise, draws
    assert auto - plain == pytest.approx(5 * forwards * speed.forward)  # ten classes on two cores
    useful, useless = (parts("pooled", **{"tstr-seeds": seeds})["measuring"] for seeds in (3, 0))
    steps = min(1500, 30 * math.ceil(10 * settings["samples"] / 128))
    assert useful - useless == pytest.approx(3 * steps * speed.classify)
