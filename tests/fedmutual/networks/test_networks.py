import pytest
import torch

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.networks import build

SMALL_UNET = {"network": "unet", "width": 8, "depth": 1, "multipliers": "1,2", "attention": "7"}


def config(**settings):
    return RunConfig.of({key.replace("_", "-"): value for key, value in settings.items()})


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"network": "mlp"}, (1, 8, 8)),
        ({"network": "mlp", "depth": 1}, (2,)),
        ({"network": "random-features", "width": 16}, (1,)),
        ({"network": "random-features", "width": 16}, (3, 4, 4)),
        (SMALL_UNET, (1, 28, 28)),
        ({**SMALL_UNET, "multipliers": "1,2,2", "attention": ""}, (3, 30, 26)),
        ({**SMALL_UNET, "process": "ou"}, (3, 32, 32)),
    ],
)
def test_output_has_the_shape_and_dtype_of_the_input_and_every_parameter_learns(settings, shape):
    for dtype in (torch.float32, torch.float64) if settings["network"] != "unet" else (torch.float32,):
        network = build(config(**settings, dtype=str(dtype).removeprefix("torch.")), shape, 0)
        x, t = torch.randn(3, *shape, dtype=dtype), torch.tensor([0.1, 0.5, 1.9], dtype=dtype)
        output = network(x, t)
        assert (output.shape, output.dtype) == (x.shape, dtype)
        output.square().sum().backward() if settings["network"] != "random-features" else output.sum().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("settings", [{"network": "mlp"}, SMALL_UNET])
def test_output_depends_on_time(settings):
    network = build(config(**settings), (1, 8, 8), 0).eval()
    x = torch.randn(2, 1, 8, 8)
    early, late = (network(x, torch.full((2,), t)) for t in (0.0, 90.0))
    assert (early - late).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("unet-small", (1, 28, 28), 686_769),
        ("unet-small", (3, 32, 32), 687_347),
        ("unet-medium", (1, 28, 28), 2_244_609),
        ("unet-medium", (3, 32, 32), 2_245_763),
        ("unet-large", (3, 32, 32), 35_746_307),  # CBDM's
    ],
)
def test_named_sizes_attend_and_have_so_many_parameters(name, shape, parameters):
    network = build(config(network=name, dropout=0.1), shape, 0)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    attended = [module for module in network.unet.down_blocks if getattr(module, "attentions", None)]
    assert len(attended) == 1


def test_a_named_size_is_the_unet_of_its_settings():
    by_hand = config(network="unet", width=16, depth=1, multipliers="1,2,4", attention="7,8")
    named, same = (build(settings, (1, 8, 8), 0).state_dict() for settings in (config(network="unet-small"), by_hand))
    torch.testing.assert_close(named, same, rtol=0, atol=0)


def test_classes_start_apart_unless_they_share_their_start():
    apart = [build(config(), (1, 8, 8), y).inner.weight for y in (0, 1)]
    shared = [build(config(shared_init=True), (1, 8, 8), y).inner.weight for y in (0, 1)]
    assert not torch.equal(*apart)
    assert torch.equal(*shared)


def test_a_start_follows_from_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (build(config(seed=3), (1, 8, 8), 4).state_dict() for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first["inner.weight"], build(config(seed=4), (1, 8, 8), 4).inner.weight)


def test_random_features_are_the_papers_equation():
    network = build(config(network="random-features", width=5, process="ou", dtype="float64"), (2,), 1)
    network.A.data.normal_(generator=torch.Generator().manual_seed(0))
    x, t = torch.randn(1, 2, dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    embedding = torch.tensor([0.7 / 2.0, 1.0], dtype=torch.float64)
    expected = network.A @ torch.relu(network.W @ x[0] + network.U @ embedding) / 5
    torch.testing.assert_close(network(x, t)[0], expected)
    assert [name for name, _ in network.named_parameters()] == ["A"]
    assert network.W.abs().max() <= 1
    assert not network.A.detach().equal(build(config(network="random-features", width=5), (2,), 1).A)


def test_a_unet_refuses_points():
    with pytest.raises(UserError, match="use mlp"):
        build(config(**SMALL_UNET), (2,), 0)
