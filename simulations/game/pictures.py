"""The figures of a game report, put together from what was measured."""

import math

import numpy as np

from fedmutual.evaluation.intervals import Estimate
from simulations.game import figures as game_figures
from simulations.game.cases import Case, Preset, Settings
from simulations.game.claims import Results, change
from simulations.game.dynamics import Curve, heat_maps
from simulations.game.figures import Band, Picture
from simulations.game.play import CHUNK, Measured, draw, method


def all_of(found: Preset, results: Results, seeds: list[int], settings: Settings) -> list[Picture]:
    """The curves over beta and, for two classes on a line, the maps of density and error."""
    pictures = [_over_beta(found, results, settings)]
    if found.metric == "kl" and len(found.cases[0].counts) == 2:
        pictures += [_heat(results, case, seeds, settings) for case in _heat_cases(found)]
    return pictures


def best_beta(measured: Measured, settings: Settings) -> float:
    """The positive beta whose worst class is best at the equilibrium."""
    worst = {
        beta: measured.values["equilibrium", method(f"{beta:g}")].amax(-1).mean() for beta in settings.betas if beta
    }
    return min(worst, key=worst.get) if worst else 1.0


def _over_beta(found: Preset, results: Results, settings: Settings) -> Picture:
    panels, levels = {}, {}
    for label, (case, measured) in results.items():
        for learning in ("equilibrium", "adam") if len(results) == 1 else ("equilibrium",):
            if (learning, method("0")) not in measured.values:
                continue
            title = label if len(results) > 1 else learning
            tables = [measured.values[learning, method(f"{beta:g}")] for beta in settings.betas]
            pick = {
                "worst class": lambda v: v.amax(-1),
                case.names[0]: lambda v: v[:, 0],
                case.names[-1]: lambda v: v[:, -1],
            }
            panels[title] = [
                Band(kind, [Estimate.of(choose(table).numpy()) for table in tables]) for kind, choose in pick.items()
            ]
            arms = (
                ("tuned ridge, caution 0", "copy head", "beta auto")
                if len(case.counts) == 2
                else ("tuned ridge, caution 0", "beta auto, similar peers")
            )
            levels[title] = {arm: float(measured.values[learning, arm].amax(-1).mean()) for arm in arms}
    unit = "KL(truth || generated)" if found.metric == "kl" else "Fréchet distance"
    caption = (
        "Lines: means over seeds with 95 % intervals. Level lines: the worst class with controls and with chosen beta."
    )
    return Picture("Over beta", caption, game_figures.v_curves(settings.betas, panels, levels, unit))


def approach(label: str, beta: float, gaps: list[Curve], distances: dict[str, list[Curve]]) -> list[Picture]:
    """The Nash gap over iterations, and the distance to the equilibrium over rounds."""
    games = gaps[0].values.shape[1]
    return [
        Picture(
            "Nash gap over iterations",
            f"{label}, gradient descent; geometric mean over {games} games, middle half shaded.",
            game_figures.curves({"": gaps}, "iteration", "Nash gap"),
        ),
        Picture(
            "Approach to the equilibrium",
            f"{label}, beta {beta:g}, beta 0.1 for peers: relative distance of the scores from the equilibrium's. More "
            "local steps need fewer rounds and end at the same point; sampled peers leave a floor at a constant rate.",
            game_figures.curves(distances, "round", "distance to the equilibrium"),
        ),
    ]


def _heat_cases(found: Preset) -> list[Case]:
    """The cases worth a map: at most two, the first and, in a sweep, one with well-separated classes."""
    return [found.cases[0]] if len(found.cases) < 3 else [found.cases[1], found.cases[3]]


def _heat(results: Results, case: Case, seeds: list[int], settings: Settings) -> Picture:
    beta = best_beta(results[case.label][1], settings)
    reach = max(float((m.means[:, 0].abs() + 3 * m.variances.sqrt()).max()) for m in case.truths)
    maps = heat_maps(draw(case, seeds[: 2 * CHUNK], settings), beta, reach)
    caption = (
        f"{case.label}, exact equilibria, {min(len(seeds), 2 * CHUNK)} games; beta {beta:g} is the best positive one."
    )
    return Picture("Density and fitting error", caption, game_figures.heat_panels(maps, case.names))


def phase(results: Results, settings: Settings) -> Picture:
    across = sorted({float(label.split(",")[0][5:]) for label in results})
    up = list(dict.fromkeys(label.split(", ")[1] for label in results))
    arms = [method(f"{beta:g}") for beta in settings.betas if beta >= 0.1] + ["beta auto"]
    panels, doubt = {}, {}
    for arm in arms:
        table = [
            [
                change(results[f"mu = {mu:g}, {pair}"][1], ("equilibrium", arm), ("equilibrium", method("0")))
                for mu in across
            ]
            for pair in up
        ]
        panels[arm] = np.array([[cell.mean for cell in line] for line in table])
        doubt[arm] = np.array([[cell.half if cell.half is not None else math.inf for cell in line] for line in table])
    caption = (
        "Change of the worst class's KL against beta 0 at the exact equilibrium, 50 samples in all; purple is better, "
        "orange is worse, a dot marks a 95 % interval that excludes zero."
    )
    return Picture("Where mutual learning helps", caption, game_figures.phase_panels(across, up, panels, doubt))
