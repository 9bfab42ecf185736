"""Secret streams: what a key gives again, what it does not, and what the numbers look like."""

import pytest
import torch
from scipy.stats import kstest

from fedmutual.privacy.secret import KEY, SecretStream


def test_a_key_gives_the_same_numbers_again_and_another_key_or_none_others():
    key = bytes(range(KEY))
    one, same = SecretStream(key), SecretStream(key)
    assert torch.equal(one.normal(3, 4), same.normal(3, 4))
    assert one.seed() == same.seed()
    assert torch.equal(one.uniform(5), same.uniform(5))
    drawn = [SecretStream(key).uniform(4), SecretStream(bytes(KEY)).uniform(4), *(SecretStream().uniform(4),) * 2]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(SecretStream().uniform(4), SecretStream().uniform(4))


def test_it_is_the_keystream_of_chacha20():
    """RFC 8439, appendix A.1, test vector 1 is of nonce 0 and block 0; here each call has a nonce of its own."""
    first = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    stream = SecretStream(bytes(KEY))
    stream.calls = -1
    assert stream.bits(4).tobytes() == first
    assert stream.bits(4).tobytes() != first


@pytest.mark.parametrize(("draw", "law"), [("normal", "norm"), ("uniform", "uniform")])
def test_numbers_have_the_law_that_they_should(draw, law):
    numbers = getattr(SecretStream(bytes(KEY)), draw)(20000).numpy()
    assert kstest(numbers, law).pvalue > 1e-3
