"""The README's promises that a test can hold."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_links_and_named_files_exist():
    places = re.findall(r"\]\(([^)#]+)\)", TEXT) + re.findall(r"`((?:tests|simulations)/[\w./-]+)`", TEXT)
    local = [place for place in places if not place.startswith("http")]
    assert local
    assert [place for place in local if not (ROOT / place).exists()] == []


def test_commands_and_targets_exist():
    cli = (ROOT / "simulations/cli.py").read_text()
    commands = {name.replace("_", "-") for name in re.findall(r"@app\.command\(\)\ndef (\w+)", cli)}
    named = set(re.findall(r"^fedmutual ([a-z-]+)", TEXT, re.MULTILINE))
    assert named
    assert named <= commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", TEXT, re.MULTILINE)) <= targets


def test_presets_are_all_told():
    for preset in (ROOT / "simulations/presets").glob("*.toml"):
        assert preset.stem in TEXT
