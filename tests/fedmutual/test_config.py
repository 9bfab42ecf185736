import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmutual.config import RunConfig, beyond_defaults, refuse_without_effect
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
            st.text(st.characters(exclude_categories=["Cs"])),
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
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "wide.toml").write_text("beta = 1", encoding="utf-16")
    for path in (tmp_path / name for name in ("a.toml", "none.toml", "folder.toml", "wide.toml")):
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


@pytest.mark.parametrize("text", ["2024_01", "1e3", "0x10", "0b1", "1.50", "+5", "007", "1_000", "nan", "inf", "2024"])
def test_a_path_that_looks_like_a_number_stays_as_it_is_written(text):
    assert RunConfig.of(parse_assignments([f"data-path={text}"])).data.path == text


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2E1", 20.0), (".5", 0.5), ("0.10", 0.1), ("3", 3.0)])
def test_a_number_is_a_number_however_it_is_written(text, value):
    assert RunConfig.of(parse_assignments([f"learning-rate={text}"])).optimiser.learning_rate == value


@pytest.mark.parametrize(("text", "value"), [("1e3", 1000), ("0x10", 16), ("1_000", 1000), ("007", 7), ("20.0", 20)])
def test_a_whole_number_is_one_however_it_is_written(text, value):
    assert RunConfig.of(parse_assignments([f"local-steps={text}"])).local_steps == value
    with pytest.raises(UserError, match=r"setting local-steps = 1\.5: input should be a valid integer"):
        RunConfig.of(parse_assignments(["local-steps=1.5"]))


@pytest.mark.parametrize(
    ("settings", "tail"),
    [
        ({}, "exponential"),
        ({"data": "mnist"}, "exponential"),
        ({"data": "npz"}, "none"),
        ({"data": "folder"}, "none"),
        ({"data": "folder", "imbalance": "auto"}, "none"),
        ({"data": "folder", "imbalance": "step"}, "step"),
    ],
)
def test_data_of_ones_own_keep_their_tail_by_default(settings, tail):
    assert RunConfig.of(settings).data.imbalance == tail
    assert RunConfig.of(RunConfig.of(settings).settings()).data.imbalance == tail


@pytest.mark.parametrize(
    ("given", "preset", "says"),
    [
        ({"data-path": "x"}, {}, "data-path = x has no effect with data = digits"),
        ({"data-path": "x"}, {"data": "gaussians"}, "with data = gaussians"),
        ({"download": True}, {"data": "npz"}, "download = True has no effect with data = npz"),
        ({"mixture": "overlap"}, {"data": "npz"}, "mixture = overlap has no effect with data = npz"),
        ({"imbalance-ratio": 0.1}, {"data": "folder"}, "imbalance-ratio = 0.1 has no effect with imbalance = none"),
        ({"imbalance-ratio": 0.1, "imbalance": "none"}, {}, "with imbalance = none"),
        ({"head-count": 5, "imbalance": "counts", "counts": "5,5"}, {}, "head-count = 5 has no effect"),
        ({"horizon": 3.0}, {}, "horizon = 3.0 has no effect with process = ddpm"),
        ({"dropout": 0.1}, {}, "dropout = 0.1 has no effect with network = mlp"),
        ({"depth": 4}, {"network": "random-features"}, "depth = 4 has no effect"),
        ({"scarcity": 5.0}, {"beta-rule": "constant"}, "scarcity = 5.0 has no effect"),
        ({"caution": 2.0}, {}, "caution = 2.0 has no effect with beta-rule = scarcity"),
        ({"omega-weight": "one"}, {"beta-rule": "auto"}, "omega-weight = one has no effect with beta-rule = auto"),
        ({"beta-rule": "auto"}, {"held-out": 1}, "beta-rule = auto has no effect with held-out = 1"),
        (
            {"ask-for-peers": True, "peers-per-round": 4},
            {},
            "ask-for-peers = True has no effect with beta-rule = scarcity",
        ),
        ({"ask-for-peers": True}, {"beta-rule": "auto"}, "set peers-per-round to 2 or more"),
        ({"ask-for-peers": True, "peers-per-round": 1}, {"beta-rule": "auto"}, "set peers-per-round to 2 or more"),
        ({"batch": 5}, {"draws": "fixed"}, "batch = 5 has no effect"),
        ({"evaluate-every": 2}, {"held-out": 0}, "evaluate-every = 2 has no effect with held-out = 0"),
        ({"keep": "best", "held-out": 7}, {}, "keep = best has no effect with held-out = 7"),
        ({"tau": 2.0}, {}, "tau = 2.0 has an effect on the method cbdm alone"),
        ({"proximal-mu": 2.0}, {}, "fedprox alone"),
        ({"exchange": "mean"}, {}, "exchange = mean averages parameters"),
        ({"exchange": "mean", "shared-init": True}, {}, "exchange = mean averages parameters"),
        ({"exchange": "mean", "network": "random-features"}, {}, "exchange = mean averages parameters"),
    ],
)
def test_a_setting_without_effect_is_refused(given, preset, says):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        refuse_without_effect(RunConfig.of(preset, given), given)
    assert says in str(caught.value)


def test_a_setting_that_has_an_effect_on_one_method_of_a_comparison_is_kept():
    config = RunConfig.of({"beta-rule": "constant"})
    methods = {"cbdm": config, "mutual-scarcity": config.but(beta_rule="scarcity")}
    refuse_without_effect(config, {"tau": 2.0, "scarcity": 3.0, "mutual.beta": 1.0}, methods)


def test_a_setting_that_no_method_of_a_comparison_reads_is_refused():
    config, given = RunConfig.of({"keep": "best"}), {"keep": "best"}
    with pytest.raises(UserError, match="keep = best has no effect on fedavg, memory: leave keep out"):
        refuse_without_effect(config, given, {"fedavg": config, "memory": config})
    refuse_without_effect(config, given, {"fedavg": config, "pooled": config})


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_no_preset_has_a_setting_without_effect(path):
    config = RunConfig.of(read_settings(path))
    refuse_without_effect(config, beyond_defaults(config))
    refuse_without_effect(config, read_settings(path))


def test_a_run_that_an_earlier_version_began_goes_on_with_the_settings_that_it_accepted():
    config = RunConfig.of({"exchange": "mean", "beta-rule": "constant", "scarcity": 5.0})
    with pytest.raises(UserError):
        refuse_without_effect(config, beyond_defaults(config))
    refuse_without_effect(config.but(resume=True), beyond_defaults(config))


def test_features_drawn_once_for_all_may_be_averaged():
    given = {"exchange": "mean", "network": "random-features", "shared-init": True}
    refuse_without_effect(RunConfig.of(given), given)
