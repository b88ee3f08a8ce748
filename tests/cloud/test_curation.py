"""The rules of curation: groups do not hang on the order, gold is fixed, conflicts are found, versions are bytes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.curation import folding
from cloud.curation.conflicts import Kind, Opinion, find_conflicts
from cloud.curation.folding import near_groups, nearest_among
from cloud.curation.roles import Past, Role, assign_roles, doubt_gold, fix_gold
from cloud.curation.rows import HASH_BYTES, Rows
from cloud.curation.versions import balance, compare_versions, counts, decode_version, encode_version, make_version
from common.errors import EnvironmentFault

D = 6


def hashes_at(places: Sequence[int]) -> np.ndarray:
    """Hashes on a line: as many bits apart as their places."""
    bits = np.zeros((len(places), 8 * HASH_BYTES), np.uint8)
    for row, place in enumerate(places):
        bits[row, :place] = 1
    return np.packbits(bits, axis=1)


def partition(groups: np.ndarray, names: Sequence[object]) -> set[frozenset[object]]:
    return {frozenset(names[row] for row in np.flatnonzero(groups == group)) for group in np.unique(groups)}


def make_rows(
    places: Sequence[int],
    labels: Sequence[str] | None = None,
    owners: Sequence[str] | None = None,
    flagged: Sequence[bool] | None = None,
    by_scene: bool = False,
    first: int = 0,
) -> Rows:
    n = len(places)
    return Rows(
        tuple((first + row).to_bytes(16, "big") for row in range(n)),
        tuple(labels or ["normal"] * n),
        tuple(owners or ["north"] * n),
        ("base",) * n,
        np.ones((n, D), np.float32),
        hashes_at(places),
        np.ones(n, dtype=bool),
        np.array(flagged if flagged is not None else [False] * n, dtype=bool),
        np.full(n, by_scene),
    )


def curate(rows: Rows, past: Past | None = None) -> np.ndarray:
    gold = fix_gold(rows, past or Past())
    groups = near_groups(rows.hashes, rows.hashed, rows.embeddings, rows.owners)
    near = nearest_among(rows.hashes, rows.hashed, rows.embeddings, np.flatnonzero(gold))
    near[gold] = -1
    return assign_roles(rows, groups, near, gold)


# --- folding ----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 256), st.sampled_from(["north", "south"])), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_groups_are_the_connected_pictures_of_a_site_in_whatever_order(pictures, random) -> None:
    def fold(order: Sequence[int]) -> set[frozenset[object]]:
        hashes = hashes_at([pictures[row][0] for row in order])
        owners = [pictures[row][1] for row in order]
        units = np.zeros((len(order), D), np.float32)
        units[:, 0] = 1
        groups = near_groups(hashes, np.ones(len(order), dtype=bool), units, owners)
        assert (groups <= np.arange(len(order))).all(), "a group is named by its first row"
        return partition(groups, list(order))

    straight = list(range(len(pictures)))
    shuffled = straight.copy()
    random.shuffle(shuffled)
    found = fold(straight)
    assert found == fold(shuffled)
    # embeddings are all the same, so a chain holds wherever the next hash is at most a view away
    wanted: set[frozenset[object]] = set()
    for site in {site for _, site in pictures}:
        own = sorted((place, row) for row, (place, home) in enumerate(pictures) if home == site)
        chain = [own[0][1]]
        for (before, _), (place, row) in pairwise(own):
            if place - before > folding.VIEW_BITS:
                wanted.add(frozenset(chain))
                chain = []
            chain.append(row)
        wanted.add(frozenset(chain))
    assert found == wanted


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 9))
def test_blocks_and_portions_change_nothing(seed: int, count: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = hashes_at(rng.integers(0, 257, count).tolist())
    units = rng.normal(size=(count, 3)).astype(np.float32)
    known = np.ones(count, dtype=bool)
    whole = near_groups(hashes, known, units, ["north"] * count)
    few = rng.choice(count, max(1, count // 3), replace=False)
    nearest = nearest_among(hashes, known, units, few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "BLOCK", block)
        patch.setattr(folding, "PAIRS_MAX", 3)
        np.testing.assert_array_equal(near_groups(hashes, known, units, ["north"] * count), whole)
        np.testing.assert_array_equal(nearest_among(hashes, known, units, few), nearest)
    assert set(nearest[nearest >= 0]) <= set(few.tolist())
    assert (nearest[few] >= 0).all(), "a picture is near itself"


def test_hash_and_embedding_must_both_agree() -> None:
    hashes, known = hashes_at([0, 10, 80, 200]), np.ones(4, dtype=bool)
    alike = np.ones((4, D), np.float32)
    assert partition(near_groups(hashes, known, alike, ["a"] * 4), range(4)) == {frozenset({0, 1, 2}), frozenset({3})}
    other = alike.copy()
    other[1, :3] = -1  # the same hash, and a picture of something else
    other[2, 0] = 0.0  # a view away, and not nearly the same embedding... of 5 in 6 features: cosine 0.91
    assert partition(near_groups(hashes, known, other, ["a"] * 4), range(4)) == {
        frozenset({0, 2}),
        frozenset({1}),
        frozenset({3}),
    }


def test_a_picture_without_a_hash_is_like_no_other() -> None:
    hashes, known = hashes_at([0, 0, 0]), np.array([True, False, True])
    groups = near_groups(hashes, known, np.ones((3, D), np.float32), ["a"] * 3)
    assert partition(groups, range(3)) == {frozenset({0, 2}), frozenset({1})}


# --- roles ------------------------------------------------------------------------------------


def test_a_group_counts_once_for_each_label_in_it() -> None:
    rows = make_rows([0, 1, 2, 3, 250], ["normal", "normal", "tear", "tear", "normal"])
    assert curate(rows).tolist() == [Role.LEARNT, Role.FOLDED, Role.LEARNT, Role.FOLDED, Role.LEARNT]


def test_near_duplicates_at_two_sites_count_at_each_so_that_one_can_leave() -> None:
    rows = make_rows([0, 0, 0], owners=["north", "south", "south"])
    assert curate(rows).tolist() == [Role.LEARNT, Role.LEARNT, Role.FOLDED]


def test_nothing_that_is_like_a_gold_picture_is_learnt_from_nor_what_is_like_that() -> None:
    places = [0, 85, 170, 256]  # each a view away from the next, the first gold, at another site
    rows = make_rows(places, owners=["gold", "north", "north", "north"], flagged=[True, False, False, False])
    roles = curate(rows)
    assert roles[0] == Role.GOLD
    assert roles[1] == Role.NEAR_GOLD
    assert roles[2] == Role.NEAR_GOLD, "it is in a group with one that is like gold"


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=4, max_size=40),
    st.booleans(),
)
def test_gold_stays_and_what_was_learnt_from_never_becomes_gold(pictures, by_scene: bool) -> None:
    scenes = [f"scene-{number}" for number, _, _ in pictures]
    first = [row for row, (_, _, late) in enumerate(pictures) if not late]
    everything = make_rows(
        [0] * len(pictures), owners=scenes, flagged=[flag for _, flag, _ in pictures], by_scene=by_scene
    )
    everything = replace(everything, hashed=np.zeros(len(pictures), dtype=bool))  # like no other
    before = everything.pick(np.array(first, dtype=np.int64))
    gold = fix_gold(before, Past())
    ids = np.array(before.ids, dtype=object)
    past = Past(frozenset(ids[gold]), frozenset(ids[~gold]))
    after = fix_gold(everything, past)
    assert after[first].tolist() == gold.tolist()
    if by_scene:
        for scene in set(scenes):
            own = np.array([name == scene for name in scenes])
            assert after[own].all() or not after[own].any(), "whole scenes"


def test_a_copy_of_what_was_learnt_from_does_not_become_gold() -> None:
    scenes = ["old", "new", "new", "new"]
    rows = make_rows([0, 1, 120, 240], owners=scenes, flagged=[False, True, True, True], by_scene=True)
    roles = curate(rows, Past(learnt=frozenset(rows.ids[:1])))
    assert roles.tolist() == [Role.LEARNT, Role.NEAR_GOLD, Role.GOLD, Role.GOLD]


# --- conflicts --------------------------------------------------------------------------------


def opinion_of(said: Sequence[str], sure: float = 0.97) -> Opinion:
    probabilities = np.full((len(said), 2), 1 - sure)
    for row, label in enumerate(said):
        probabilities[row, ("normal", "tear").index(label)] = sure
    return Opinion(("normal", "tear"), probabilities)


def test_twins_are_in_conflict_unless_the_head_sees_the_difference() -> None:
    rows = make_rows([0, 1, 250], ["normal", "tear", "normal"])
    groups, none = np.array([0, 0, 2]), np.full(3, -1)
    (found,) = find_conflicts(rows, groups, none, None, {}, {})
    assert (found.kind, found.rows) == (Kind.TWINS, (0, 1))
    assert find_conflicts(rows, groups, none, opinion_of(["normal", "normal", "normal"]), {}, {})
    assert find_conflicts(rows, groups, none, opinion_of(["normal", "tear", "normal"]), {}, {}) == []


def test_a_twin_of_a_gold_picture_at_another_site_is_one() -> None:
    rows = make_rows([0, 1], ["normal", "tear"], owners=["gold", "north"])
    (found,) = find_conflicts(rows, np.array([0, 1]), np.array([-1, 0]), None, {}, {})
    assert found.rows == (0, 1)


def test_what_is_decided_is_not_asked_again_until_the_label_changes() -> None:
    rows = make_rows([0, 1], ["normal", "tear"])
    groups, none = np.array([0, 0]), np.full(2, -1)
    both = {rows.ids[0]: "normal", rows.ids[1]: "tear"}
    assert find_conflicts(rows, groups, none, None, {}, both) == []
    assert find_conflicts(rows, groups, none, None, {}, both | {rows.ids[1]: "normal"})


def test_a_strong_doubt_is_listed_strongest_first_and_a_weak_one_is_not() -> None:
    said = ["normal"] * 20 + ["tear"] * 20
    labels = said.copy()
    labels[3], labels[25], labels[30] = "tear", "normal", "normal"
    opinion = opinion_of(said)
    opinion.probabilities[25] = 0.001, 0.999
    opinion.probabilities[30] = 0.4, 0.6
    rows, each, none = make_rows([0] * 40, labels), np.arange(40), np.full(40, -1)
    found = find_conflicts(rows, each, none, opinion, {}, {})
    assert [(c.kind, c.rows, c.suggested) for c in found] == [
        (Kind.DOUBTED, (25,), "tear"),
        (Kind.DOUBTED, (3,), "normal"),
    ]


def test_two_people_who_disagree_are_a_conflict_before_any_doubt() -> None:
    rows = make_rows([0, 250], ["normal", "tear"])
    said = {rows.ids[1]: ("normal", "tear")}
    (found,) = find_conflicts(rows, np.arange(2), np.full(2, -1), None, said, {})
    assert (found.kind, found.rows, found.suggested) == (Kind.PEOPLE, (1,), "normal")


def test_gold_in_conflict_is_left_out_and_the_rest_stays() -> None:
    roles = np.array([Role.GOLD] * 5 + [Role.LEARNT], np.uint8)
    assert doubt_gold(roles, {4, 5}).tolist() == [Role.GOLD] * 4 + [Role.GOLD_IN_DOUBT, Role.LEARNT]
    assert roles[4] == Role.GOLD, "not in place"


def test_where_over_a_fifth_of_gold_is_in_doubt_the_doubt_is_in_doubt() -> None:
    roles = np.array([Role.GOLD] * 5 + [Role.LEARNT], np.uint8)
    assert doubt_gold(roles, {3, 4, 5}).tolist() == roles.tolist()


# --- versions ---------------------------------------------------------------------------------


def version_of(rows: Rows, contributions: dict[str, str] | None = None, past: Past | None = None):
    past = past or Past()
    rows = rows.pick(rows.order())
    roles = curate(rows, past)
    groups = near_groups(rows.hashes, rows.hashed, rows.embeddings, rows.owners)
    return make_version("belt", "b" * 64, ("normal", "tear"), rows, groups, roles, contributions or {}, past)


@given(st.permutations(range(8)))
def test_a_version_is_the_same_bytes_whatever_order_things_came_in(order: list[int]) -> None:
    places = [0, 3, 90, 95, 180, 183, 250, 255]
    labels = ["normal", "tear"] * 4
    rows = make_rows(places, labels, flagged=[False] * 6 + [True] * 2)
    name, content = encode_version(version_of(rows, {"gw-1": "5"}))
    again, other = encode_version(version_of(rows.pick(np.array(order)), {"gw-1": "5"}))
    assert (name, content) == (again, other)
    assert decode_version(content, name) == version_of(rows, {"gw-1": "5"})
    assert encode_version(decode_version(content, name)) == (name, content)


def test_a_damaged_version_is_noticed() -> None:
    name, content = encode_version(version_of(make_rows([0, 100])))
    with pytest.raises(EnvironmentFault, match="damaged"):
        decode_version(content, "0" * 64)
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        decode_version(content[:-3], name)


def test_a_difference_names_what_came_went_and_changed() -> None:
    before = version_of(make_rows([0, 100, 200], ["normal", "tear", "tear"]), {"gw-1": "1", "gw-2": "1"})
    rows = make_rows([0, 100, 100], ["tear", "tear", "tear"], first=1)
    after = version_of(rows, {"gw-1": "2", "gw-2": "1"}, before.past())
    found = compare_versions(before, after)
    one, two, three, four = ((n.to_bytes(16, "big"), "base") for n in range(4))
    assert found.added == (four,)
    assert found.removed == (one,)
    assert found.relabelled == ()
    assert found.moved == ()
    assert found.contributions == ("gw-1",)
    assert counts(after)["gone_learnt"] == 1
    assert [m for m, r in zip(after.members(), after.roles, strict=True) if r == Role.FOLDED] == [four]
    assert balance(after) == {"north": {"tear": {"learnt": 2, "folded": 1, "gold": 0}}}
    assert two in after.members()
    assert three in after.members()


def test_what_is_gone_and_comes_again_is_what_it_was() -> None:
    rows = make_rows([0, 120, 240], flagged=[True, False, False])
    first = version_of(rows)
    second = version_of(make_rows([50], first=9), past=first.past())
    back = make_rows([0, 120, 240], flagged=[False, True, True])
    third = version_of(back, past=second.past())
    roles = dict(zip(third.members(), third.roles.tolist(), strict=True))
    assert [roles[name, "base"] for name in back.ids] == [Role.GOLD, Role.LEARNT, Role.LEARNT]
