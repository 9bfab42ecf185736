"""The command line answers at once: what takes seconds to import is imported by the commands that need it."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

HEAVY = ("torch", "flwr", "ray", "scipy", "matplotlib", "sklearn", "diffusers")


def test_the_command_line_imports_nothing_heavy_before_it_knows_the_command() -> None:
    program = f"import sys, simulations.cli.app; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user stands in a folder of modules that are called as others are, and that nobody must import."""
    for name in ("random", "signal", "typing", "torch", "numpy", "client", "simulations"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported from where the user stands')\n")
    monkeypatch.chdir(tmp_path)


def test_the_command_as_a_module_imports_nothing_from_where_the_user_stands(shadows) -> None:
    done = subprocess.run([sys.executable, "-m", "fedmutual", "presets"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_processes_that_a_command_starts_import_nothing_from_where_the_user_stands(shadows, command_line) -> None:
    assert command_line("presets")[0] == 0
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(os.getcwd).result(60) == os.getcwd()
