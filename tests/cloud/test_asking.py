"""The order of questions: what is unlike the labelled comes first, and a class just named is pursued."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloud.learning.asking import NOTHING, Asking
from cloud.learning.candidates import Labelled
from common.statistics import Statistics

CLASSES = ("normal", "tear", "hole")
D = 24
CENTRES = np.random.default_rng(7).normal(0, 3, (5, D))
"""Of the three classes, and of two that nobody was taught."""


def around(kind: int, count: int, seed: int) -> NDArray[np.float64]:
    """Embeddings (count, D) of a class."""
    return CENTRES[kind] + np.random.default_rng([seed, kind]).normal(0, 1, (count, D))


def labelled(kinds: dict[int, int], seed: int = 0, names: tuple[str, ...] = (*CLASSES, "rod", "wood")) -> Labelled:
    """So many labelled samples of each class."""
    rows = [around(kind, count, seed) for kind, count in kinds.items()]
    labels = tuple(names[kind] for kind, count in kinds.items() for _ in range(count))
    ids = tuple(seed.to_bytes(8, "big") + n.to_bytes(8, "big") for n in range(len(labels)))
    return Labelled(ids, np.concatenate(rows), labels)


@pytest.fixture(scope="module")
def asking() -> Asking:
    """A centre that was taught the three classes."""
    known = labelled({0: 60, 1: 60, 2: 60})
    statistics = Statistics.of(CLASSES, known.embeddings, known.labels)
    return Asking(statistics, known, labelled({0: 20, 1: 20, 2: 20}, seed=1), 0.3)


def test_classes_that_nobody_was_taught_are_asked_about_first(asking: Asking) -> None:
    waiting = np.concatenate([around(0, 50, 2), around(1, 50, 2), around(3, 3, 2), around(4, 3, 2)])
    assert set(asking.order(waiting, 5)) <= set(range(100, 106))


def test_what_lies_between_two_classes_is_asked_about_before_what_is_like_either(asking: Asking) -> None:
    between = (around(0, 3, 2) + around(1, 3, 4)) / 2
    waiting = np.concatenate([around(0, 50, 2), around(1, 50, 2), between])
    assert asking.order(waiting, 1)[0] in {100, 101, 102}


def test_what_is_like_a_question_that_was_asked_is_not_asked_at_once(asking: Asking) -> None:
    strange = np.concatenate([np.repeat(around(3, 1, 2), 8, axis=0), around(4, 1, 2)])
    waiting = np.concatenate([around(0, 90, 2), strange])
    first = asking.order(waiting, 2)
    assert 98 in first, "eight copies of one oddity leave room for another"


def test_a_class_that_was_just_named_is_pursued_before_one_that_has_its_labels(asking: Asking) -> None:
    waiting = np.concatenate([around(0, 60, 2), around(1, 60, 2), around(3, 8, 2)])
    fresh = labelled({3: 1}, seed=3)
    assert len(set(asking.order(waiting, 8, fresh)) & set(range(120, 128))) >= 7


def test_a_label_changes_the_next_question_and_taking_it_back_restores_it(asking: Asking) -> None:
    waiting = np.concatenate([around(0, 40, 2), around(3, 4, 2)])
    before = asking.order(waiting, 10)
    many = labelled({3: 40}, seed=3)
    assert asking.order(waiting, 10, many) != before
    assert asking.order(waiting, 10) == before


def test_without_gold_and_without_samples_at_hand_there_is_still_an_order() -> None:
    known = labelled({0: 60, 1: 60, 2: 60})
    asking = Asking(Statistics.of(CLASSES, known.embeddings, known.labels), NOTHING, NOTHING, 0.3)
    waiting = np.concatenate([around(0, 50, 2), around(3, 5, 2)])
    assert asking.order(waiting, 1)[0] in range(50, 55)
    assert sorted(asking.order(waiting, 99)) == list(range(55))


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 30), limit=st.integers(1, 40), copies=st.booleans(), scale=st.sampled_from([0.0, 1e-6, 1e6])
)
def test_every_row_is_asked_at_most_once_whatever_waits(
    asking: Asking, count: int, limit: int, copies: bool, scale: float
) -> None:
    waiting = around(0, 1, 5).repeat(count, axis=0) if copies else around(0, count, 5)
    order = asking.order((waiting * scale).astype(np.float32), limit)
    assert len(order) == len(set(order)) == min(count, limit)
    assert set(order) <= set(range(count))
