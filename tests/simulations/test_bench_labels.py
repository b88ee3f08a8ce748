"""The measures of `headframe bench labels`: pools that do not leak, and labels to half of the gain."""

import numpy as np
import pytest

from simulations.bench._pools import CHANCE, ELSEWHERE, HERE, METHODS, OURS, Course, Drawn, Pool, measure, summarise
from simulations.bench._sites import Pictures


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Four classes at eight scenes, each scene with a look of its own."""
    rng = np.random.default_rng(0)
    classes = ("normal", "tear", "hole", "rod")
    centres, looks = rng.normal(0, 2, (4, 40)), rng.normal(0, 0.5, (8, 40))
    kind, scene = np.repeat(np.arange(4), 80), np.tile(np.arange(8), 40)
    rows = centres[kind] + looks[scene] + rng.normal(size=(320, 40))
    names, scenes = np.array(classes)[kind], np.array([f"scene-{n}" for n in scene])
    return Pictures("made", classes, rows.astype(np.float32), names, scenes, np.zeros(320, np.int64))


@pytest.mark.parametrize("place", [HERE, ELSEWHERE])
def test_nothing_is_in_two_parts_of_a_pool_and_new_classes_wait_in_it_only(pictures: Pictures, place: str) -> None:
    pool = Pool(pictures, place, 3)
    assert not set(pool.rows) & set(pool.test_rows)
    assert set(pictures.labels[pool.trained_rows]).isdisjoint(pool.novel)
    assert not (set(pool.rows) | set(pool.test_rows)) & set(pool.trained_rows)
    scenes = [set(pictures.scenes[rows]) for rows in (pool.rows, pool.test_rows)]
    assert (scenes[0] == scenes[1]) if place == HERE else not scenes[0] & scenes[1]


def test_whoever_chooses_ends_with_the_same_accuracy_once_all_is_labelled(pictures: Pictures) -> None:
    drawn = measure(pictures, HERE, 3)
    assert {course.counts[-1] for course in drawn.courses.values()} == {len(Pool(pictures, HERE, 3).rows)}
    for course in drawn.courses.values():
        assert course.scores[0] == drawn.base
        assert course.scores[-1] == pytest.approx(drawn.full)
    assert drawn.courses["oracle"].recall >= drawn.courses[CHANCE].recall


def test_labels_to_half_are_read_off_the_mean_curve_and_seeds_drawn_again_bound_the_ratio() -> None:
    def drawn(labels: dict[str, int]) -> Drawn:
        courses = {
            name: Course((0, labels.get(name, 40), 100), (0.4, 0.8, 0.8), 0.5 if name == OURS else 0.1)
            for name in METHODS
        }
        return Drawn(0.4, 0.8, courses)

    table = summarise([drawn({OURS: 10}), drawn({OURS: 10}), drawn({OURS: 10})])
    assert table["labels_to_half"][OURS] == {"labels": 5.0, "low": 5.0, "high": 5.0}
    assert table["fewer_than_random"] == {"ratio": 4.0, "low": 4.0, "high": 4.0}
    assert table["novel_recall"][OURS] == 0.5
    mixed = summarise([drawn({OURS: 10}), drawn({OURS: 80})])["fewer_than_random"]
    assert mixed["low"] < mixed["ratio"] < mixed["high"]
