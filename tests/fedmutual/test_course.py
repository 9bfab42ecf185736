"""How far a training is, from the lines of its history."""

import pytest

from fedmutual.course import LAST, Course, roughly, seconds_left


def lines(round_: int, seconds: float | None, *held_out: float | None) -> list[dict]:
    return [
        {"round": round_, "class": y, "held_out": loss, "round_seconds": seconds} for y, loss in enumerate(held_out)
    ]


def test_the_time_left_is_the_median_of_the_last_rounds():
    course = Course(rounds=20)
    assert course.seconds_left is None
    for round_, seconds in enumerate([100.0, 2.0, 4.0, 3.0, 50.0], 1):  # the first starts processes, one was disturbed
        course.add(lines(round_, seconds, 0.5, 0.4))
    assert course.seconds_left == 15 * 4.0
    assert course.left_in_words == "about 1 min left"


def test_a_machine_that_becomes_busy_is_noticed_after_half_of_the_last_rounds():
    assert seconds_left([1.0] * 50 + [3.0] * (LAST // 2 + 1), 7) == 7 * 3.0
    assert seconds_left([], 7) is None


def test_a_round_counts_once_however_many_classes_it_has():
    course = Course(rounds=2)
    course.add(lines(1, 8.0, *[0.1] * 9))
    assert course.durations == [8.0]
    course.add(lines(2, 9.0, 0.1))
    assert (course.done, course.seconds_left, course.left_in_words) == (2, 0, "")


def test_the_worst_class_is_of_the_last_loss_of_each_and_a_class_that_is_missing_keeps_its_own():
    course = Course(rounds=9)
    course.add(lines(1, 1.0, 0.9, 0.3, 0.4))
    course.add(lines(2, 1.0, 0.2, None, 0.25))
    assert course.worst_in_words(["cat", "a  b\nnewt", "dog"]) == "worst held-out loss 0.3 (a b newt)"
    assert course.worst_in_words() == "worst held-out loss 0.3 (class 1)"
    assert course.in_words() == "about 7 s left, worst held-out loss 0.3 (class 1)"


def test_without_held_out_samples_or_times_nothing_is_claimed():
    course = Course(rounds=3)
    course.add(lines(1, None, None, None))
    assert (course.done, course.in_words()) == (1, "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.4, "0 s"), (8.2, "8 s"), (12, "10 s"), (57, "55 s"), (57.6, "1 min"), (95, "2 min"), (59.6 * 60, "1 h")),
        *((3600 + 340, "1 h 10 min"), (7200, "2 h"), (47 * 3600, "47 h"), (3 * 86400, "3 days")),
    ],
)
def test_an_estimate_is_not_said_more_exactly_than_it_is(seconds, words):
    assert roughly(seconds) == words
