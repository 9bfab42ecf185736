"""The package as a user installs it: built as a wheel, used outside the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_wheel_holds_presets_and_templates_and_runs_outside_the_checkout(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building leaves files behind
    for folder in ("fedmutual", "client", "server", "simulations"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    place = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(place)
    command = "from simulations.cli.app import main; import simulations; print(simulations.__file__); main()"
    elsewhere = {"cwd": tmp_path, "env": {"PYTHONPATH": str(place), "PATH": "/usr/bin", "COLUMNS": "100"}}
    shown = subprocess.run(
        [sys.executable, "-c", command, "presets"], check=True, capture_output=True, text=True, **elsewhere
    )
    assert shown.stdout.startswith(str(place))
    for preset in (ROOT / "simulations/presets").glob("*.toml"):
        assert preset.stem in shown.stdout
    for template in ("report/report.html", "game/report.html"):
        assert (place / "simulations" / template).exists()
