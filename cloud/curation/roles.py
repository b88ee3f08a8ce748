"""What each labelled picture is for: learnt from, folded into another, gold, or kept away from both. Pure.

- Near-duplicates of one owner that have the same label count once: the one with the smallest id is learnt from. Two
  labels in a group count once each, until a person decides: a small stone on a still belt is a real difference.
- No group straddles learning and gold. Whatever is a near-duplicate of a gold picture, and whatever is in a group with
  it, is not learnt from.
- Gold is fixed. What was gold stays gold; what was learnt from, and what is like it, never becomes gold; only pictures
  (of datasets that give whole scenes: scenes) that were neither join it as their dataset proposes. A picture of a gold
  scene that may not be gold is in neither.
- Gold in an open conflict is left out until a person decides; where that is over a fifth of it, none is.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from cloud.curation.folding import nearest_among
from cloud.curation.rows import Rows

DOUBT_MAX = 0.2
"""Share of gold that may be left out because it is in doubt. Where more is, what came since is more likely wrong than
what was there: left out, gold would no longer see it."""


class Role(IntEnum):
    """Stored as one byte: the numbers never change."""

    LEARNT = 0
    FOLDED = 1
    """A near-duplicate of one that is learnt from."""
    GOLD = 2
    NEAR_GOLD = 3
    """A near-duplicate of a gold picture: in neither."""
    GOLD_IN_DOUBT = 4
    """Gold with an open conflict: in neither until a person decides."""
    GONE_LEARNT = 5
    """Was learnt from in an earlier version and is not there any more: never gold when it comes again."""
    GONE_GOLD = 6
    """Was gold in an earlier version and is not there any more: gold when it comes again."""


EVER_GOLD = (Role.GOLD, Role.GOLD_IN_DOUBT, Role.GONE_GOLD)
GONE = (Role.GONE_LEARNT, Role.GONE_GOLD)


@dataclass(frozen=True, slots=True)
class Past:
    """What earlier versions made of pictures."""

    gold: frozenset[bytes] = frozenset()
    learnt: frozenset[bytes] = frozenset()


def fix_gold(rows: Rows, past: Past) -> NDArray[np.bool_]:
    """Which pictures (n,) are gold."""
    gold, learnt = (_members(rows, names) for names in (past.gold, past.learnt))
    picks = gold | (rows.flagged & ~learnt)
    owners = np.array(rows.owners, dtype=object)
    for scene in sorted({rows.owners[row] for row in np.flatnonzero(rows.by_scene)}):
        own = (owners == scene) & rows.by_scene
        if (gold & own).any():
            picks |= own & ~learnt
        else:
            picks[own] = bool(rows.flagged[own].any()) and not bool((learnt & own).any())
    fresh, known = np.flatnonzero(picks & ~gold), np.flatnonzero(learnt)
    if len(fresh) and len(known):
        picks &= nearest_among(rows.hashes, rows.hashed, rows.embeddings, known, fresh) < 0
    return picks


def assign_roles(
    rows: Rows, groups: NDArray[np.integer], near_gold: NDArray[np.integer], gold: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The role (n,) of each picture; those in conflict are not told apart here (`doubt_gold`).

    Args:
        rows: in their order (`Rows.order`).
        groups: near-duplicates (`folding.near_groups`).
        near_gold: a gold picture that each is like, or -1.
    """
    roles = np.full(len(rows), Role.LEARNT, np.uint8)
    touched = np.zeros(len(rows), dtype=bool)
    same = _members(rows, frozenset(rows.ids[row] for row in np.flatnonzero(gold)))
    scenes = {rows.owners[row] for row in np.flatnonzero(gold & rows.by_scene)}
    there = rows.by_scene & np.array([owner in scenes for owner in rows.owners], dtype=bool)
    touched[groups[gold | same | there | (near_gold >= 0)]] = True
    roles[touched[groups]] = Role.NEAR_GOLD
    roles[gold] = Role.GOLD
    seen: set[tuple[int, str]] = set()
    for row in np.flatnonzero(roles == Role.LEARNT):
        key = int(groups[row]), rows.labels[row]
        if key in seen:
            roles[row] = Role.FOLDED
        seen.add(key)
    return roles


def doubt_gold(roles: NDArray[np.uint8], in_conflict: Collection[int]) -> NDArray[np.uint8]:
    """The roles with gold pictures that are in an open conflict left out, unless these are over `DOUBT_MAX`."""
    found = roles.copy()
    rows = np.array(sorted(in_conflict), dtype=np.int64)
    doubted = rows[roles[rows] == Role.GOLD]
    if len(doubted) <= DOUBT_MAX * (roles == Role.GOLD).sum():
        found[doubted] = Role.GOLD_IN_DOUBT
    return found


def _members(rows: Rows, names: frozenset[bytes]) -> NDArray[np.bool_]:
    return np.array([name in names for name in rows.ids], dtype=bool)
