"""`fedmutual game`: rows, report, claims, and what it refuses."""

import json
import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from fedmutual.errors import UserError
from fedmutual.evaluation.intervals import Estimate
from fedmutual.theory.moments import denoising_losses
from simulations.cli.app import app
from simulations.game import claims
from simulations.game.cases import PRESETS, Settings, geometric_counts, preset
from simulations.game.command import run
from simulations.game.controls import alone, auto_beta, copy_head, pooled, similar_peers, tuned_ridge
from simulations.game.dynamics import Curve, slopes
from simulations.game.page import write
from simulations.game.play import ALONE, Measured, at, draw, frechet_distances

pytestmark = pytest.mark.xdist_group("game_command")  # its fixtures are made once

QUICK = Settings.parse(["iterations=20", "descent=200", "betas=0,0.1,1", "samples=100"])


@pytest.fixture(scope="module")
def overlap():
    return draw(PRESETS["overlap"].cases[0], [0, 1, 2], QUICK)


def test_a_preset_gives_rows_and_a_page_that_stands_alone(tmp_path):
    name = "case-two"
    report = run(name, 3, QUICK, tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == len(report.rows)
    main = [row for row in rows if row["metric"] == PRESETS[name].metric]
    assert {row["class"] for row in main} == {"worst", "mean", "head", "tail"}
    assert {"equilibrium", "adam"} == {row["learning"] for row in main}
    assert {"tuned ridge", "copy head", "pooled", "beta auto"} <= {row["method"] for row in main}
    assert all(math.isfinite(row["mean"]) and row["seeds"] == 3 for row in main)
    assert all(row["difference"] == 0 for row in main if row["method"] == "beta 0")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(report.pictures) > 0
    assert all(claim.sentence.split()[0] in page for claim in report.claims)
    assert 'src="http' not in page
    assert "<link" not in page


def test_published_numbers_stand_beside_ours():
    report = run("overlap-2d", 2, QUICK, None)
    assert not report.pictures
    beside = {(row["beta"], row["class"]): row["paper"] for row in report.rows if row["paper"] is not None}
    assert beside == {(0, "head"): 2.766, (0, "tail"): 1.984, (0.1, "head"): 2.467, (0.1, "tail"): 1.965,
                      (1, "head"): 1.954, (1, "tail"): 2.021}  # fmt: skip


def test_same_seeds_give_the_same_rows():
    first, second = (run("case-two", 2, QUICK, None).rows for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_one_seed_has_no_interval(tmp_path):
    report = run("case-two", 1, QUICK, None)
    assert all(row["ci95"] is None for row in report.rows if row["metric"] == "kl")
    write(report, "case-two", 1, QUICK, tmp_path)
    assert "NaN" not in (tmp_path / "rows.json").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "nan" not in page.split("<h2>Tables")[1]
    assert "None" not in page
    undecided = [claim for claim in report.claims if claim.claim.startswith(("the Nash gap", "the gap stops"))]
    assert [claim.verdict for claim in undecided] == ["undecided"] * 2


def test_sentences_give_numbers_and_rows_know_their_beta_without_reading_names(monkeypatch):
    few = replace(PRESETS["many"], cases=PRESETS["many"].cases[:1])
    monkeypatch.setitem(PRESETS, "many", few)
    report = run("many", 2, QUICK, None)
    assert not any("Estimate(" in claim.sentence for claim in report.claims)
    betas = {row["method"]: row["beta"] for row in report.rows if row["learning"] == "equilibrium"}
    assert betas["beta 0.1, similar peers"] == betas["beta 0.1"] == 0.1
    assert betas["beta auto, caution 0"] == betas["beta auto, similar peers"] == "auto"
    assert betas["tuned ridge"] is betas["pooled"] is None


def test_command_prints_one_object_and_nothing_else(tmp_path):
    options = ["--seeds", "2", "-s", "iterations=5", "-s", "descent=50", "-s", "betas=0,1", "--json"]
    result = CliRunner().invoke(app, ["game", "case-two", *options, "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) == {"rows"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("speed=3", "one of features"),
        ("features", "KEY=VALUE"),
        ("features=many", "whole number"),
        ("features=0", "positive"),
        ("rate=nan", "a number"),
        ("betas=0,-1", "not be negative"),
        ("betas=0", "at least must be positive"),
        ("betas=a,b", "with commas between them"),
        ("mutual-weight=loud", "one, t, exp"),
        ("folds=1", "at least 2"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(text, says):
    with pytest.raises(UserError, match=says) as caught:
        Settings.parse([text])
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(UserError, match="case-one, case-two, overlap"):
        preset("nothing")
    with pytest.raises(UserError, match="at least 1"):
        run("overlap", 0, QUICK, None)


def test_caution_never_asks_for_more_and_ridges_come_from_their_grid(overlap):
    auto, bold = auto_beta(overlap, overlap.game(torch.zeros(2, dtype=torch.float64)).Q, (1.0, 0.0))
    assert auto.shape == bold.shape == (3, 2)
    assert (auto <= bold).all()
    ratio = tuned_ridge(overlap)[0] / overlap.game(torch.zeros(2, dtype=torch.float64)).ridge
    assert (ratio >= 1 - 1e-12).all()
    assert (ratio <= 1000 + 1e-9).all()


def test_a_class_of_one_sample_stays_with_the_safe_choice():
    case = replace(PRESETS["overlap"].cases[0], counts=[9, 1])
    world = draw(case, [0, 1], QUICK)
    uniform = world.game(torch.zeros(2, dtype=torch.float64)).Q
    assert (auto_beta(world, uniform)[0, :, 1] == 0).all()
    assert torch.equal(tuned_ridge(world)[0, :, 1], world.game(torch.zeros(2, dtype=torch.float64)).ridge[:, 1])


def test_copying_the_head_gives_everyone_its_score(overlap):
    world, profile = copy_head(overlap, alone(overlap))
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    scores = world.players.score(profile, x, 0.5)
    own = overlap.players.score(alone(overlap), x, 0.5)
    torch.testing.assert_close(scores[:, 1], own[:, 0])


def test_pooled_network_has_one_matrix_that_minimises_the_mean_loss_over_all_samples(overlap):
    world, profile = pooled(overlap)
    A = profile[:, 0].clone().requires_grad_()
    parts = [
        denoising_losses(world.players, A, y, sample, world.process, world.own_weight)
        for y, sample in enumerate(world.samples)
    ]
    assert torch.equal(profile[:, 0], profile[:, 1])
    fit = torch.autograd.grad(torch.cat(parts, -1).mean(-1).sum(), A)[0]
    # What is left of the gradient is the ridge's: along -A, with one factor for each game.
    factor = (fit * A).sum((-2, -1), keepdim=True) / A.square().sum((-2, -1), keepdim=True)
    torch.testing.assert_close(fit, factor * A.detach(), rtol=1e-6, atol=1e-12)
    assert (factor < 0).all()


def test_similar_peers_prefer_the_neighbours_on_a_line():
    world = draw(PRESETS["many"].cases[0], [0, 1], QUICK)
    Q = similar_peers(world)
    torch.testing.assert_close(Q.sum(-1), torch.ones(2, 10, dtype=torch.float64))
    assert (Q.diagonal(dim1=-2, dim2=-1) == 0).all()
    assert (Q[:, 3, [2, 4]].sum(-1) > 0.8).all()


def test_frechet_distance_of_the_truth_itself_is_small():
    world = draw(PRESETS["overlap-2d"].cases[0], [0, 1], QUICK)
    untrained = world.game(torch.zeros(2, dtype=torch.float64)).untrained
    # A score of zero makes every variance grow by e^4 + (e^4 - 1): from 1 to about 106, nothing like the truth's.
    spread = math.exp(4) + math.exp(4) - 1
    distances = frechet_distances(world, untrained[None], 4000)[0, :, 1]
    expected = 2 * (math.sqrt(spread) - 2) ** 2
    torch.testing.assert_close(distances, torch.full_like(distances, expected), rtol=0.05, atol=0)


def test_slopes_of_a_power_law_are_its_exponent():
    rounds = [10**k for k in range(1, 6)]
    gaps = torch.tensor(rounds, dtype=torch.float64)[:, None] ** torch.tensor([-0.5, -2.0], dtype=torch.float64)
    assert slopes(Curve("", rounds, gaps)) == pytest.approx([-0.5, -2.0])


def test_interval_is_students():
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert (estimate.mean, estimate.half) == (pytest.approx(2.0), pytest.approx(4.302653 / math.sqrt(3)))


def test_verdicts_follow_the_numbers():
    def measured(shift):
        base = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        noise = 0.01 * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        values = {("equilibrium", ALONE): base, ("equilibrium", at(0.01)): base + shift + noise}
        return (PRESETS["overlap"].cases[0], Measured(values, {}, {}))

    def outcome(*shifts):
        return claims.lower_worst({str(k): measured(shift) for k, shift in enumerate(shifts)})[0].verdict

    assert outcome(-0.1, -0.2) == "reproduced"
    assert outcome(-0.1, 0.2) == "only under conditions"
    assert outcome(0.1) == "not reproduced"
    assert outcome(0.0) == "undecided"


def test_counts_fall_geometrically_from_200_to_2():
    counts = geometric_counts(50)
    assert (len(counts), counts[0], counts[-1]) == (50, 200, 2)
    assert counts == sorted(counts, reverse=True)
