"""What a run has written is read as it was meant, also by an earlier version."""

from fedmutual.config import RunConfig
from fedmutual.settings import BEFORE, read_stored, write_settings


def test_settings_that_an_earlier_version_did_not_have_stand_for_what_it_did(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(write_settings({"beta": 2.0}))
    config = RunConfig.of(read_stored(path))
    assert (config.mutual.beta, config.optimiser.keep) == (2.0, "last")
    assert RunConfig().optimiser.keep == "best"


def test_settings_that_are_written_today_are_read_as_they_are(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(write_settings(RunConfig().settings()))
    assert RunConfig.of(read_stored(path)) == RunConfig()
    assert set(BEFORE) <= set(RunConfig().settings())
