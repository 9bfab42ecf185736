"""Fixtures of all tests, and what the tests of faults tell at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

from fedmutual.config import RunConfig
from simulations.cli.app import main
from simulations.engine.cluster import kept_ray
from tests.support.federation import SMALL

settings.register_profile("many", max_examples=5000)  # pytest --hypothesis-profile=many


@pytest.fixture(scope="session", autouse=True)
def one_ray() -> Iterator[None]:
    """Simulations in this process share one Ray, which the first of them starts."""
    with kept_ray():
        yield


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., RunConfig]:
    """Settings of a small federation in a fresh folder; keyword arguments change them."""

    def make(**changes: Any) -> RunConfig:
        places = {"out": str(tmp_path / "run"), "store": str(tmp_path / "clients")}
        return RunConfig.of(SMALL, places, {key.replace("_", "-"): value for key, value in changes.items()})

    return make


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """(exit code, stdout, stderr) of the real command, run in this process, which has everything imported."""

    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fedmutual", *map(str, arguments)])
        monkeypatch.setattr("os._exit", leave)
        monkeypatch.setenv("PYTHONSAFEPATH", "")  # which the command sets, is as before after the test
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code or 0
        return (code, *capsys.readouterr())

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the tests of faults have seen, and how many kills fell at which moment."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            terminalreporter.write_line(f"{name}: {value}")
