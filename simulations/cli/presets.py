"""The presets: where they lie and how they are read."""

from pathlib import Path
from typing import Any

from fedmutual.errors import UserError
from fedmutual.settings import read_settings

PRESETS = Path(__file__).parents[1] / "presets"


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset by name, or of a TOML file by path."""
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.toml")))
        raise UserError(f"no preset {name!r}: there are {known}, or give the path of a .toml file")
    return read_settings(path)


def _settings_of(folder: Path) -> dict[str, Any]:
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} holds no run to resume: name the folder that an earlier run wrote")
    return read_settings(folder / "config.toml")
