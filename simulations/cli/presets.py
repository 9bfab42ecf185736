"""The presets: where they lie and how they are read; and the settings that a command starts from."""

import os
from pathlib import Path
from typing import Any

from fedmutual.errors import UserError
from fedmutual.settings import read_settings, read_stored

PRESETS = Path(__file__).parents[1] / "presets"


def names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset by name, or of a TOML file by path.

    Raises:
        UserError: there is no such preset, or the file cannot be read.
    """
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not os.path.exists(path):
        known = ", ".join(names())
        raise UserError(
            f"no preset {name!r}: there are {known}, or give the path of a .toml file, a folder of images or a .npz"
        )
    return read_settings(path)


def record_preset(folder: Path, name: str) -> None:
    """Name the preset in the facts of the run in `folder`; the report then names it as its subject."""
    from fedmutual.run_folder import change_facts

    change_facts(folder, preset=Path(name).stem)


def settings_of_run(folder: Path) -> dict[str, Any]:
    """The settings of an earlier run, to go on with it.

    Raises:
        UserError: there is no run in `folder`.
    """
    from fedmutual.run_folder import CONFIG, holds_run

    if not holds_run(folder):
        raise UserError(f"{folder} holds no run to resume: name the folder that an earlier run wrote")
    return read_stored(folder / CONFIG)
