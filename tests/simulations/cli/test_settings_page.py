"""The page of settings in the documentation is what the code prints."""

from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_page_of_settings_is_what_the_command_prints(command_line):
    code, printed, _ = command_line("settings", "--markdown")
    assert code == 0
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == printed, "run fedmutual settings --markdown"
