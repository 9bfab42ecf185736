"""The command line answers at once: what takes seconds to import is imported by the commands that need it."""

import subprocess
import sys

HEAVY = ("torch", "flwr", "ray", "scipy", "matplotlib", "sklearn", "diffusers")


def test_the_command_line_imports_nothing_heavy_before_it_knows_the_command() -> None:
    program = f"import sys, simulations.cli.app; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
