"""`bench minutes`: what it refuses, and what it says of a command that fails; the command is the real one."""

import pytest

from simulations.upkeep.minutes import asked_and_taken


@pytest.mark.parametrize(
    "arguments", [["minutes"], ["--minutes", "5"], ["minutes", "step", "--minutes", "5"], ["minutes", "-s", "batch=4"]]
)
def test_the_part_minutes_is_timed_alone(command_line, arguments):
    code, printed, error = command_line("bench", *arguments)
    assert (code, printed, len(error.strip().splitlines())) == (2, "", 1)
    assert "the part minutes is timed alone" in error


def test_a_command_that_fails_is_told():
    with pytest.raises(RuntimeError, match=r"simulate smoke --minutes 1 failed: error: --minutes 1 is too short"):
        asked_and_taken("smoke", [1])
