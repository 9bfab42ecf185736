"""What the proof needs beside PyTorch, NumPy, SciPy and Pillow, and how to carry it to a machine without an index.

This file imports nothing but Python's own at its top, so that it can say what is missing.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

IMPORTED = {"diffusers": "diffusers", "pydantic": "pydantic", "safetensors": "safetensors", "tomli_w": "tomli-w"}
"""{module that the project's own code imports: the package that has it}."""

THERE = {"torch", "numpy", "scipy", "pillow"}
"""Packages that the machine must have; what they need is theirs."""

DOWNLOAD = (
    "python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 "
    "--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest wheels"
)
"""How to fetch wheels for another machine, whose version of Python may have to be put in."""

INSTALL = "python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=site"


def missing() -> list[str]:
    """The packages that this machine lacks."""
    return [package for module, package in IMPORTED.items() if find_spec(module) is None]


def wheels() -> list[str]:
    """`name==version` of all that is to be carried, as it is installed here.

    Raises:
        PackageNotFoundError: the project is not installed here.
    """
    from packaging.requirements import Requirement  # which the project's own dependencies bring

    found: dict[str, str] = {}
    todo = list(IMPORTED.values())
    while todo:
        name = _canonical(todo.pop())
        if name in found or name in THERE:
            continue
        package = distribution(name)
        found[name] = package.version
        needed = [Requirement(text) for text in package.requires or ()]
        todo += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{name}=={found[name]}" for name in sorted(found)]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def how_to_carry() -> str:
    """The two commands that bring the packages to a machine without an index."""
    try:
        return f"here:  {DOWNLOAD} {' '.join(wheels())}\nthere: {INSTALL}"
    except PackageNotFoundError as error:
        return f"{error.name} is not installed here: ask for --wheels where the project is installed"
