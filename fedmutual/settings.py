"""Settings as text: TOML files, and assignments after `-s`."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from fedmutual.errors import UserError


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["beta=0.1", "data=digits"]` as settings; values are TOML, a bare word is a string.

    So is a number that is not written as Python writes it, such as 2024_01, 1e3 or 0x10, which may be the name of a
    file; a setting that is a number takes the text as one.

    Raises:
        UserError: one that is not key=value.
    """
    settings = {}
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign or not key.strip():
            raise UserError(f"{assignment!r} is not of the form key=value, such as beta=0.1")
        settings[key.strip()] = _scalar(value.strip())
    return settings


def _scalar(text: str) -> bool | int | float | str:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(value, bool | str):
        return value
    return value if isinstance(value, int | float) and repr(value) == text else text


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file: a preset, or the `config.toml` of a run.

    Raises:
        UserError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


BEFORE = {"keep": "last", "averaging-weights": "samples", "optimizer-state": "fresh"}
"""What a run did that was written before these settings existed; their defaults are others."""


def read_stored(path: Path) -> dict[str, Any]:
    """The settings that a run or a comparison has written; what an earlier version did stands for those it lacks.

    Raises:
        UserError: as `read_settings`.
    """
    return {**BEFORE, **read_settings(path)}


def write_settings(settings: dict[str, Any]) -> str:
    """Flat settings as TOML text; the inverse of `read_settings`."""
    return tomli_w.dumps(settings)
