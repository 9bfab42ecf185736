"""The audit against libraries, hand-worked values, a planted memoriser and honest nulls."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, mannwhitneyu
from sklearn.metrics import roc_auc_score, roc_curve

from fedmutual.config import RunConfig
from fedmutual.data.mixtures import MIXTURES
from fedmutual.diffusion import ddpm
from fedmutual.diffusion.process import expand
from fedmutual.diffusion.sampling import noise_predictor
from fedmutual.errors import UserError
from fedmutual.evaluation import attacks as attacks_module
from fedmutual.evaluation import membership as audit_module
from fedmutual.evaluation.attacks import (
    DRAWS,
    SECMI_STEPS,
    density_ratio_scores,
    distance_scores,
    loss_scores,
    pia_scores,
    secmi_queries,
    secmi_scores,
    sima_scores,
)
from fedmutual.evaluation.membership import (
    LOW_NOISE,
    PIA_TIME,
    SECMI_TIME,
    SHUFFLES,
    SIMA_TIME,
    TIMES,
    Estimate,
    auc,
    audit,
    extracted,
    mean,
    shuffled,
    true_positive_rate,
)
from fedmutual.networks import build
from simulations.runs import membership as command
from simulations.runs.membership import audit_run
from tests.support.data import load_class, load_unseen
from tests.support.federation import LocalGrid, federate

PROCESS = ddpm(100)
OVERLAP = MIXTURES["overlap-2d"]()[0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scores(members, non_members, seed=0, shift=0.0, ties=False):
    random = np.random.default_rng(seed)
    sides = random.normal(shift, 1, members), random.normal(0, 1, non_members)
    return tuple(np.round(side, 1) for side in sides) if ties else sides


def as_labels(members, non_members):
    return np.repeat([1, 0], [len(members), len(non_members)]), np.concatenate([members, non_members])


def empirical(train):
    """The network that has learned its training samples by heart: the noise in x if x_0 is one of `train: [n, d]`."""

    def predict(x, index):
        alpha, sigma = PROCESS.alpha[index], PROCESS.sigma[index]
        distance = (x[:, None] - alpha * train).square().sum(-1)
        x0 = (-distance / (2 * sigma**2)).softmax(1) @ train
        return (x - alpha * x0) / sigma

    return predict


def exact(mixture):
    """The network that has learned the law of its class and nothing of its samples."""

    def predict(x, index):
        alpha, sigma = PROCESS.alpha[index], PROCESS.sigma[index]
        return -sigma * mixture.diffused(alpha, sigma).score(x)

    return predict


def run_audit(predict, members, non_members, generated=None, seed=0):
    drawn = members[:0] if generated is None else generated
    findings = audit(predict, PROCESS, members, non_members, drawn, generator(seed))
    return {(result.attack, result.t, result.metric): result for result in findings}


# Numbers


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("m", "n", "shift"), [(4, 85, 1.0), (89, 85, 0.3), (500, 300, -0.5)])
def test_auc_is_scikit_learns(m, n, shift, ties):
    sides = scores(m, n, shift=shift, ties=ties)
    assert auc(*sides).value == pytest.approx(roc_auc_score(*as_labels(*sides)), abs=1e-12)


def test_auc_interval_holds_chance_when_the_mann_whitney_test_does():
    verdicts = set()
    for seed in range(60):
        sides = scores(12, 40, seed, shift=0.5)
        test = mannwhitneyu(*sides, method="asymptotic", use_continuity=False)
        result = auc(*sides)
        assert (result.low <= 0.5 <= result.high) == (test.pvalue >= 0.05)
        verdicts.add(test.pvalue >= 0.05)
    assert verdicts == {True, False}


@pytest.mark.parametrize(("m", "n", "area"), [(4, 85, 0.9), (50, 50, 0.3), (20, 200, 1.0), (5, 9, 0.0)])
def test_auc_limits_are_196_deviations_from_the_value(m, n, area):
    low, high = audit_module._lower_limit(area, m, n), 1 - audit_module._lower_limit(1 - area, m, n)
    assert 0 <= low <= area <= high <= 1
    for limit in {low, high} - {0.0, 1.0}:
        # Hanley and McNeil, 1982, with Q1 = theta / (2 - theta) and Q2 = 2 theta² / (1 + theta).
        q1, q2 = limit / (2 - limit), 2 * limit**2 / (1 + limit)
        others = (m + n) / 2 - 1
        variance = (limit * (1 - limit) + others * (q1 - limit**2) + others * (q2 - limit**2)) / (m * n)
        assert abs(area - limit) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize(("shift", "area"), [(0.0, 0.5), (1.8, 0.8984691)])  # Phi(shift / sqrt 2)
def test_auc_interval_covers_the_truth_with_four_members(shift, area):
    intervals = [auc(*scores(4, 170, seed, shift)) for seed in range(400)]
    assert np.mean([low <= area <= high for _, low, high in intervals]) > 0.93


def test_four_members_that_are_all_found_leave_doubt():
    result = auc(np.ones(4), np.zeros(85))
    assert result.value == result.high == 1
    assert 0.6 < result.low < 0.9


@pytest.mark.parametrize(("m", "n"), [(4, 170), (89, 89)])
def test_shuffled_labels_are_at_chance_in_the_range_of_chance(m, n):
    """However well members are told apart: the range is that of the Mann-Whitney statistic under its null."""
    result = shuffled(np.arange(m) + 1000, np.arange(n), generator())
    spread = 1.96 * math.sqrt((m + n + 1) / (12 * m * n))
    assert result.value == pytest.approx(0.5, abs=4 * spread / 1.96 / math.sqrt(SHUFFLES))
    assert (result.low, result.high) == pytest.approx((0.5 - spread, 0.5 + spread), abs=0.1 * spread)
    assert shuffled(np.arange(m) + 1000, np.arange(n), generator()) == result


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("m", "n"), [(4, 100), (30, 199), (80, 500)])
def test_true_positive_rate_is_scikit_learns(m, n, ties):
    sides = scores(m, n, shift=1.5, ties=ties)
    false, true, _ = roc_curve(*as_labels(*sides), drop_intermediate=False)
    result = true_positive_rate(*sides)
    assert result.value == true[false <= 0.01].max()
    hits = round(result.value * m)
    assert result.low == pytest.approx(beta.ppf(0.025, hits, m - hits + 1) if hits else 0)
    assert result.high == pytest.approx(beta.ppf(0.975, hits + 1, m - hits) if hits < m else 1)


def test_one_percent_takes_a_hundred_non_members():
    assert math.isnan(true_positive_rate(*scores(50, 99)).value)
    assert not math.isnan(true_positive_rate(*scores(50, 100)).value)


def test_the_mean_leaves_out_what_is_undefined_and_narrows():
    one = Estimate(0.8, 0.6, 0.9)
    assert mean([one, audit_module.UNDEFINED]) == pytest.approx(one)
    # Four independent estimates: half the way to each limit.
    assert mean([one] * 4) == pytest.approx((0.8, 0.7, 0.85))
    assert math.isnan(mean([audit_module.UNDEFINED]).value)


def test_nobody_to_compare_and_a_diverged_network_are_refused():
    with pytest.raises(UserError, match="not 3 with 0"):
        auc(np.ones(3), [])
    with pytest.raises(UserError, match="diverged"):
        auc([1.0, math.nan], [0.0])
    with pytest.raises(UserError, match="not 0 with 2"):
        extracted(np.zeros((5, 3)), np.empty((0, 3)), np.zeros((2, 3)))
    with pytest.raises(UserError, match="diverged"):
        extracted(np.full((5, 3), math.nan), np.zeros((2, 3)), np.zeros((2, 3)))


# Attacks


def test_the_loss_of_a_network_that_sees_nothing_is_that_of_the_noise():
    x = torch.randn(7, 1, 2, 2, dtype=torch.float64, generator=generator(1))
    result = loss_scores(lambda part, index: torch.zeros_like(part), PROCESS, x, 10, generator(2), draws=3)
    noise = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=generator(2))
    torch.testing.assert_close(result, -noise.square().mean().log().expand(7))


def test_pia_by_hand():
    """eps(x, j) = c_j x, so that eps_0 = c_0 x, x_t = (alpha + sigma c_0) x and eps_t = c_t x_t."""
    c = {0: 0.5, 30: 0.25}
    x = torch.tensor([[1.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
    result = pia_scores(lambda part, index: c[index] * part, PROCESS, x, 30)
    factor = abs(0.5 - 0.25 * (float(PROCESS.alpha[30]) + float(PROCESS.sigma[30]) * 0.5))
    assert result.tolist() == pytest.approx([-factor * 17**0.25, -factor * 3], rel=1e-12)


def test_sima_by_hand():
    """eps(x, j) = c_j x, asked of x itself: -c_j ||x||_4."""
    x = torch.tensor([[1.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
    result = sima_scores(lambda part, index: {30: 0.25}[index] * part, x, 30)
    assert result.tolist() == pytest.approx([-0.25 * 17**0.25, -0.75], rel=1e-12)


def test_secmi_by_hand():
    """eps(x, j) = c x: a step from s to u multiplies by alpha_u (1 - sigma_s c) / alpha_s + sigma_u c."""
    x, c = torch.tensor([[1.0, 2.0], [0.0, -3.0]], dtype=torch.float64), 0.3
    result = secmi_scores(lambda part, index: c * part, PROCESS, x, 20, steps=2)

    def step(start, end):
        alpha, sigma = PROCESS.alpha.tolist(), PROCESS.sigma.tolist()
        return alpha[end] * (1 - sigma[start] * c) / alpha[start] + sigma[end] * c

    there = step(0, 10) * step(10, 20)  # in two steps, and one of the same length beyond
    factor = (there * (1 - step(20, 30) * step(30, 20))) ** 2
    assert result.tolist() == pytest.approx([-factor * 5, -factor * 9], rel=1e-9)
    assert (secmi_queries(20, 100, 2), secmi_queries(100, 1000), secmi_queries(2, 25), secmi_queries(0, 25)) == (
        *(4, SECMI_STEPS + 2, 4),
        2,
    )


def test_attacks_on_samples_by_hand():
    generated, reference = [[0.0, 0.0], [10.0, 0.0]], [[0.0, 1.0]]
    candidates = [[3.0, 4.0], [10.0, 0.0]]
    assert distance_scores(generated, candidates).tolist() == [-5, 0]
    ratio = density_ratio_scores(generated, reference, candidates)
    assert ratio[0] == pytest.approx(math.log(math.hypot(3, 3) / 5))
    assert math.isfinite(ratio[1])
    assert ratio[1] > 100  # a copy is suspect beyond all others


def test_the_density_ratio_finds_members_where_the_distance_takes_dense_places_for_them():
    """Half of the members lie where reality is dense, half where it is thin and a near copy is farther off."""
    random = np.random.default_rng(0)
    spread = np.repeat([[0.1], [2.0]], 50, axis=0)
    members, others, reference, drawn = (random.normal(0, 1, (100, 8)) * spread + (spread > 1) * 9 for _ in range(4))
    drawn = np.r_[members + random.normal(0, 0.2, members.shape) * spread, drawn]
    by_distance = auc(*(distance_scores(drawn, side) for side in (members, others)))
    by_ratio = auc(*(density_ratio_scores(drawn, reference, side) for side in (members, others)))
    assert by_ratio.value > 0.95
    assert by_distance.high < by_ratio.low


def test_queries_are_those_counted():
    asked = 0

    def predict(x, index):
        nonlocal asked
        asked += len(x)
        return 0.1 * x

    samples = OVERLAP.sample(30, generator())
    result = run_audit(predict, samples[:10], samples[10:])
    single = {key: finding.queries for key, finding in result.items() if key[2] == "auc" and key[1] is not None}
    assert single.pop(("control-shuffled", PIA_TIME, "auc")) == 2  # those of PIA, shuffled
    assert asked == 30 * sum(single.values())
    low = [t for t in TIMES if t <= LOW_NOISE]
    assert result["loss", None, "auc"].queries == sum(single["loss", t, "auc"] for t in low) == DRAWS * len(low)


def test_large_candidates_are_asked_in_parts(monkeypatch):
    samples = OVERLAP.sample(30, generator())
    whole = run_audit(exact(OVERLAP), samples[:10], samples[10:])
    monkeypatch.setattr(attacks_module, "ROWS", 8)
    assert run_audit(exact(OVERLAP), samples[:10], samples[10:]) == whole


def test_extraction_by_hand():
    # Nearest generated samples: non-members 0.5 and 1 away; members 0.4, 0.5 (not nearer than 0.5) and 0.
    generated, members, non_members = [0.0, 10.0], [0.4, 10.5, 10.0], [0.5, 9.0]
    assert extracted(generated, members, non_members).value == 2 / 3


def test_one_in_a_hundred_non_members_may_be_nearer():
    non_members = np.r_[0.1, np.full(99, 3.0)]
    assert extracted([0.0], [1.0, 2.0, 4.0], non_members).value == 2 / 3


def test_memory_is_extracted_whole_and_fresh_samples_are_not():
    train, unseen, fresh = OVERLAP.sample(1300, generator()).split([100, 200, 1000])
    result = extracted(train, train, unseen)
    assert (result.value, result.high) == (1, 1)
    assert extracted(fresh, train, unseen).low < 0.01


# What an audit must find, and what it must clear

SUMMARISED = [
    ("pia", PIA_TIME),
    ("loss", None),
    ("sima", SIMA_TIME),
    ("secmi", SECMI_TIME),
    ("distance", None),
    ("density-ratio", None),
]
"""Every attack, at the time that a summary shows."""


@pytest.mark.parametrize("y", [1, 9])
def test_a_planted_memoriser_is_found(y):
    train, unseen = (
        part.flatten(1).double() for part in (load_class(RunConfig(), y).train, load_unseen(RunConfig(), y))
    )
    assert len(train) == {1: 63, 9: 4}[y]
    copies = train[torch.randint(len(train), (500,), generator=generator())]
    result = run_audit(empirical(train), train, unseen, generated=copies)
    for attack in SUMMARISED:
        assert result[*attack, "auc"].estimate.value > 0.95, attack
        assert result[*attack, "auc"].estimate.low > 0.5, attack
    assert result["pia", PIA_TIME, "tpr-at-1-fpr"].estimate.value > 0.9
    assert result["extraction", None, "extracted"].estimate.value == 1
    control = result["control-shuffled", PIA_TIME, "auc"].estimate
    assert control.low < 0.5 < control.high


def test_an_honest_network_is_cleared():
    """The exact score knows nothing of the samples: 95 of 100 intervals hold 0.5, for every attack and time."""
    holding = {}
    for seed in range(50):
        members, others = OVERLAP.sample(230, generator(seed)).split([20, 210])
        result = run_audit(
            exact(OVERLAP), members, others, generated=OVERLAP.sample(50, generator(1000 + seed)), seed=seed
        )
        for key, finding in result.items():
            truth = {"auc": 0.5, "tpr-at-1-fpr": 0.01, "extracted": 0.01}[key[2]]
            holding.setdefault(key, []).append(finding.estimate.low <= truth <= finding.estimate.high)
    shares = {key: np.mean(held) for key, held in holding.items()}
    assert len(shares) == 2 * (3 * len(TIMES) + 1 + 3) + 2
    assert {(attack, t) for attack, t, _ in shares} >= set(SUMMARISED)
    assert min(shares.values()) >= 0.86, shares  # 50 draws of 0.95 fall below that once in 80


@pytest.mark.parametrize("y", [0, 9])
def test_an_untrained_network_tells_nothing(y):
    config = RunConfig()
    network = build(config, (1, 8, 8), y).double()
    predict = noise_predictor(network, PROCESS, "noise", clip=False)
    result = run_audit(predict, load_class(config, y).train.double(), load_unseen(config, y).double())
    of_network = [attack for attack in SUMMARISED if (*attack, "auc") in result]
    assert len(of_network) == 4
    for attack, t in [*of_network, ("control-shuffled", PIA_TIME)]:
        estimate = result[attack, t, "auc"].estimate
        assert estimate.low < 0.5 < estimate.high, attack


@pytest.mark.parametrize("parametrisation", ["score", "velocity"])
def test_a_network_of_scores_or_velocities_is_asked_for_its_noise(parametrisation):
    """s = -eps / sigma; eps = sigma x + alpha v, so v = (eps - sigma x) / alpha: one function, one audit."""
    train, unseen = OVERLAP.sample(60, generator()).split([20, 40])

    class Expressed(torch.nn.Module):
        def forward(self, x, t):
            index = t.long()
            alpha, sigma = expand(PROCESS.alpha[index], x), expand(PROCESS.sigma[index], x)
            noise = empirical(train)(x, int(index[0]))
            return -noise / sigma if parametrisation == "score" else (noise - sigma * x) / alpha

    expressed = run_audit(noise_predictor(Expressed(), PROCESS, parametrisation, clip=False), train, unseen)
    by_noise = run_audit(empirical(train), train, unseen)
    for key, finding in by_noise.items():
        assert expressed[key].estimate == pytest.approx(finding.estimate, nan_ok=True), key


# Runs


@pytest.fixture
def folder(small, tmp_path):
    federate(small(samples=30))
    return tmp_path / "run"


def test_an_audit_of_a_run_is_written_and_told(folder, command_line):
    done = []
    rows = audit_run(folder, done.append)
    assert done == list(range(10))
    assert json.loads((folder / "audit.json").read_text()) == {"round": 2, "rows": rows}
    answer = [row for row in rows if (row["attack"], row["t"], row["metric"]) == ("pia", PIA_TIME, "auc")]
    assert [row["class"] for row in answer] == [*range(10), "mean", "worst"]
    by_class = {row["class"]: row for row in answer}
    config = RunConfig.of(command.run_config(folder).settings())
    for y in range(10):
        assert by_class[y]["members"] == by_class[y]["n_train"] == len(load_class(config, y).train)
        assert by_class[y]["non_members"] == len(load_unseen(config, y))
    assert by_class["worst"]["value"] == max(by_class[y]["value"] for y in range(10))
    assert by_class["mean"]["value"] == pytest.approx(np.mean([by_class[y]["value"] for y in range(10)]))
    assert {row["attack"] for row in rows} == {
        *("loss", "pia", "sima", "secmi", "distance", "density-ratio"),
        *("extraction", "control-shuffled"),
    }

    code, out, _ = command_line("audit", folder, "--json")
    assert code == 0
    assert json.loads(out)["rows"] == [{"run": str(folder), **row} for row in rows]  # nothing is left to chance
    code, out, _ = command_line("audit", folder, "--round", "1")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:14]] == ["worst", "mean", *map(str, range(10))]
    assert "no proof of privacy" in out
    assert json.loads((folder / "audit.json").read_text())["round"] == 1


def test_members_and_non_members_are_the_whole_class_and_share_no_sample():
    config = RunConfig()
    for y, total in ((0, 178), (9, 180)):
        train, unseen = load_class(config, y).train.flatten(1), load_unseen(config, y).flatten(1)
        assert len(train) + len(unseen) == total
        assert torch.cdist(train, unseen).min() > 0


def test_candidates_are_bounded(folder):
    rows = [row for row in audit_run(folder, changes={"audit-candidates": 15}) if row["class"] == 0]
    sizes = {row["attack"]: (row["members"], row["non_members"], row["n_train"]) for row in rows}
    assert sizes.pop("density-ratio") == (15, 7, 20)  # half of the others are its reference
    assert set(sizes.values()) == {(15, 15, 20)}


def test_one_class_is_audited_where_its_holder_has_the_data(small, tmp_path, command_line):
    """The server of a deployed run has no data; the holder of class 1 has a file of its own."""
    images = {y: load_class(RunConfig().but(imbalance="none"), y).train.movedim(1, -1).numpy() for y in (0, 1)}
    for y, samples in images.items():
        np.savez(tmp_path / f"{y}.npz", images=samples[:60])
    deployed = {"data": "npz", "classes": 2, "shape": "1,8,8", "imbalance": "none", "head_count": 0, "test": 0}

    grid = LocalGrid([])
    for y in (0, 1):
        grid.join(y, **{"data": "npz", "data-path": str(tmp_path / f"{y}.npz")})
    federate(small(held_out=20, **deployed), grid)
    run = tmp_path / "run"

    code, out, err = command_line("audit", run)
    assert (code, out) == (2, "")
    assert "an audit needs the members' data" in err.splitlines()[-1]
    place = ["-s", f"data-path={tmp_path / '1.npz'}"]
    code, _, err = command_line("audit", run, *place)
    assert code == 2
    assert "--class N" in err.splitlines()[-1]
    code, out, _ = command_line("audit", run, *place, "--class", "1", "--json")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert {row["class"] for row in rows} == {1, "worst", "mean"}
    assert {(row["members"], row["non_members"]) for row in rows if row["metric"] == "auc"} == {(40, 20)}


@pytest.mark.parametrize(
    ("changes", "arguments", "says"),
    [
        ({"test": 0, "held_out": 0, "imbalance": "none", "head_count": 0}, [], "a larger held-out or test part"),
        ({}, ["--class", "12"], "class 12 has no network in this run"),
        ({}, ["--round", "9"], "no checkpoint of round 9"),
        ({}, ["-s", "seed=4"], "seed cannot change"),
    ],
)
def test_what_cannot_be_audited_is_one_line(small, tmp_path, command_line, changes, arguments, says):
    federate(small(rounds=1, local_steps=1, **changes))
    code, out, err = command_line("audit", tmp_path / "run", *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert says in err.splitlines()[-1]


def test_a_folder_without_a_run_is_refused(tmp_path, command_line):
    code, _, err = command_line("audit", tmp_path)
    assert code == 2
    assert "holds no run" in err or "holds no whole checkpoint" in err
