"""How large the proof is: the paper's network on a card, and the same path at toy size on a CPU."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmutual.config import RunConfig
from fedmutual.settings import read_settings

PRESETS = Path(__file__).parents[2] / "presets"


@dataclass(frozen=True)
class Size:
    """Sizes of all parts. `settings` come on top of a preset's; `plain_settings` where no U-Net need be there."""

    settings: dict[str, Any] = field(default_factory=dict)
    plain_settings: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (5, 48, 128)
    turns: int = 4
    turn_seconds: float = 0.5
    compiler: str = "inductor"
    round_seconds: float = 60.0
    at_once: tuple[int, ...] = (1, 5, 10)
    steps_a_round: int = 50
    training_seconds: float = 200.0
    samples: int = 256
    made_up: int = 5000

    def preset(self, name: str, **changes: Any) -> RunConfig:
        """The settings of a preset at this size."""
        changes = {key.replace("_", "-"): value for key, value in changes.items()}
        return RunConfig.of(read_settings(PRESETS / f"{name}.toml"), self.settings, changes)


CARD = Size()

_TOY_DATA = {"classes": 3, "shape": "3,8,8", "diffusion-steps": 40, "sampling-steps": 2, "local-steps": 1}

TOY = Size(
    settings={**_TOY_DATA, "network": "unet", "width": 8, "depth": 1, "multipliers": "1", "attention": ""},
    plain_settings={"network": "mlp", "width": 8, "depth": 2, "dropout": 0.0},
    batches=(2,),
    turns=1,
    turn_seconds=0.01,
    compiler="eager",
    round_seconds=0.3,
    at_once=(1,),
    steps_a_round=3,
    training_seconds=0.5,
    samples=8,
    made_up=40,
)
