"""Every setting, its default and its check: the one place that knows the names of settings.

A setting is a Flower run-config key in kebab-case with a flat scalar value, the same in a preset, after `-s`
and in `flwr run -c`. Inside, settings come in frozen groups, so that a function takes the group that it needs. The
defaults are the `digits` federation, but for `local-steps`, which a server of separate machines finds by itself.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from fedmutual.errors import UserError


def _integers(text: str) -> str:
    if text and not all(part.strip().isascii() and part.strip().isdigit() for part in text.split(",")):
        raise ValueError("must be whole numbers with commas between them, such as 1,28,28")
    return text


def _whole(value: Any) -> Any:
    """A whole number that was written as 1e3 or 0x10: after `-s` that is text, since it might name a file."""
    if not isinstance(value, str):
        return value
    with suppress(ValueError):
        return int(value, 0)
    with suppress(ValueError):
        return float(value)
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[Whole, Field(ge=1)]
Count = Annotated[Whole, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Greater = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Integers = Annotated[str, AfterValidator(_integers)]
Weight = Literal["one", "t", "exp", "snr", "sigma"]
Autocast = Literal["none", "bfloat16"]
Parametrisation = Literal["noise", "score", "velocity"]

HELD_OUT_TO_CHOOSE = 8
"""Held-out samples from which a round is chosen by them (`keep`); with fewer the last is published."""

PROVED = ("noise-budget", "dp-sgd")
"""Values of `publish` of which an epsilon bounds what is sent."""

IN_PARTS = ("noise-split", "noise-budget")
"""Values of `publish` by which a class has two networks, of which one is never sent."""

UNETS = {
    "unet-small": {"width": 16, "depth": 1, "multipliers": "1,2,4", "attention": "7,8"},
    "unet-medium": {"width": 32, "depth": 2, "multipliers": "1,2,2,2", "attention": "16"},
    "unet-large": {"width": 128, "depth": 2, "multipliers": "1,2,2,2", "attention": "16"},
}
"""Sizes of the U-Net by name, for images of 28x28 and 32x32; the large one is CBDM's."""


class Group(BaseModel):
    """Settings that belong together; a field's alias is its flat key. `title` heads them in the documentation."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"),
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        coerce_numbers_to_str=True,
    )
    title: ClassVar[str]


class Compute(Group):
    """Where and in which numbers the local steps are computed."""

    title = "Computing"
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    dtype: Literal["float32", "float64"] = Field("float32", description="of parameters and arithmetic")
    autocast: Autocast = Field(
        "none", description="bfloat16: networks run in it, and peers are held in it; losses and updates in dtype"
    )


class Data(Group):
    """Which samples there are, and how each class's are cut."""

    title = "Data"
    source: Literal["digits", "gaussians", "mnist", "fashion-mnist", "cifar10", "cifar100", "npz", "folder"] = Field(
        "digits", alias="data", description="where samples come from"
    )
    path: str = Field("", alias="data-path", description="torchvision root, .npz file, or folder of images")
    download: bool = Field(False, description="let torchvision fetch a missing data set")
    mixture: str = Field("overlap", description="which family, for data = gaussians")
    classes: Count = Field(0, description="number of classes; 0: as the source has them")
    shape: Integers = Field("", description="sample shape such as 1,28,28; empty: read off the source")
    size: Count = Field(
        0,
        description="side in pixels, such as 32 or 64: images are cut to their middle square and resized; 0: none",
    )
    imbalance: Literal["auto", "none", "exponential", "step", "counts"] = Field(
        "auto",
        description="shape of the long tail over classes; auto: none for npz and folder, which keep their own, "
        "exponential for the others",
    )
    imbalance_ratio: Annotated[float, Field(gt=0, le=1)] = Field(0.05, description="smallest over largest count")
    head_count: Count = Field(0, description="training samples of the largest class; 0: all there are")
    counts: Integers = Field("", description="training samples of each class, for imbalance = counts")
    held_out: Count = Field(
        20,
        description="samples of each class kept from training, to choose settings by; of a val part: at most so many",
    )
    test: Count = Field(65, description="samples of each class kept for the report alone; 0: all of a test part")

    @property
    def dims(self) -> tuple[int, ...]:
        """The setting `shape` as numbers; empty when it is to be read off the source."""
        return tuple(int(part) for part in self.shape.split(",")) if self.shape else ()

    @model_validator(mode="before")
    @classmethod
    def _tail(cls, settings: Any) -> Any:
        """`auto` becomes what it stands for, so that a run folder says what was done."""
        if not isinstance(settings, dict) or settings.get("imbalance", "auto") != "auto":
            return settings
        source = settings.get("data") or settings.get("source", "digits")
        return {**settings, "imbalance": "none" if source in ("npz", "folder") else "exponential"}

    @model_validator(mode="after")
    def _consistent(self) -> "Data":
        if (self.imbalance == "counts") != bool(self.counts):
            raise ValueError("imbalance = counts and the setting counts go together")
        if self.size and self.dims and self.dims[1:] != (self.size, self.size):
            raise ValueError(f"shape = {self.shape} is not of size = {self.size}: leave one of them out")
        return self


class Diffusion(Group):
    """The forward process, and what a network learns of it."""

    title = "Diffusion"
    process: Literal["ddpm", "ou"] = Field("ddpm", description="linear-beta DDPM or Ornstein-Uhlenbeck")
    steps: Annotated[Whole, Field(ge=2)] = Field(100, alias="diffusion-steps", description="number of training times")
    horizon: Greater = Field(2.0, description="T of the Ornstein-Uhlenbeck process")
    stop: Greater = Field(1e-3, description="time at which its reversal stops")
    parametrisation: Parametrisation = Field(
        "noise", description="what the network puts out; velocity: alpha noise - sigma x_0"
    )
    lambda_weight: Weight = Field("one", description="weight over t of the denoising loss")

    @property
    def end(self) -> float:
        """T, by which t / T is meant: the number of DDPM's times, or the horizon."""
        return float(self.steps) if self.process == "ddpm" else self.horizon

    @model_validator(mode="after")
    def _consistent(self) -> "Diffusion":
        if self.process == "ddpm" and self.steps <= 20:
            raise ValueError("diffusion-steps must be above 20 for process = ddpm, whose last beta is 20 / steps")
        if self.process == "ou" and self.stop >= self.horizon:
            raise ValueError("stop must be below horizon")
        return self


class Network(Group):
    """The score network of one class."""

    title = "Network"
    kind: Literal["mlp", "random-features", "unet", "unet-small", "unet-medium", "unet-large"] = Field(
        "mlp",
        alias="network",
        description="the score network; unet: of the size that width, depth, multipliers and attention say",
    )
    width: Positive = Field(192, description="units of the MLP, features, or the U-Net's base channels")
    depth: Positive = Field(3, description="layers of the MLP, or the U-Net's residual blocks a level")
    multipliers: Integers = Field("1,2,2,2", description="the U-Net's channels a level, times width")
    attention: Integers = Field("16", description="resolutions at which the U-Net attends")
    dropout: Fraction = Field(0.0, description="of the U-Net")
    shared_init: bool = Field(False, description="all classes start from the same draw (random features too)")

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, settings: Any) -> Any:
        """A named U-Net sets what makes its size; another size beside the name is refused, a default is not."""
        size = UNETS.get(str(settings.get("network")), {}) if isinstance(settings, dict) else {}
        for key, value in size.items():
            given = str(settings.get(key, value))
            if given not in (str(value), str(cls.model_fields[key].default)):
                raise ValueError(
                    f"network = {settings['network']} has {key} = {value}: for another, use network = unet"
                )
        return {**settings, **size} if size else settings

    @model_validator(mode="after")
    def _consistent(self) -> "Network":
        if not self.multipliers or "0" in self.multipliers.replace(" ", "").split(","):
            raise ValueError("multipliers must be numbers from 1, one for each level of the U-Net, such as 1,2,2,2")
        return self


class Optimiser(Group):
    """The local steps of one client."""

    title = "Local learning"
    name: Literal["adam", "sgd"] = Field("adam", alias="optimizer", description="of the local steps")
    learning_rate: Greater = Field(1e-3, description="after warm-up")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="cosine: falls to 0 at the last round")
    warmup: Count = Field(0, description="steps over which the learning rate rises from 0")
    clip: NotNegative = Field(
        1.0, description="largest gradient norm; 0: no clipping; with publish = dp-sgd that of each sample, and above 0"
    )
    weight_decay: NotNegative = Field(
        0.0, description="decay of the parameters, in units of the learning rate (decoupled, as in AdamW)"
    )
    ema: Fraction = Field(0.999, description="decay of the averaged network that is published; 0: the iterate")
    keep: Literal["best", "last"] = Field(
        "best",
        description="the round that a class publishes; best: the last that its own held-out samples do not find worse "
        f"than an earlier one (with fewer than {HELD_OUT_TO_CHOOSE} of them: last)",
    )
    batch: Positive = Field(32, description="samples drawn for a step")
    draws: Literal["fresh", "fixed"] = Field(
        "fresh", description="fixed: every step uses all samples at all times with noise drawn once"
    )
    flips: bool = Field(False, description="mirror images at random")


class Mutual(Group):
    """The mutual-learning term, and whom a class learns from."""

    title = "Mutual learning"
    beta: NotNegative = Field(3.0, description="strength of the mutual term; 0: isolated training")
    rule: Literal["constant", "scarcity", "auto"] = Field(
        "scarcity",
        alias="beta-rule",
        description="scarcity: beta r / (r + n), n this class's training samples; auto: what this class's held-out "
        "samples say at each level of noise, at most beta",
    )
    scarcity: Greater = Field(10.0, description="r of the scarcity rule")
    caution: NotNegative = Field(
        1.0, description="standard errors of a gain that beta-rule = auto takes off before it counts"
    )
    omega_weight: Weight = Field("t", description="weight over t of the mutual term")
    peer_weights: Literal["uniform"] = Field("uniform", description="Q: how much each peer counts")
    peers_per_round: Count = Field(0, description="peers drawn by Q for each client; 0: all")
    peers_per_step: Count = Field(
        0, description="peers drawn by Q, among those of the round, for each local step; 0: all"
    )
    exchange: Literal["networks", "mean"] = Field(
        "networks",
        description="what a client receives: peers' networks, or one network with their mean parameters",
    )


class Publishing(Group):
    """What of a class's network leaves its client."""

    title = "What leaves a client"
    mode: Literal["network", "noise-split", "noise-budget", "dp-sgd"] = Field(
        "network",
        alias="publish",
        description="what peers and the server are sent; network: all; noise-split: a network of its own for high "
        "noise, beside one for low noise that never leaves; noise-budget: the same, and the sent one sees noised "
        "versions of the samples alone, drawn once, which makes it differentially private; dp-sgd: all, of a network "
        "whose every step is differentially private",
    )
    split: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="t / T from which on the sent network works, and is trained"
    )
    width: Count = Field(
        0, alias="published-width", description="width of the sent network; 0: that of the private one, `width`"
    )
    noised_versions: Positive = Field(
        1, description="versions of each sample that are noised for the sent network, for the whole run"
    )
    sample_norm: NotNegative = Field(
        0.0,
        description="norm that longer samples are scaled down to before they are noised; 0: the root of their "
        "dimension, which no sample in [-1, 1] exceeds",
    )
    noise_multiplier: Greater = Field(
        1.0, description="of dp-sgd: standard deviation of the noise on a sum of clipped gradients, over `clip`"
    )
    noise_multiplicity: Positive = Field(
        8, description="of dp-sgd: draws of time and noise in the loss of each sample, which cost no privacy"
    )
    epsilon: NotNegative = Field(
        0.0, description="the most that a client may spend of its class's data in its store, over all runs; 0: any"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="at which epsilon is stated")

    @property
    def proved(self) -> bool:
        """Whether an epsilon bounds what is sent."""
        return self.mode in PROVED

    @property
    def in_parts(self) -> bool:
        """Whether a class has a network that is sent, and one that is not."""
        return self.mode in IN_PARTS


class Rivals(Group):
    """Settings of single methods to compare with."""

    title = "Methods to compare with"
    tau: NotNegative = Field(1.0, description="strength of CBDM's regulariser, whose weight is tau t / T")
    proximal_mu: Greater = Field(0.01, description="mu of FedProx, whose clients add mu / 2 ||w - w_server||²")
    alignment: NotNegative = Field(1.0, description="strength of ccua's alignment, whose weight is alignment t / T")
    contrast: NotNegative = Field(0.5, description="lambda of CORAL's contrast between labels")
    manipulation: NotNegative = Field(
        1.0, description="strength of cm's loss, which holds capacity back for rare labels"
    )
    averaging_weights: Literal["samples", "classes"] = Field(
        "classes", description="how much a client counts in an average: as every other, or as its samples"
    )
    optimizer_state: Literal["fresh", "kept", "averaged"] = Field(
        "kept", description="Adam's moments after an average: none, the client's own, or averaged with the parameters"
    )
    server_learning_rate: NotNegative = Field(
        0.0, description="of fedavgm, fedadam and fedyogi; 0: Flower's own, which is 1, 0.1 and 0.01"
    )
    finetuning: Fraction = Field(0.5, description="share of the rounds in which clients of finetuned are on their own")


class Federation(Group):
    """Who takes part in a round, what the server accepts, and where each side keeps its files."""

    title = "Federation"
    participation: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of clients in a round")
    min_clients: Count = Field(0, description="clients to wait for before round 1; 0: one for each class")
    timeout: Greater = Field(3600.0, description="seconds to wait for a round's replies")
    norm_bound: Greater = Field(100.0, description="largest norm of a reply over the initial network's")
    max_reply_mb: NotNegative = Field(
        0.0, description="largest reply that a deployed server takes in, in MB; 0: its network and 4 MB"
    )
    wire_dtype: Literal["same", "bfloat16"] = Field(
        "same", description="of the parameters that are sent; bfloat16: half the bytes of float32, rounded; same: dtype"
    )
    checkpoint_every: Positive = Field(1, description="rounds between checkpoints")
    evaluate_every: Count = Field(
        1, description="rounds between reports of held-out losses; 0: never; keep = best measures in every one"
    )
    share_counts: bool = Field(False, description="let clients report their number of samples")
    ask_for_peers: bool = Field(
        False,
        description="let clients ask by number for the peers that helped them by beta-rule = auto: up to half of "
        "peers-per-round",
    )
    resume: bool = Field(False, description="continue the run in `out` from its last checkpoint")
    out: str = Field("", description="run folder at the server; empty: a new one under ~/.fedmutual/runs")
    store: str = Field("", description="folder for a client's own state; empty: ~/.fedmutual/clients")


class Measuring(Group):
    """Which samples are drawn, and how they are measured."""

    title = "Samples and measures"
    samples: Count = Field(500, description="generated samples of each class, for grids and metrics")
    sampler: Literal["ddpm", "exponential", "ddim", "dpm-solver++", "sde-dpm-solver++"] = Field(
        "ddpm", description="of samples"
    )
    sampling_steps: Count = Field(0, description="steps of the sampler; 0: one for each training time")
    clip_samples: bool = Field(True, description="keep the sampler's guess of x_0 inside [-1, 1]")
    extractor: str = Field(
        "",
        description="file for measures in features: of `fedmutual extractor` ({seed} stands for the seed), or the "
        "literature's Inception weights (.pth); train: one is trained beforehand, into the run's folder; empty: none",
    )
    extractor_steps: Positive = Field(
        1500,
        description="gradient steps of an extractor that is trained; 30 passes over its images where those are fewer",
    )
    audit_candidates: Positive = Field(
        500, description="members, and as many others, of a class that an audit asks about at most, 89 calls each"
    )
    tstr_seeds: Count = Field(
        0, description="classifiers that learn from the samples, for tstr-f1 and tstr-recall on real ones; 0: none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Measuring":
        if self.samples == 1:
            raise ValueError("samples = 1 measures nothing: draw 2 or more of each class, or 0 for none")
        return self


class RunConfig(BaseModel):
    """The settings of one run: three of its own, and groups of the others.

    Build one by `of` from flat settings; `settings` is the way back.
    """

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"), frozen=True, extra="forbid", populate_by_name=True
    )
    title: ClassVar[str] = "The run"

    seed: Count = Field(0, description="everything random follows from it")
    rounds: Positive = Field(20, description="exchanges of networks")
    local_steps: Count = Field(
        0,
        description="gradient steps of each client in a round; 0: as many as make its start-up 5 % of it (deployed)",
    )
    compute: Compute = Compute()
    data: Data = Data()
    diffusion: Diffusion = Diffusion()
    network: Network = Network()
    optimiser: Optimiser = Optimiser()
    mutual: Mutual = Mutual()
    publishing: Publishing = Publishing()
    rivals: Rivals = Rivals()
    federation: Federation = Federation()
    measuring: Measuring = Measuring()

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.measuring.sampling_steps > self.diffusion.steps:
            raise ValueError("sampling-steps must not exceed diffusion-steps")
        if self.compute.autocast != "none" and self.compute.dtype != "float32":
            raise ValueError("autocast = bfloat16 goes with dtype = float32")
        if self.mutual.peers_per_step and self.optimiser.draws == "fixed":
            raise ValueError("peers-per-step needs draws = fresh: fixed draws meet each peer once a round as it is")
        if self.publishing.in_parts and self.mutual.rule == "auto":
            raise ValueError(
                f"beta-rule = auto weighs whole networks, and {self.publishing.mode} sends a part: use scarcity or "
                "constant"
            )
        if self.publishing.proved and (beside := _beyond_the_proof(self)):
            raise ValueError(f"with publish = {self.publishing.mode} all that is sent is proved: set {beside}")
        if self.publishing.in_parts and self.diffusion.process == "ddpm":
            last = (self.diffusion.steps - 1) / self.diffusion.steps
            if self.publishing.split > last:
                raise ValueError(
                    f"split = {self.publishing.split:g} is above the last training time, {last:g}: lower it"
                )
        return self

    @classmethod
    def of(cls, *layers: dict[str, Any]) -> "RunConfig":
        """The settings of the flat `layers`; where several give a key, the last of them counts.

        Raises:
            UserError: an unknown key, or a value that its check refuses; names the key.
        """
        nested: dict[str, Any] = {}
        for key, value in {key: value for layer in layers for key, value in layer.items()}.items():
            if key not in _PLACES:
                raise UserError(f"unknown setting {key!r}: `fedmutual settings` lists them all")
            group = _PLACES[key]
            if group is None:
                nested[key] = value
            else:
                nested.setdefault(group, {})[key] = value
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            raise UserError(_one_line(error)) from None

    def settings(self) -> dict[str, Any]:
        """All settings by their flat keys, as a preset or Flower's run config holds them."""
        flat: dict[str, Any] = {}
        for key, value in self.model_dump(by_alias=True).items():
            flat |= value if isinstance(value, dict) else {key: value}
        return flat

    def but(self, **changes: Any) -> "RunConfig":
        """These settings with some changed, by their keys with `_` for `-`, checked again."""
        return self.of(self.settings(), {key.replace("_", "-"): value for key, value in changes.items()})

    def with_whole_paths(self) -> "RunConfig":
        """The same settings with paths that hold from any folder."""
        settings = self.settings()
        paths = {key: settings[key] for key in ("data-path", "extractor", "store") if settings[key]}
        return self.of(settings, {key: str(Path(os.path.expanduser(path)).absolute()) for key, path in paths.items()})

    @classmethod
    def documented(cls) -> Iterator[tuple[str, str, FieldInfo]]:
        """(title of the group, flat key, field) of every setting, in the order of `settings`."""
        for group, key, field in _fields():
            yield (cls if group is None else _GROUPS[group]).title, key, field


_GROUPS: dict[str, type[Group]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
}


def _fields() -> Iterator[tuple[str | None, str, FieldInfo]]:
    """(group, or None for a setting of the run itself; flat key; field)."""
    for name, field in RunConfig.model_fields.items():
        if name not in _GROUPS:
            yield None, str(field.alias), field
        else:
            yield from ((name, str(inner.alias), inner) for inner in _GROUPS[name].model_fields.values())


def _beyond_the_proof(config: RunConfig) -> str:
    """The settings that would send what no epsilon bounds, as they would have to be; empty where there are none."""
    needed = {
        "keep = last": config.optimiser.keep == "last" or config.publishing.mode == "noise-budget",
        "evaluate-every = 0": not config.federation.evaluate_every,
        "share-counts = false": not config.federation.share_counts,
        "draws = fresh": config.optimiser.draws == "fresh",
        "beta-rule = scarcity": config.mutual.rule != "auto",
    }
    if config.publishing.mode == "dp-sgd":
        needed["clip above 0"] = config.optimiser.clip > 0
        needed["local-steps above 0, as trials to find it would spend too"] = config.local_steps > 0
    return " and ".join(setting for setting, met in needed.items() if not met)


_PLACES = {key: group for group, key, _ in _fields()}
"""{flat key: its group}."""


_UNET_KINDS = ("unet", *UNETS)

_EFFECTS: dict[str, tuple[str, Callable[[RunConfig], bool]]] = {
    "data-path": ("data", lambda config: config.data.source not in ("digits", "gaussians")),
    "size": ("data", lambda config: config.data.source in ("npz", "folder")),
    "download": ("data", lambda config: config.data.source not in ("digits", "gaussians", "npz", "folder")),
    "mixture": ("data", lambda config: config.data.source == "gaussians"),
    "imbalance-ratio": ("imbalance", lambda config: config.data.imbalance in ("exponential", "step")),
    "head-count": ("imbalance", lambda config: config.data.imbalance != "counts"),
    "evaluate-every": ("held-out", lambda config: config.data.held_out > 0 or not config.federation.evaluate_every),
    "keep": (
        "held-out",
        lambda config: config.data.held_out >= HELD_OUT_TO_CHOOSE or config.optimiser.keep == "last",
    ),
    "horizon": ("process", lambda config: config.diffusion.process == "ou"),
    "stop": ("process", lambda config: config.diffusion.process == "ou"),
    "depth": ("network", lambda config: config.network.kind != "random-features"),
    "multipliers": ("network", lambda config: config.network.kind in _UNET_KINDS),
    "attention": ("network", lambda config: config.network.kind in _UNET_KINDS),
    "dropout": ("network", lambda config: config.network.kind in _UNET_KINDS),
    "batch": ("draws", lambda config: config.optimiser.draws == "fresh"),
    "split": ("publish", lambda config: config.publishing.in_parts),
    "published-width": ("publish", lambda config: config.publishing.in_parts),
    "noised-versions": ("publish", lambda config: config.publishing.mode == "noise-budget"),
    "sample-norm": ("publish", lambda config: config.publishing.mode == "noise-budget"),
    "noise-multiplier": ("publish", lambda config: config.publishing.mode == "dp-sgd"),
    "noise-multiplicity": ("publish", lambda config: config.publishing.mode == "dp-sgd"),
    "epsilon": ("publish", lambda config: config.publishing.proved),
    "delta": ("publish", lambda config: config.publishing.proved),
    "scarcity": ("beta-rule", lambda config: config.mutual.rule == "scarcity"),
    "extractor-steps": ("extractor", lambda config: bool(config.measuring.extractor)),
    "tstr-seeds": ("samples", lambda config: config.measuring.samples > 0 or not config.measuring.tstr_seeds),
    "caution": ("beta-rule", lambda config: config.mutual.rule == "auto"),
    "ask-for-peers": (
        "beta-rule",
        lambda config: config.mutual.rule == "auto" or not config.federation.ask_for_peers,
    ),
    "omega-weight": ("beta-rule", lambda config: config.mutual.rule != "auto"),
    "beta-rule": ("held-out", lambda config: config.mutual.rule != "auto" or config.data.held_out > 1),
    "optimizer-state": ("optimizer", lambda config: config.optimiser.name == "adam"),
}
"""{setting: (another, whether the first has an effect beside it)}."""

_METHODS = {
    "tau": ("cbdm",),
    "alignment": ("ccua",),
    "contrast": ("coral",),
    "manipulation": ("cm",),
    "proximal-mu": ("fedprox",),
    "averaging-weights": ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedper", "finetuned"),
    "optimizer-state": ("fedavg", "fedprox", "fedper", "finetuned"),
    "server-learning-rate": ("fedavgm", "fedadam", "fedyogi"),
    "finetuning": ("finetuned",),
}
"""{setting: the only methods of a comparison that read it}."""

_AVERAGES = {"fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "scaffold", "fedper", "finetuned"}

_UNTRAINED = {"kernel-density", "memory"}
_TRAINING = {str(field.alias) for group in (Network, Optimiser) for field in group.model_fields.values()}

_NOT_READ_BY = {
    **dict.fromkeys((*_TRAINING, "rounds", "local-steps", "evaluate-every"), _UNTRAINED),
    "keep": {*_AVERAGES, *_UNTRAINED},
    "weight-decay": {"ridge", *_UNTRAINED},
}
"""{setting: the methods of a comparison that do not read it}."""

_EXCHANGING = {"mutual", "mutual-auto", "mutual-scarcity", "mutual-constant"}
_GAMES = {*_EXCHANGING, "predictions", "central-igd", "shared-igd"}
_SENDING = {*_EXCHANGING, "isolated"}

_READ_BY = {
    **dict.fromkeys(("beta", "beta-rule", "scarcity", "omega-weight"), _GAMES),
    **dict.fromkeys(("caution", "peers-per-round", "ask-for-peers", "exchange"), _EXCHANGING),
    **dict.fromkeys(("publish", "wire-dtype", "norm-bound", "share-counts"), _SENDING),
    **dict.fromkeys(("noised-versions", "sample-norm", "noise-multiplier", "noise-multiplicity"), _SENDING),
    **dict.fromkeys(("epsilon", "delta"), _SENDING),
    "split": {*_SENDING, "pfdm"},
    "published-width": {*_SENDING, "pfdm"},
    "peers-per-step": {*_EXCHANGING, "central-igd"},
    "shared-init": {*_SENDING, "pfdm", "predictions", "central-igd", "ridge", "copy-head"},
}
"""{setting: the methods of a comparison that read it}, unless their own settings have another value of it."""


def refuse_without_effect(
    config: RunConfig, given: Mapping[str, Any], methods: Mapping[str, "RunConfig"] = MappingProxyType({})
) -> None:
    """Refuse settings that would change nothing, where a run is started; an earlier run is read and resumed as it is.

    given: the settings that a person gave beyond a preset's; where those are not known, all whose value is not the
    default. methods: those of a comparison, and what their settings are; an effect on one that reads it is enough.

    Raises:
        UserError: names the setting, what takes its effect away, and what to do.
    """
    if config.federation.resume:
        return
    for key, value in given.items():
        _refuse_unread(key, value, config, methods)
        readers = [arm for name, arm in methods.items() if _reads(name, key, arm, config)] or [config]
        if key in _EFFECTS and not any(_EFFECTS[key][1](each) for each in readers):
            other = _EFFECTS[key][0]
            raise UserError(
                f"{key} = {value} has no effect with {other} = {readers[0].settings()[other]}: "
                f"change {other}, or leave {key} out"
            )
    if config.federation.ask_for_peers and (config.mutual.peers_per_round < 2 or config.mutual.exchange == "mean"):
        raise UserError(
            "ask-for-peers = true leaves half of the peers that are drawn to the clients' choice: set peers-per-round "
            "to 2 or more, with exchange = networks, or leave ask-for-peers out"
        )
    if config.mutual.exchange == "mean" and not (
        config.network.kind == "random-features" and config.network.shared_init
    ):
        raise UserError(
            "exchange = mean averages parameters, which mean the same in every class only with network = "
            "random-features and shared-init = true: set both, or exchange = networks"
        )


def _refuse_unread(key: str, value: Any, config: RunConfig, methods: Mapping[str, RunConfig]) -> None:
    """Raises `UserError` for a setting that none of a comparison's methods goes by, or that is no simulation's."""
    if key in _METHODS and not set(_METHODS[key]) & methods.keys():
        readers = f"method {_METHODS[key][0]}" if len(_METHODS[key]) == 1 else f"methods {', '.join(_METHODS[key])}"
        raise UserError(f"{key} = {value} has an effect on the {readers} alone: leave {key} out")
    if methods and not any(_reads(name, key, arm, config) for name, arm in methods.items()):
        raise UserError(f"{key} = {value} has no effect on {', '.join(methods)}: leave {key} out")


def _reads(name: str, key: str, arm: RunConfig, config: RunConfig) -> bool:
    """Whether a method of a comparison with the settings `config` goes by their `key`."""
    if name in _NOT_READ_BY.get(key, set()) or name not in _READ_BY.get(key, {name}):
        return False
    return key not in _READ_BY or arm.settings()[key] == config.settings()[key]


def beyond_defaults(config: RunConfig) -> dict[str, Any]:
    """The settings whose value is not the default's, for `refuse_without_effect`."""
    defaults = RunConfig().settings()
    return {key: value for key, value in config.settings().items() if value != defaults[key]}


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    place = first["loc"]  # (group, key), (key,) of the run's own, or that of a check of several settings
    one = len(place) == 2 or (len(place) == 1 and place[0] not in _GROUPS)
    return f"setting {place[-1]} = {first['input']!r}: {reason}" if one else reason
