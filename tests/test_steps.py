"""Few-step sampling beside full sampling, on a run's own networks."""

from pathlib import Path

import pytest
from conftest import federate

from fedmutual.config import UserError
from fedmutual.data.sources import load_test
from fedmutual.evaluation import frechet_distance
from fedmutual.learning.igd import make_process
from simulations.results import class_networks
from simulations.steps import SAMPLERS, _draw, few_steps


def test_every_sampler_is_measured_beside_full_sampling(small):
    config = small(samples=20)
    federate(config)
    percent = []
    rows = few_steps(Path(config.out), [4, 8], 2, on_percent=percent.append)
    order = [("ddpm", 25), *((sampler, count) for count in (4, 8) for sampler in SAMPLERS)]
    assert list(dict.fromkeys((row["sampler"], row["steps"]) for row in rows)) == order
    assert {(row["metric"], row["class"]) for row in rows} == {
        (metric, class_) for metric in ("fd", "from-full") for class_ in ("worst", "mean")
    }
    assert all(row["share"] == row["seconds"] / rows[0]["seconds"] > 0 for row in rows)
    assert all(row["ci95"] >= 0 and row["mean"] >= 0 and row["seeds"] == 2 for row in rows)
    assert percent[-1] == 100

    round_, networks = class_networks(Path(config.out), "last", make_process(config).alpha.device)
    seeds = [_draw(config.but(sampler="ddim", sampling_steps=4), networks, round_, seed) for seed in (0, 1)]
    worst = [max(frechet_distance(drawn[y], load_test(config, y)) for y in drawn) for drawn in seeds]
    measured = [r["mean"] for r in rows if (r["sampler"], r["steps"], r["metric"]) == ("ddim", 4, "fd")]
    assert measured[0] == pytest.approx(sum(worst) / 2)


def test_full_sampling_is_from_itself_what_two_seeds_differ_by(small):
    config = small(samples=30)
    federate(config)
    rows = few_steps(Path(config.out), [24], 2)
    full, _, _, *_ = (row["mean"] for row in rows if (row["metric"], row["class"]) == ("from-full", "mean"))
    round_, networks = class_networks(Path(config.out), "last", make_process(config).alpha.device)
    a, b = (_draw(config.but(sampler="ddpm", sampling_steps=25), networks, round_, seed) for seed in (0, 1))
    assert full == pytest.approx(sum(frechet_distance(a[y], b[y]) for y in a) / 10)


def test_what_cannot_be_compared_is_refused(small):
    config = small(samples=20)
    federate(config)
    for steps, seeds, says in [
        ([25], 2, "from 1 to 24"),
        ([0], 2, "from 1 to 24"),
        ([], 2, "from 1"),
        ([5], 1, "seeds"),
    ]:
        with pytest.raises(UserError, match=says):
            few_steps(Path(config.out), steps, seeds)
    with pytest.raises(UserError, match="holds no run"):
        few_steps(Path(config.out) / "none", [5], 2)
