"""How long the arms of a comparison that are left will take."""

from simulations.experiments.pace import Pace


def test_arms_of_one_process_share_it_and_federated_ones_follow_each_other():
    arms = [(method, seed) for method in ("pooled", "memory", "isolated") for seed in (0, 1)]
    pace = Pace(arms, at_once=2)
    assert pace.in_words() == "6 arms left"
    pace.finished(("pooled", 0), 240.0)
    # pooled takes as long again; of memory nothing else is known; two at a time; isolated runs over a server
    assert pace.in_words() == "5 arms left, about 6 min without the 2 federated"
    pace.finished(("memory", 0), 2.0)
    assert pace.in_words() == "4 arms left, about 2 min without the 2 federated"
    pace.finished(("pooled", 1), 240.0)
    pace.finished(("memory", 1), 2.0)
    assert pace.in_words() == "2 arms left"
    pace.finished(("isolated", 0), 600.0)
    assert pace.in_words() == "1 arm left, about 10 min"
    pace.finished(("isolated", 1), 600.0)
    assert pace.in_words() == ""
