import pytest
import torch

from client import loaded_peers as module
from client.loaded_peers import LoadedPeers
from fedmutual.config import RunConfig
from fedmutual.networks import build
from fedmutual.records import Rejected, norm, pack_network
from tests.support.federation import SMALL

SHAPE = (1, 4, 4)
LIMIT = 1e3


@pytest.fixture
def config():
    return RunConfig.of(SMALL)


@pytest.fixture
def decoded(monkeypatch):
    """How many networks have been decoded."""
    count = []
    unpack = module.unpack_network
    monkeypatch.setattr(module, "unpack_network", lambda *args: count.append(1) or unpack(*args))
    return count


def states(config, classes):
    return {y: build(config, SHAPE, y).state_dict() for y in classes}


def test_clients_of_one_process_share_the_peers_that_did_not_change(config, decoded):
    networks, loaded, own = states(config, range(4)), LoadedPeers(), build(config, SHAPE, 0)
    records = {y: pack_network(state) for y, state in networks.items()}
    for y in range(4):
        others = [z for z in range(4) if z != y]
        result = loaded.load([records[z] for z in others], own, own.state_dict(), LIMIT, config)
        assert [not network.training for network in result] == [True] * 3
        for z, network in zip(others, result, strict=True):
            torch.testing.assert_close(network.state_dict(), networks[z], rtol=0, atol=0)
        assert len(loaded.networks) == 3  # those of this order, and no more
    # Three for the first client, and the one that each next client is sent for the first time, or anew.
    assert len(decoded) == 6


def test_a_network_that_changed_in_one_bit_is_another(config, decoded):
    state, loaded, own = states(config, [1])[1], LoadedPeers(), build(config, SHAPE, 0)
    initial = own.state_dict()
    before = loaded.load([pack_network(state)], own, initial, LIMIT, config)[0].outer.bias.clone()
    state["outer.bias"][0] = torch.nextafter(state["outer.bias"][0], torch.tensor(9.0))
    after = loaded.load([pack_network(state)], own, initial, LIMIT, config)[0]
    assert not torch.equal(before, after.outer.bias)
    assert torch.equal(after.outer.bias, state["outer.bias"])
    assert len(decoded) == 2


def test_arrays_under_each_others_names_are_another_network(config, decoded):
    state, loaded, own = states(config, [1])[1], LoadedPeers(), build(config, SHAPE, 0)
    initial = own.state_dict()
    loaded.load([pack_network(state)], own, initial, LIMIT, config)
    state["hidden.0.weight"], state["inner.weight"] = state["inner.weight"], state["hidden.0.weight"]
    with pytest.raises(Rejected):
        loaded.load([pack_network(state)], own, initial, LIMIT, config)


def test_a_held_network_still_has_to_keep_this_clients_bound(config, decoded):
    loaded, own = LoadedPeers(), build(config, SHAPE, 0)
    state = own.state_dict()
    loaded.load([pack_network(state)], own, state, norm(state), config)
    with pytest.raises(Rejected, match="norm"):
        loaded.load([pack_network(state)], own, state, 0.99 * norm(state), config)
    assert len(decoded) == 1


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_a_module_that_is_filled_anew_is_as_good_as_a_new_one(config, decoded, autocast):
    settings, loaded, own = config.but(autocast=autocast), LoadedPeers(), build(config, SHAPE, 0)
    first, second = ([pack_network(state) for state in states(config, who).values()] for who in (range(3), range(3, 7)))
    modules = loaded.load(first, own, own.state_dict(), LIMIT, settings)
    again = loaded.load(second, own, own.state_dict(), LIMIT, settings)
    assert set(map(id, modules)) < set(map(id, again)), "three of the four are filled, and one is made"
    for network, new in zip(again, LoadedPeers().load(second, own, own.state_dict(), LIMIT, settings), strict=True):
        torch.testing.assert_close(network.state_dict(), new.state_dict(), rtol=0, atol=0)
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_other_settings_load_anew(config, decoded):
    state, loaded, own = states(config, [1])[1], LoadedPeers(), build(config, SHAPE, 0)
    half = config.but(autocast="bfloat16")
    for settings, dtype in ((config, torch.float32), (half, torch.bfloat16)):
        network = loaded.load([pack_network(state)], own, own.state_dict(), LIMIT, settings)[0]
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}
