"""What samples are good for: scores against scikit-learn, the training sets, and a classifier that tells them apart."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

from fedmutual.evaluation import classifier
from fedmutual.evaluation.usefulness import lifted, repeated, scores, train_and_test, training_sets

CPU = torch.device("cpu")


def points(counts, shift=3.0, seed=0):
    """{class: its points, [n, 2]}, class y around (y shift, 0)."""
    draw = torch.Generator().manual_seed(seed)
    return {y: torch.randn(count, 2, generator=draw) + torch.tensor([y * shift, 0.0]) for y, count in enumerate(counts)}


def test_scores_are_scikit_learns():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 200)
    predicted = np.where(random.random(200) < 0.6, labels, random.integers(0, 5, 200))  # class 4 is never real
    found = scores(predicted, labels, 5)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, labels=range(4), average="macro"))
    assert found.recall[:4] == pytest.approx(recall_score(labels, predicted, labels=range(4), average=None))
    assert math.isnan(found.recall[4])


def test_each_class_is_lifted_to_the_largest_as_far_as_its_samples_reach():
    real, drawn = points([6, 3, 1]), points([4, 4, 2], seed=1)
    both = lifted(real, {0: drawn[0], 1: drawn[1]})  # nothing was drawn of class 2
    assert {y: len(part) for y, part in both.items()} == {0: 6, 1: 6, 2: 1}
    torch.testing.assert_close(both[1], torch.cat([real[1], drawn[1][:3]]))
    again = repeated(real, {0: 6, 1: 6, 2: 1})
    torch.testing.assert_close(again[1], torch.cat([real[1], real[1]]))
    sets = training_sets(real, drawn)
    assert list(sets) == ["synthetic", "real", "both", "repeated"]
    sizes = {name: [len(part) for part in parts.values()] for name, parts in sets.items()}
    assert sizes == {"synthetic": [4, 4, 2], "real": [6, 3, 1], "both": [6, 6, 3], "repeated": [6, 6, 3]}


def test_samples_are_worth_what_they_teach():
    """Good samples teach the classes, samples with the classes swapped teach the opposite; every seed is its own."""
    good, test = points([60, 60], shift=6), points([80, 80], shift=6, seed=1)
    swapped = {0: good[1], 1: good[0]}
    percent: list[int] = []
    found = train_and_test({"good": good, "swapped": swapped}, test, 2, range(3), CPU, percent.append)
    assert [len(of_set) for of_set in found.values()] == [3, 3]
    assert min(one.macro_f1 for one in found["good"]) > 0.9
    assert max(one.macro_f1 for one in found["swapped"]) < 0.1
    assert percent == sorted(percent)
    assert percent[-1] == 100
    again = train_and_test({"good": good}, test, 2, [1], CPU)["good"][0]
    assert again.macro_f1 == found["good"][1].macro_f1  # neither the set beside it nor the order changes it


def test_a_set_of_nothing_teaches_nothing():
    real = points([5, 4])
    nothing = {y: part[:0] for y, part in real.items()}
    found = train_and_test({"nothing": nothing, "real": real}, real, 2, [0], CPU)
    assert found["nothing"] == []
    assert len(found["real"]) == 1


def test_a_last_part_of_one_image_trains_too(monkeypatch):
    """Batch normalisation of one 1x1 map has no variance: a pass over BATCH + 1 images leaves the last one out."""
    monkeypatch.setattr(classifier, "BATCH", 4)
    images, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0])
    network = classifier.classifier_for((1, 8, 8), 2)
    classifier.fit(network, images, labels, steps=3)
    assert classifier.classify(network, images).shape == (5,)
