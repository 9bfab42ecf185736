import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmutual.config import RunConfig
from fedmutual.diffusion import WEIGHTS
from fedmutual.errors import UserError
from fedmutual.settings import parse_assignments, read_settings, write_settings

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "simulations/presets").glob("*.toml"))


def test_flower_knows_exactly_our_settings_and_defaults():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert declared == {key: field.default for _, key, field in RunConfig.documented()}
    assert RunConfig.of(declared) == RunConfig()


def test_every_weight_has_a_name_in_the_settings():
    for name in WEIGHTS:
        assert RunConfig.of({"lambda-weight": name}).diffusion.lambda_weight == name


def test_every_setting_is_documented():
    assert all(field.description for _, _, field in RunConfig.documented())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid(path):
    settings = read_settings(path)
    assert RunConfig.of(settings).settings().items() >= settings.items()


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z-]{0,9}", fullmatch=True),
        st.one_of(
            st.booleans(),
            st.integers(-(2**62), 2**62),
            st.floats(allow_nan=False),
            st.text(st.characters(exclude_categories=["Cs", "Cc"])),
        ),
        max_size=5,
    )
)
def test_settings_survive_a_round_trip_through_toml(settings):
    assert tomllib.loads(write_settings(settings)) == settings


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["bta=1"], "unknown setting 'bta'"),
        (["beta"], "not of the form key=value"),
        (["=1"], "not of the form key=value"),
        (["beta=-1"], "setting beta = -1"),
        (["beta=nan"], "finite"),
        (["beta=inf"], "finite"),
        (["rounds=0"], "setting rounds = 0"),
        (["rounds=2.5"], "setting rounds = 2.5"),
        (["rounds=many"], "setting rounds = 'many'"),
        (["data=cats"], "'digits', 'gaussians'"),
        (["shape=1,²"], "whole numbers"),
        (["diffusion-steps=20"], "above 20"),
        (["process=ou", "stop=3"], "stop must be below horizon"),
        (["sampling-steps=101"], "must not exceed diffusion-steps"),
        (["imbalance=counts"], "go together"),
        (["participation=0"], "setting participation"),
        (["ema=1"], "setting ema"),
        (["multipliers=1,0"], "multipliers"),
        (["samples=1"], "measures nothing"),
        (["network=unet-small", "width=64"], "unet-small has width = 16"),
        (["autocast=bfloat16", "dtype=float64"], "dtype = float32"),
        (["peers-per-step=1", "draws=fixed"], "peers-per-step needs draws = fresh"),
    ],
)
def test_a_bad_setting_is_named_in_one_line(assignments, says):
    with pytest.raises(UserError) as caught:
        RunConfig.of(parse_assignments(assignments))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_later_layers_win():
    assert RunConfig.of({"beta": 1.0, "seed": 3}, {"beta": 2.0}).settings().items() >= {"beta": 2.0, "seed": 3}.items()


def test_a_bare_word_is_a_string_and_numbers_are_numbers():
    parsed = parse_assignments(["data=digits", "beta=0.5", "flips=true", 'out="a b"', "data-path=/x/y=z"])
    assert parsed == {"data": "digits", "beta": 0.5, "flips": True, "out": "a b", "data-path": "/x/y=z"}


def test_a_broken_file_of_settings_is_one_line(tmp_path):
    (tmp_path / "a.toml").write_text("beta = = 1")
    for path in (tmp_path / "a.toml", tmp_path / "none.toml"):
        with pytest.raises(UserError, match=path.name):
            read_settings(path)


def test_a_number_where_text_is_meant_is_text():
    settings = RunConfig.of(parse_assignments(["shape=64", "attention=8", "data-path=2024"]))
    assert (settings.data.dims, settings.network.attention, settings.data.path) == ((64,), "8", "2024")


def test_a_named_unet_sets_its_size_also_among_all_defaults():
    """`flwr run` passes every default along with what the user chose."""
    for settings in ({"network": "unet-small"}, {**RunConfig().settings(), "network": "unet-small"}):
        config = RunConfig.of(settings)
        assert (config.network.width, config.network.depth, config.network.multipliers, config.network.attention) == (
            16,
            1,
            "1,2,4",
            "7,8",
        )
        assert RunConfig.of(config.settings()) == config
