"""What a class's peers know of its held-out samples that it does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedmutual.diffusion import make_process
from fedmutual.diffusion.process import expand
from fedmutual.errors import UserError
from fedmutual.evaluation.membership import TIMES
from fedmutual.evaluation.peer_gain import Pull, pull
from fedmutual.settings import write_settings
from simulations.cli.app import app
from simulations.runs import peer_gain
from simulations.runs.networks import class_networks
from simulations.runs.peer_gain import weigh_peers
from simulations.runs.sampling import draw_samples
from tests.support.federation import federate


def test_the_share_is_the_minimum_of_the_mixed_error():
    rng = torch.Generator().manual_seed(0)
    noise, wrong, other = torch.randn(3, 40, 6, generator=rng, dtype=torch.float64)
    own, peers = noise + wrong, noise + 0.5 * wrong + 0.8 * other
    result = pull(own, peers, noise)
    errors = [float((own + w * (peers - own) - noise).square().mean()) for w in np.linspace(0, 1, 1001)]
    assert result.share == pytest.approx(np.argmin(errors) / 1000, abs=1e-3)
    assert 0.1 < result.share < 0.9
    assert result.own - result.gain == pytest.approx(min(errors), abs=1e-5)
    assert (result.own, result.peers) == (pytest.approx(errors[0]), pytest.approx(errors[-1]))
    assert result.disagreement == pytest.approx(float((own - peers).square().mean()))


def test_peers_that_know_all_take_over_and_peers_that_know_nothing_are_left():
    noise = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    assert pull(noise + 1, noise, noise)[3:] == (1.0, 1.0)
    assert pull(noise, noise + 1, noise)[3:] == (0.0, 0.0)
    assert pull(noise + 1, noise + 2, noise)[3:] == (0.0, 0.0)  # further in the same direction
    assert pull(noise + 1, noise - 0.1, noise).share == pytest.approx(1 / 1.1)
    assert pull(noise + 1, noise + 1, noise)[2:] == (0.0, 0.0, 0.0)


def test_a_run_is_weighed_class_by_class(small):
    config = small()
    federate(config)
    done = []
    rows = weigh_peers(Path(config.federation.out), on_class=done.append)
    classes = sorted({row["class"] for row in rows if isinstance(row["class"], int)})
    assert done == classes
    assert [(row["class"], row["t"]) for row in rows] == [(y, t) for y in [*classes, "rarest", "mean"] for t in TIMES]
    assert rows == weigh_peers(Path(config.federation.out))  # nothing is left to chance
    for row in rows:
        assert 0 <= row["share"] <= 1
        assert 0 <= row["gain"] <= row["own"]
        assert 0 <= row["own_weight"] <= 1
        assert -1e-9 <= row["stack_gain"] <= row["own"]
        if row["class"] in classes:
            assert len(row["weights"]) == len(classes)
            assert sum(row["weights"]) == pytest.approx(1)
            assert row["own_weight"] == row["weights"][classes.index(row["class"])]
    first = [row for row in rows if row["t"] == TIMES[3]]
    own = {row["class"]: row["own"] for row in first}
    assert own["mean"] == pytest.approx(np.mean([own[y] for y in classes]))
    counts = {row["class"]: row["n_train"] for row in first}
    assert own["rarest"] == pytest.approx(np.mean([own[y] for y in sorted(classes, key=counts.get)[:3]]))
    assert all(row["best_peer"] in set(classes) - {row["class"]} for row in first if row["class"] in classes)


def test_velocities_are_weighed_as_the_noise_that_they_say(small, monkeypatch):
    """eps = sigma x + alpha v: the same functions, put out as (eps - sigma x) / alpha, give the same rows."""
    config = small(dtype="float64")
    federate(config)
    folder, process = Path(config.federation.out), make_process(config.diffusion, dtype=torch.float64)
    by_noise = weigh_peers(folder)

    class Velocity(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, t):
            index = t.long()
            alpha, sigma = expand(process.alpha[index], x), expand(process.sigma[index], x)
            return (self.network(x, t) - sigma * x) / alpha

    def velocities(*arguments):
        round_, networks = class_networks(*arguments)
        return round_, {y: Velocity(network) for y, network in networks.items()}

    monkeypatch.setattr(peer_gain, "class_networks", velocities)
    (folder / "config.toml").write_text(write_settings(config.settings() | {"parametrisation": "velocity"}))
    by_velocity = weigh_peers(folder)
    assert len(by_velocity) == len(by_noise)
    for row, expected in zip(by_velocity, by_noise, strict=True):
        assert (row["class"], row["t"], row["best_peer"]) == (expected["class"], expected["t"], expected["best_peer"])
        for name in (*Pull._fields, "best_share", "best_gain", "own_weight", "stack_gain"):
            assert row[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


def test_the_command_prints_both_tables_or_the_rows(small):
    config = small()
    federate(config)
    stated = CliRunner().invoke(app, ["peers", config.federation.out])
    assert stated.exit_code == 0
    assert [line.strip() for line in stated.stdout.splitlines() if "classes" in line or "rarest" in line] == [
        "all classes",
        "three rarest",
    ]
    assert "own weight, and the peer that counts most" in stated.stdout
    weights = [line.split() for line in stated.stdout.splitlines() if line.split()[:1] in [[str(y)] for y in range(10)]]
    assert len(weights) == 10
    assert all(0 <= float(cells[1]) <= 1 for cells in weights)
    assert sum(line.startswith(f"{t:g} ") for line in stated.stdout.splitlines() for t in TIMES) == 2 * len(TIMES)
    as_json = CliRunner().invoke(app, ["peers", config.federation.out, "--json"])
    rows = [{"run": config.federation.out, **row} for row in weigh_peers(Path(config.federation.out))]
    assert json.loads(as_json.stdout)["rows"] == rows


def test_held_out_samples_and_peers_are_needed(small):
    config = small(held_out=0)
    federate(config)
    with pytest.raises(UserError, match="train with held-out above 0"):
        weigh_peers(Path(config.federation.out))


def test_stacked_sampling_mixes_the_networks_of_the_run(small, tmp_path):
    config = small(local_steps=40, diffusion_steps=25)
    federate(config)
    folder = Path(config.federation.out)
    alone, stacked = draw_samples(folder, 8), draw_samples(folder, 8, stack=True)
    assert alone.keys() == stacked.keys()
    assert all(drawn.shape == (8, 1, 8, 8) and drawn.isfinite().all() for drawn in stacked.values())
    assert any(not torch.equal(alone[y], stacked[y]) for y in alone)
    assert all(torch.equal(stacked[y], again) for y, again in draw_samples(folder, 8, stack=True).items())
    done = CliRunner().invoke(app, ["sample", str(folder), "--out", str(tmp_path / "drawn"), "-n", "8", "--stack"])
    assert done.exit_code == 0
    with np.load(tmp_path / "drawn" / "samples.npz") as arrays:
        torch.testing.assert_close(torch.from_numpy(arrays["generated_3"]), stacked[3])


def test_stacked_sampling_needs_held_out_samples(small):
    config = small(held_out=0)
    federate(config)
    with pytest.raises(UserError, match="train with held-out above 0"):
        draw_samples(Path(config.federation.out), 4, stack=True)
