"""The pictures of a game report, put together from what was measured: title, caption and drawing."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from torch import Tensor

from fedmutual.evaluation.intervals import Estimate
from simulations.game.cases import Case, Preset, Settings
from simulations.game.claims import Results, change
from simulations.game.dynamics import Curve, heat_maps
from simulations.game.figures import Band, curves, heat_panels, phase_panels, v_curves
from simulations.game.play import ALONE, CHUNK, COPY_HEAD, SIMILAR, TUNED_RIDGE_BOLD, Measured, at, auto, draw


@dataclass(frozen=True)
class Picture:
    """A figure of the report: what it shows, in words, and the drawing."""

    title: str
    caption: str
    svg: Markup


def all_of(chosen: Preset, results: Results, seeds: list[int], settings: Settings) -> list[Picture]:
    """The curves over beta and, for two classes on a line, the maps of density and error."""
    pictures = [_over_beta(chosen, results, settings)]
    if chosen.metric == "kl" and len(chosen.cases[0].counts) == 2:
        pictures += [_heat(results, case, seeds, settings) for case in _heat_cases(chosen)]
    return pictures


def best_beta(measured: Measured, settings: Settings) -> float:
    """The positive beta whose worst class is best at the equilibrium."""
    worst = {beta: float(measured.values["equilibrium", at(beta)].amax(-1).mean()) for beta in settings.betas if beta}
    return min(worst, key=lambda beta: worst[beta]) if worst else 1.0


def _over_beta(chosen: Preset, results: Results, settings: Settings) -> Picture:
    panels: dict[str, list[Band]] = {}
    levels: dict[str, dict[str, float]] = {}
    for label, (case, measured) in results.items():
        for learning in ("equilibrium", "adam") if len(results) == 1 else ("equilibrium",):
            if (learning, ALONE) not in measured.values:
                continue
            title = label if len(results) > 1 else learning
            tables = [measured.values[learning, at(beta)] for beta in settings.betas]
            pick: dict[str, Callable[[Tensor], Tensor]] = {
                "worst class": lambda v: v.amax(-1),
                case.names[0]: lambda v: v[:, 0],
                case.names[-1]: lambda v: v[:, -1],
            }
            panels[title] = [
                Band(kind, [Estimate.of(choose(table).numpy()) for table in tables]) for kind, choose in pick.items()
            ]
            others = (COPY_HEAD, auto()) if len(case.counts) == 2 else (auto(peers=SIMILAR),)
            levels[title] = {
                arm.name: float(measured.values[learning, arm].amax(-1).mean()) for arm in (TUNED_RIDGE_BOLD, *others)
            }
    unit = "KL(truth || generated)" if chosen.metric == "kl" else "Fréchet distance"
    caption = (
        "Lines: means over seeds with 95 % intervals. Level lines: the worst class with controls and with chosen beta."
    )
    return Picture("Over beta", caption, v_curves(settings.betas, panels, levels, unit))


def approach(label: str, beta: float, gaps: list[Curve], distances: dict[str, list[Curve]]) -> list[Picture]:
    """The Nash gap over iterations, and the distance to the equilibrium over rounds."""
    games = gaps[0].values.shape[1]
    return [
        Picture(
            "Nash gap over iterations",
            f"{label}, gradient descent; geometric mean over {games} games, middle half shaded.",
            curves({"": gaps}, "iteration", "Nash gap"),
        ),
        Picture(
            "Approach to the equilibrium",
            f"{label}, beta {beta:g}, beta 0.1 for peers: relative distance of the scores from the equilibrium's. More "
            "local steps need fewer rounds and end at the same point; sampled peers leave a floor at a constant rate.",
            curves(distances, "round", "distance to the equilibrium"),
        ),
    ]


def _heat_cases(chosen: Preset) -> list[Case]:
    """The cases worth a map: at most two, the first and, in a sweep, one with well-separated classes."""
    return [chosen.cases[0]] if len(chosen.cases) < 3 else [chosen.cases[1], chosen.cases[3]]


def _heat(results: Results, case: Case, seeds: list[int], settings: Settings) -> Picture:
    beta = best_beta(results[case.label][1], settings)
    reach = max(float((m.means[:, 0].abs() + 3 * m.variances.sqrt()).max()) for m in case.truths)
    maps = heat_maps(draw(case, seeds[: 2 * CHUNK], settings), beta, reach)
    caption = (
        f"{case.label}, exact equilibria, {min(len(seeds), 2 * CHUNK)} games; beta {beta:g} is the best positive one."
    )
    return Picture("Density and fitting error", caption, heat_panels(maps, case.names))


def phase(results: Results, settings: Settings) -> Picture:
    """The change of the worst class over separation (across) and imbalance (up), a panel for each arm."""
    cells = {(case.separation or 0.0, case.imbalance): measured for case, measured in results.values()}
    across, up = sorted({mu for mu, _ in cells}), list(dict.fromkeys(pair for _, pair in cells))
    panels, doubt = {}, {}
    for arm in [*(at(beta) for beta in settings.betas if beta >= 0.1), auto()]:
        table = [
            [change(cells[mu, pair], ("equilibrium", arm), ("equilibrium", ALONE)) for mu in across] for pair in up
        ]
        panels[arm.name] = np.array([[cell.mean for cell in line] for line in table])
        doubt[arm.name] = np.array([[math.inf if cell.half is None else cell.half for cell in line] for line in table])
    caption = (
        "Change of the worst class's KL against beta 0 at the exact equilibrium, 50 samples in all; purple is better, "
        "orange is worse, a dot marks a 95 % interval that excludes zero."
    )
    return Picture("Where mutual learning helps", caption, phase_panels(across, up, panels, doubt))
