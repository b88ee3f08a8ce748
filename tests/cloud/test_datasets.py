"""The gold set: whole scenes where there are scenes, every class on both sides, and the same when more is added."""

import numpy as np

from cloud.learning.datasets import choose_gold


def pictures(scenes: int, each: int = 4) -> tuple[list[bytes], list[str], list[str]]:
    names = [f"scene-{number:03d}" for number in range(scenes) for _ in range(each)]
    labels = ["normal" if row % 2 else ("tear" if int(name[-3:]) % 3 else "hole") for row, name in enumerate(names)]
    ids = [np.random.default_rng(row).bytes(16) for row in range(len(names))]
    return ids, labels, names


def test_no_scene_is_on_both_sides_and_every_class_is_on_each() -> None:
    ids, labels, scenes = pictures(40)
    gold = choose_gold(ids, labels, scenes)
    assert not {s for s, g in zip(scenes, gold, strict=True) if g} & {
        s for s, g in zip(scenes, gold, strict=True) if not g
    }
    for side in (True, False):
        assert {label for label, g in zip(labels, gold, strict=True) if g == side} == {"normal", "tear", "hole"}
    assert 0.1 < gold.mean() < 0.35


def test_a_scene_stays_gold_when_others_are_added() -> None:
    few, more = pictures(30), pictures(60)
    before = {s for s, g in zip(few[2], choose_gold(*few), strict=True) if g}
    after = {s for s, g in zip(more[2], choose_gold(*more), strict=True) if g}
    assert before <= after


def test_few_scenes_are_split_by_picture() -> None:
    ids, labels, scenes = pictures(3, each=100)
    gold = choose_gold(ids, labels, scenes)
    assert 0.1 < gold.mean() < 0.3
    assert len({s for s, g in zip(scenes, gold, strict=True) if g}) == 3
    assert (gold == choose_gold(ids, labels, ["one"] * 300)).all()


def test_a_class_of_one_scene_is_learnt_or_judged_and_one_of_two_is_both() -> None:
    ids, labels, scenes = pictures(20)
    labels = [
        "rare" if scene in ("scene-004", "scene-005") else label for scene, label in zip(scenes, labels, strict=True)
    ]
    gold = choose_gold(ids, labels, scenes)
    assert {bool(g) for g, label in zip(gold, labels, strict=True) if label == "rare"} == {True, False}
