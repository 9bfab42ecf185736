"""The attacks that train shadow networks: by hand, on networks that learnt by heart, and on one that knows nothing."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedmutual.baselines.isolated import train_alone
from fedmutual.config import RunConfig
from fedmutual.data import ClassData
from fedmutual.diffusion import ddpm
from fedmutual.evaluation.shadows import Shadow, disjoint_parts, gradient_norms, gsa_scores, lira_scores
from fedmutual.networks import build
from simulations.runs.shadows import attack_with_shadows
from tests.support.data import load_class, load_unseen
from tests.support.federation import SMALL, federate

PROCESS = ddpm(25)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_both_shadows_of_a_pair_share_no_candidate():
    parts = list(disjoint_parts(11, 5, 3, generator()))
    assert [len(rows) for rows in parts] == [5] * 6
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert len({*first.tolist(), *second.tolist()}) == 10
    assert len({tuple(rows.tolist()) for rows in parts}) == 6


def test_gradient_norms_by_hand():
    """eps(x, t) = w x for one number w: d/dw of the mean of (w x_t - xi)² is the mean of 2 x_t (w x_t - xi)."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
            self.idle = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x, t):
            return self.w * x

    x, noise = torch.tensor([[2.0], [-1.0]], dtype=torch.float64), torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    norms = gradient_norms(Scaled(), PROCESS, "noise", x, [3, 10], noise)
    for row, x0 in zip(norms, (2.0, -1.0), strict=True):
        noised = [float(PROCESS.alpha[t]) * x0 + float(PROCESS.sigma[t]) * xi for t, xi in ((3, 0.5), (10, 1.5))]
        gradient = np.mean([2 * xt * (0.3 * xt - xi) for xt, xi in zip(noised, (0.5, 1.5), strict=True)])
        assert row[0] == pytest.approx(math.log(abs(gradient)))
        assert row[1] == pytest.approx(math.log(np.finfo(float).tiny))  # a parameter without a part in it


def test_lira_by_hand():
    """Candidate 0 is unseen by both shadows (1, 3), candidate 1 by the second alone (5): 1 and 3 are the spread."""
    inside = np.array([[False, True], [False, False]])
    losses = np.array([[1.0, 9.0], [3.0, 5.0]])
    shadows = [Shadow(np.zeros((2, 1)), own, seen) for own, seen in zip(losses, inside, strict=True)]
    assert lira_scores(np.array([4.0, 5.0]), shadows).tolist() == pytest.approx([2 / math.sqrt(2), 0])


def test_gsa_learns_from_the_shadows_whatever_the_scale_of_a_network():
    random = np.random.default_rng(0)

    def gradients(inside, scale):
        return scale * (random.normal(0, 1, (len(inside), 3)) - 3.0 * inside[:, None] * [1, 0, 0]) + scale

    members = random.random((5, 60)) < 0.3
    shadows = [Shadow(gradients(own, k + 1), np.zeros(60), own) for k, own in enumerate(members[:4])]
    odds = gsa_scores(gradients(members[4], 20.0), shadows)
    assert np.mean((odds > 0) == members[4]) > 0.85


@pytest.fixture(scope="module")
def learnt_by_heart():
    """(settings, members, others, network) of a rare digit, trained until it knows its members."""
    config = RunConfig.of(SMALL, {"width": 64, "batch": 32, "rounds": 2, "local-steps": 300, "ema": 0.9})
    train, unseen = load_class(config, 9).train, load_unseen(config, 9)[:60]
    player, _ = train_alone(config, ClassData(train, train[:0]), 9)
    network = build(config, (1, 8, 8), 9)
    network.load_state_dict(player.published())
    return config, train, unseen, network.eval()


def test_a_memoriser_is_found_and_a_network_that_saw_no_candidate_is_cleared(learnt_by_heart):
    config, members, others, network = learnt_by_heart
    process = PROCESS.to(dtype=torch.float32)

    def found(who, rest):
        findings = attack_with_shadows(network, process, who, rest, config, 9, 4)
        return {one.attack: one.estimate for one in findings if one.metric == "auc"}

    for attack, estimate in found(members, others).items():
        assert estimate.value > 0.9, attack
        assert estimate.low > 0.5, attack
    for attack, estimate in found(others[:20], others[20:]).items():  # neither side was trained on
        assert estimate.low < 0.5 < estimate.high, attack


def test_an_audit_trains_shadows_where_it_is_asked_to(small, tmp_path, command_line):
    federate(small(samples=10))
    code, out, _ = command_line("audit", tmp_path / "run", "--class", "9")
    assert code == 0
    assert "LiRA" not in out
    code, out, _ = command_line("audit", tmp_path / "run", "--class", "9", "--shadows", "2")
    assert code == 0
    assert "GSA  LiRA" in out
    rows = json.loads((tmp_path / "run" / "audit.json").read_text())["rows"]
    both = {(row["attack"], row["metric"]) for row in rows if row["class"] == 9}
    assert both >= {(attack, metric) for attack in ("gsa", "lira") for metric in ("auc", "tpr-at-1-fpr")}
    code, out, err = command_line("audit", tmp_path / "run", "--shadows", "3")
    assert (code, out) == (2, "")
    assert "in pairs" in err.splitlines()[-1]
