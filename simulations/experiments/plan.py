"""`fedmutual compare`: methods times seeds, each an arm in a folder of its own, and one page about all of them."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fedmutual.checkpoint import Unwritable, write_atomic
from fedmutual.config import RunConfig, refuse_without_effect
from fedmutual.data import check, num_classes
from fedmutual.device import pick_device
from fedmutual.errors import UserError
from fedmutual.methods import METHODS
from fedmutual.privacy.versions import level_of
from fedmutual.run_folder import CONFIG, holds_run
from fedmutual.settings import read_stored, write_settings
from simulations.engine.cluster import kept_ray
from simulations.experiments.arm import is_finished, run_arm
from simulations.experiments.methods import RECIPES
from simulations.experiments.pace import Name, Pace
from simulations.runs.arms import NOT_THE_METHOD
from simulations.runs.extractor import with_own_extractor
from simulations.runs.measuring import refuse_useless

SETTINGS = "comparison.toml"
"""In the comparison's folder: the settings that all arms have in common."""

OnArm = Callable[[int, str], None]
"""Takes how many arms are done, and words on those that are left and on what is being trained."""


class ArmsFailed(RuntimeError):
    """Some arms failed and the others are done; says which and why."""


@dataclass(frozen=True)
class Plan:
    """A comparison: its arms, {(method, seed): settings}, in the folder `folder`/method/seed-N."""

    folder: Path
    arms: dict[tuple[str, int], RunConfig]
    notices: Sequence[str] = ()

    def place(self, arm: tuple[str, int]) -> Path:
        return self.folder / arm[0] / f"seed-{arm[1]}"

    @property
    def places(self) -> list[Path]:
        return [self.place(arm) for arm in self.arms]


def plan(
    settings: dict[str, Any], methods: str, seeds: int, folder: Path, given: Mapping[str, Any] = MappingProxyType({})
) -> Plan:
    """The arms of a comparison, checked before any is begun.

    settings: of the preset and `-s`; a key `METHOD.key` holds for that method alone. methods: names with commas
    between them, or `all`. seeds: so many, from the setting `seed` on. given: the settings beyond the preset's.

    Raises:
        UserError: an unknown method, no seed, budgets that would be unequal, settings or data that cannot work,
            or a folder that holds something else.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: a comparison needs at least one seed, and five or more to mean something")
    common, own = _split(settings)
    names = method_names(methods, RunConfig.of(common).mutual.rule)
    base = with_own_extractor(RunConfig.of(common), Path(folder)).with_whole_paths()
    _possible(base, names)
    arms = {
        (name, seed): _arm(base, name, seed, own.get(name, {}))
        for seed in range(base.seed, base.seed + seeds)
        for name in names
    }
    for name, seed in arms:
        if name == "pfdm":
            level_of(arms[name, seed])  # the split leaves a time to noise at
    _refuse_without_effect(base, given, names)
    checked = check(base.data, base.seed)  # the data are there, whole, and make as many samples as are asked for
    if base.measuring.samples:
        refuse_useless(base, checked.source)
    made = Plan(Path(folder), arms, checked.notices)
    _check_folder(made, base)
    return made


def _arm(base: RunConfig, method: str, seed: int, own: Mapping[str, Any]) -> RunConfig:
    """The settings of an arm: the comparison's, the method's, and those that were given for it alone."""
    config = RunConfig.of(base.settings(), dict(RECIPES[method].settings), {"seed": seed})
    return RunConfig.of(config.settings(), at_equal_steps(config, own, method))


def _refuse_without_effect(base: RunConfig, given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises `UserError` for a setting that was given, for all methods or for one, and would change none.

    Arms are as a person has given them: what was tuned since takes no effect away.
    """
    common, own = _split(dict(given))
    arms = {name: _arm(base, name, base.seed, own.get(name, {})) for name in names}
    refuse_without_effect(base, common, arms)
    for name, settings in own.items():
        if name not in arms:
            raise UserError(f"{name}.{next(iter(settings))} has no effect, as --methods lacks {name}: leave it out")
        try:
            refuse_without_effect(arms[name], settings, {name: arms[name]})
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


def at_equal_steps(config: RunConfig, changes: Mapping[str, Any], method: str) -> dict[str, Any]:
    """`changes` of an arm with the settings `config`; other local steps bring as many rounds as keep the budget.

    Held-out losses and checkpoints then come as often as before, counted in gradient steps.

    Raises:
        UserError: the local steps do not divide the gradient steps of the comparison.
    """
    if "local-steps" not in changes:
        return dict(changes)
    steps, total = RunConfig.of(config.settings(), dict(changes)).local_steps, config.rounds * config.local_steps
    if not steps or total % steps:
        raise UserError(
            f"{method}.local-steps = {steps} does not divide the {total} gradient steps that a class has in all: "
            "give a number that does"
        )
    often = max(1, config.local_steps // steps)
    every = {key: config.settings()[key] * often for key in ("evaluate-every", "checkpoint-every")}
    return {**changes, **every, "rounds": total // steps}


def method_names(methods: str, rule: str) -> list[str]:
    """The methods of `--methods`: names with commas between them, `mutual` for that of the beta rule, or `all`.

    Raises:
        UserError: a name that is none, or one that comes twice.
    """
    known = ", ".join(RECIPES)
    if methods == "all":
        return list(RECIPES)
    names = [f"mutual-{rule}" if name.strip() == "mutual" else name.strip() for name in methods.split(",")]
    for name in names:
        if name not in RECIPES:
            raise UserError(f"no method {name!r}: there are {known}, mutual for the rule of the settings, or all")
    if len(set(names)) < len(names):
        raise UserError("--methods names a method twice: once is enough")
    return names


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings that all methods have in common, and those of one method alone."""
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        method, dot, name = key.rpartition(".")
        if not dot:
            common[key] = value
            continue
        if method not in RECIPES:
            raise UserError(f"setting {key!r}: no method {method!r}: there are {', '.join(RECIPES)}")
        if name not in RECIPES[method].own:
            allowed = ", ".join(RECIPES[method].own) or "none"
            raise UserError(
                f"setting {key!r} would give {method} another budget, data or method than its own: "
                f"set {name} for all, or for {method} alone one of: {allowed}"
            )
        own.setdefault(method, {})[name] = value
    return common, own


def _possible(config: RunConfig, names: Sequence[str]) -> None:
    """Raises `UserError` for settings under which a method cannot run, or not on the budget of the others."""
    if config.federation.participation < 1:
        raise UserError(
            "participation below 1 gives federated arms fewer steps than the others, and budgets would be unequal: "
            "leave it at 1"
        )
    mutual = [name for name in names if METHODS[name].mutual]
    if mutual and not config.mutual.beta:
        raise UserError(f"beta = 0 makes {mutual[0]} the same as isolated: set beta above 0")
    conditional = [name for name in names if RECIPES[name].conditional]
    if conditional and config.optimiser.draws == "fixed":
        raise UserError(f"{conditional[0]} draws anew at each step: set -s draws=fresh, or leave it out of --methods")
    for name, what in (("ridge", "weight decay"), ("kernel-density", "bandwidth")):
        if name in names and not config.data.held_out:
            raise UserError(f"{name} chooses its {what} by held-out samples: set held-out above 0")
    if "mutual-auto" in names and config.data.held_out < 2:
        raise UserError("mutual-auto weighs peers by held-out samples: set held-out to 2 or more")
    alone = [name for name in names if name in ("predictions", "central-igd", "shared-igd")]
    if alone and config.mutual.rule == "auto":
        raise UserError(f"{alone[0]} knows no beta-rule = auto: set {alone[0]}.beta-rule, or leave it out of --methods")
    _trained_layers(config, names)
    if num_classes(config.data) < 2:
        raise UserError("a comparison needs at least two classes")
    _carried(config, names)


def _trained_layers(config: RunConfig, names: Sequence[str]) -> None:
    """Raises `UserError` for a method that changes what a network of random features has not."""
    lacking = {
        "coral": "coral shapes features, and random features are not trained: leave coral out",
        "cm": "cm reserves a part of each layer, and random features are not trained: leave cm out",
        "fedper": "fedper averages all but the first and last layers, and random-features has one: leave it out",
    }
    for name in names:
        if name in lacking and config.network.kind == "random-features":
            raise UserError(lacking[name])


WHOLE = ("mutual-auto", "fedper", "finetuned", "predictions", "central-igd", "ridge", "copy-head")
"""Methods that weigh, send or show networks whole, or as they are without noise."""


def _carried(config: RunConfig, names: Sequence[str]) -> None:
    """Refuse what some of the methods would not do with the networks that leave a client, so that arms compare."""
    whole = [name for name in names if name in WHOLE and config.publishing.mode != "network"]
    if whole:
        raise UserError(
            f"{whole[0]} does not do what publish = {config.publishing.mode} asks: leave it out of --methods, or "
            "publish = network"
        )
    averaged = [name for name in names if RECIPES[name].averages and config.publishing.proved]
    if averaged:
        raise UserError(
            f"{averaged[0]} averages networks that nothing hides, and publish = {config.publishing.mode} bounds what a "
            "network shows: leave one of them out"
        )
    exact = [name for name in names if RECIPES[name].averages or name in ("pfdm", "predictions")]
    if exact and config.federation.wire_dtype != "same":
        raise UserError(
            f"{exact[0]} rounds nothing that it sends, so that bytes would not compare: leave it or wire-dtype out"
        )


def _check_folder(made: Plan, base: RunConfig) -> None:
    """Make the folder, or see that what it holds belongs to this comparison."""
    path, folder = made.folder / SETTINGS, made.folder
    common = {key: value for key, value in base.settings().items() if key not in NOT_THE_METHOD}
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} holds something else than a comparison: choose another folder for --out")
        try:
            write_atomic(path, write_settings(common).encode())
        except Unwritable as error:
            raise UserError(f"{folder} cannot be made: {error.reason}") from None
        return
    _same(read_stored(path), common, folder)
    check_arms(made)


def check_arms(made: Plan) -> None:
    """Raises `UserError` where the folder of an arm holds a run with other settings."""
    for arm, config in made.arms.items():
        if holds_run(made.place(arm)):
            _same(read_stored(made.place(arm) / CONFIG), config.settings(), made.place(arm))


def _same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if before.get("extractor"):  # early comparisons have it as it was typed
        before = {**before, "extractor": str(Path(before["extractor"]).expanduser().absolute())}
    before = {**RunConfig().settings(), **before}  # earlier versions had fewer settings
    changed = [key for key in now if before.get(key) != now[key] and key not in NOT_THE_METHOD]
    if changed:
        key = changed[0]
        raise UserError(
            f"{folder} holds another comparison's runs ({key} = {before.get(key)}, not {now[key]}), and its arms "
            "would not be comparable: choose another folder for --out"
        )


def run_arms(
    made: Plan, cpus: int = 0, gpus: int = -1, on_arm: OnArm = lambda done, words: None, ray: str = ""
) -> None:
    """Run the arms that are not finished: first those of one process, several at once, then the federated ones.

    The latter run on the Ray cluster `ray`, where one is named, and the others always on this machine.

    Raises:
        ArmsFailed: after all arms have had their turn.
    """
    left = [arm for arm, config in made.arms.items() if not is_finished(made.place(arm), config)]
    cores = cpus or len(os.sched_getaffinity(0))
    here = [arm for arm in left if not RECIPES[arm[0]].federated]
    federated = [arm for arm in left if RECIPES[arm[0]].federated]
    pace = Pace(left, _at_once(made, here, cores))

    def tell(now: str = "") -> None:
        on_arm(len(made.arms) - len(pace.left), ", now ".join(filter(None, (pace.in_words(), now))))

    tell()
    failures: dict[Name, str] = {}
    for done in (_run_here(made, here, pace.at_once, cores), _run_federated(made, federated, (cpus, gpus, ray), tell)):
        for arm, seconds, failure in done:
            pace.finished(arm, seconds)
            if failure:
                failures[arm] = failure
            tell()
    if failures:
        (method, seed), reason = next(iter(failures.items()))
        raise ArmsFailed(
            f"{len(failures)} of {len(made.arms)} arms failed, and a table without them would mislead; "
            f"the same command tries them again. {method}, seed {seed}: {reason}"
        )


Done = Iterator[tuple[Name, float, str]]
"""Each arm that has had its turn, its seconds, and why it failed, empty where it did not."""


def _at_once(made: Plan, here: Sequence[Name], cores: int) -> int:
    """How many arms of one process run at a time: one GPU is best used by one of them."""
    on_gpu = bool(here) and pick_device(made.arms[here[0]].compute).type == "cuda"
    return 1 if on_gpu else max(1, min(cores, len(here)))


def _run_here(made: Plan, arms: Sequence[Name], at_once: int, cores: int) -> Done:
    if not arms:
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(at_once, context, begin_worker, (max(1, cores // at_once),))
    try:
        running: dict[Future[tuple[float, str]], Name] = {
            pool.submit(_timed, arm[0], made.arms[arm], made.place(arm)): arm for arm in arms
        }
        for future in as_completed(running):
            lost = future.exception()  # its process was killed
            yield (running[future], 0.0, str(lost)) if lost else (running[future], *future.result())
    except BaseException:  # an interruption does not wait for arms that are being trained
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _run_federated(made: Plan, arms: Sequence[Name], on: tuple[int, int, str], tell: Callable[[str], None]) -> Done:
    """`on`: cores, GPUs and Ray cluster, as `run_arm` has them."""
    cpus, gpus, ray = on
    with kept_ray():
        for arm in arms:
            method, seed = arm
            config = made.arms[arm]

            def on_round(round_: int, words: str = f"{method}, seed {seed}: round {{}} of {config.rounds}") -> None:
                tell(words.format(round_))

            on_round(0)
            yield arm, *_timed(method, config, made.place(arm), cpus, gpus, on_round, ray)


def _timed(method: str, config: RunConfig, folder: Path, *more: Any) -> tuple[float, str]:
    """Run an arm; its seconds, and why it failed."""
    began, failure = time.monotonic(), ""
    try:
        run_arm(method, config, folder, *more)
    except (RuntimeError, OSError, UserError) as error:
        failure = str(error)
    return time.monotonic() - began, failure


def begin_worker(threads: int) -> None:
    """A worker's share of the cores, and its end with the process that started it, however that ends."""
    torch.set_num_threads(threads)

    parent = multiprocessing.parent_process()
    if parent is None:  # it is no worker
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
