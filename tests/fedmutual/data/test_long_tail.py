"""Counts of a long tail, and the cut of one class's samples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmutual.data.long_tail import counts, remaining, split
from fedmutual.errors import UserError
from fedmutual.seeds import generator

AVAILABLE = st.lists(st.integers(1, 10_000), min_size=1, max_size=30)
RATIO = st.floats(1e-4, 1)
TAILED = st.sampled_from(["exponential", "step"])


def test_exponential_counts_are_those_of_cifar10_lt():
    result = counts([5000] * 10, "exponential", 0.01)
    assert result == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(result) == 12_406


def test_exponential_counts_are_those_of_cifar100_lt():
    assert sum(counts([500] * 100, "exponential", 0.01)) == 10_847


def test_step_gives_the_head_to_the_first_half():
    assert counts([100] * 4, "step", 0.1) == [100, 100, 10, 10]
    assert counts([100] * 5, "step", 0.1) == [100, 100, 100, 10, 10]


def test_nominal_counts_survive_floating_point():
    assert 100 * 0.29 < 29
    assert counts([100, 100], "step", 0.29) == [100, 29]


def test_no_imbalance_takes_all_or_the_same_of_each():
    assert counts([7, 9, 8], "none") == [7, 9, 8]
    assert counts([7, 9, 8], "none", head_count=5) == [5, 5, 5]


def test_the_head_is_what_the_smallest_class_has():
    assert counts([50, 40, 60], "exponential", 0.25) == [40, 20, 10]


def test_one_class_is_all_head():
    assert counts([12], "exponential", 0.01) == counts([12], "step", 0.01) == [12]


@given(AVAILABLE, TAILED, RATIO)
def test_counts_fall_from_head_to_tail_within_what_there_is(available, imbalance, ratio):
    result = counts(available, imbalance, ratio)
    assert result[0] == min(available)
    assert result == sorted(result, reverse=True)
    assert all(1 <= count <= most for count, most in zip(result, available, strict=True))
    if len(available) > 1:
        assert result[-1] == max(1, int(result[0] * ratio + 1e-9))


@given(AVAILABLE, TAILED, st.integers(1, 10_000))
def test_a_ratio_of_one_is_balanced(available, imbalance, head):
    head = min(head, *available, 10_000)
    assert counts(available, imbalance, 1.0, head) == [head] * len(available)


def test_explicit_counts_are_taken_as_they_are():
    assert counts([9, 9, 9], "counts", explicit=[3, 9, 1]) == [3, 9, 1]


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        ([3, 10, 1], "10 training samples of class 1, which has 9"),
        ([3, 9], "names 2 classes, there are 3"),
        ([3, 0, 1], "class 1 no sample"),
    ],
)
def test_explicit_counts_that_do_not_fit_are_refused(explicit, message):
    with pytest.raises(UserError, match=message):
        counts([9, 9, 9], "counts", explicit=explicit)


@pytest.mark.parametrize("imbalance", ["none", "step", "exponential"])
def test_a_head_above_what_a_class_has_is_refused(imbalance):
    with pytest.raises(UserError, match=r"head-count = 8 .* 7 training samples that class 1 has"):
        counts([9, 7, 9], imbalance, 0.1, head_count=8)


def test_a_class_too_small_for_its_parts_is_named():
    assert remaining([26, 30], ["cat", "dog"], 5, 20) == [1, 5]
    with pytest.raises(UserError, match=r"class dog has 25 samples.*test = 5.*held-out = 20.*lower test or"):
        remaining([26, 25], ["cat", "dog"], 5, 20)
    with pytest.raises(UserError, match=r"lower held-out$"):
        remaining([20], ["cat"], 0, 20)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 200), st.integers(0, 2**32))
def test_parts_are_disjoint_and_together_everything(test, held_out, rest, seed):
    size = test + held_out + rest
    parts = split(size, test, held_out, generator(seed))
    assert [len(part) for part in parts] == [test, held_out, rest]
    assert sorted(index for part in parts for index in part.tolist()) == list(range(size))


def test_the_split_follows_its_generator():
    def pool(*parts: int) -> list[int]:
        return split(100, 10, 10, generator(*parts))[2].tolist()

    assert pool(0, 1) == pool(0, 1)
    assert pool(0, 1) != pool(0, 2)
    assert pool(0, 1) != pool(1, 1)
