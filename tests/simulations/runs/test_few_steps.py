"""Few-step sampling beside full sampling, on a run's own networks."""

from pathlib import Path

import pytest

from fedmutual.errors import UserError
from fedmutual.evaluation import frechet_distance
from simulations.runs.few_steps import SAMPLERS, FewSteps
from tests.support.data import load_test
from tests.support.federation import federate


def test_every_sampler_is_measured_beside_full_sampling(small):
    config = small(samples=20)
    federate(config)
    percent = []
    rows = FewSteps(Path(config.federation.out), [4, 8], 2).rows(percent.append)
    order = [("ddpm", 25), *((sampler, count) for count in (4, 8) for sampler in SAMPLERS)]
    assert list(dict.fromkeys((row["sampler"], row["steps"]) for row in rows)) == order
    assert {(row["metric"], row["class"]) for row in rows} == {
        (metric, class_) for metric in ("fd", "from-full") for class_ in ("worst", "mean")
    }
    assert all(row["share"] == row["seconds"] / rows[0]["seconds"] > 0 for row in rows)
    assert all(row["ci95"] >= 0 and row["mean"] >= 0 and row["seeds"] == 2 for row in rows)
    assert percent[-1] == 100

    seeds = [FewSteps(Path(config.federation.out), [4], 2).draw("ddim", 4, seed) for seed in (0, 1)]
    worst = [max(frechet_distance(drawn[y], load_test(config, y)) for y in drawn) for drawn in seeds]
    measured = [r["mean"] for r in rows if (r["sampler"], r["steps"], r["metric"]) == ("ddim", 4, "fd")]
    assert measured[0] == pytest.approx(sum(worst) / 2)


def test_full_sampling_is_from_itself_what_two_seeds_differ_by(small):
    config = small(samples=30)
    federate(config)
    comparison = FewSteps(Path(config.federation.out), [24], 2)
    rows = comparison.rows()
    full, _, _, *_ = (row["mean"] for row in rows if (row["metric"], row["class"]) == ("from-full", "mean"))
    a, b = (comparison.draw("ddpm", 25, seed) for seed in (0, 1))
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
            FewSteps(Path(config.federation.out), steps, seeds)
    with pytest.raises(UserError, match="holds no run"):
        FewSteps(Path(config.federation.out) / "none", [5], 2)
