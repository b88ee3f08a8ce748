"""Labels that contradict each other or what everything else says: found here, decided by a person. Pure.

- *people*: two people gave the same sample different labels, or its label is not the one that was decided on.
- *twins*: near-duplicates with different labels, unless a head that saw none of them names each as it is labelled:
  then the difference is in the picture (a stone on a still belt), and both may stand.
- *doubted*: confident learning (Northcutt et al. 2021, doi:10.1613/jair.1.12125): a head that did not see a picture,
  nor a near-duplicate of it, is as sure of another class as it is on average of pictures that have that class, and by a
  clear margin surer than of the label. The few lines it takes are here: `cleanlab`, the kept library for it, brings
  pandas and scikit-learn for the same list.

What a person has decided about a label stays decided until the label changes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from cloud.curation.rows import Rows

MARGIN_MIN = 0.5
"""Probability that the other class must have over the label's: weaker doubts a head has about every hard picture."""
CLASS_SAMPLES_MIN = 10
"""Pictures from which on the head's word about a class is heard."""
MEMBERS_MAX = 12
"""Pictures of one group that a person is shown at once."""


class Kind(Enum):
    """Why a person is asked."""

    PEOPLE = "people"
    TWINS = "twins"
    DOUBTED = "doubted"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Pictures that one decision is about."""

    kind: Kind
    rows: tuple[int, ...]
    suggested: str = ""
    """What the head says, or the other person."""
    strength: float = 1.0
    """0..1; a doubt's margin."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a head that did not see them says of the pictures: probabilities (n, c) over classes."""

    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]

    def says(self, row: int) -> str:
        return self.classes[int(self.probabilities[row].argmax())]


def find_conflicts(
    rows: Rows,
    groups: NDArray[np.integer],
    near_gold: NDArray[np.integer],
    opinion: Opinion | None,
    by_person: Mapping[bytes, Sequence[str]],
    decided: Mapping[bytes, str],
) -> list[Conflict]:
    """All open conflicts: people's first, then twins, then doubts, strongest first.

    Args:
        near_gold: row of a gold picture that each (n,) is like, or -1.
        opinion: None where there is too little for a head.
        by_person: sample -> the different labels that people gave it, where they differ.
        decided: picture -> the label that a person decided on.
    """
    settled = np.array([decided.get(name) == label for name, label in zip(rows.ids, rows.labels, strict=True)])
    people = []
    for row, (name, label) in enumerate(zip(rows.ids, rows.labels, strict=True)):
        said = (decided[name],) if name in decided else tuple(by_person.get(name, ()))
        other = next((given for given in said if given != label), "")
        if other:
            people.append(Conflict(Kind.PEOPLE, (row,), other))
    twins = [
        Conflict(Kind.TWINS, members[:MEMBERS_MAX])
        for members in _twins(rows.labels, groups, near_gold)
        if not settled[list(members)].all()
        and not (opinion and all(opinion.says(row) == rows.labels[row] for row in members))
    ]
    known = {row for conflict in (*people, *twins) for row in conflict.rows}
    doubts = [doubt for doubt in _doubts(rows.labels, opinion) if not settled[doubt.rows[0]]] if opinion else []
    return [*people, *twins, *(doubt for doubt in doubts if doubt.rows[0] not in known)]


def rows_in(conflicts: Collection[Conflict]) -> set[int]:
    """Every picture in one of them."""
    return {row for conflict in conflicts for row in conflict.rows}


def _twins(labels: Sequence[str], groups: NDArray[np.integer], near_gold: NDArray[np.integer]) -> list[tuple[int, ...]]:
    """Sets of near-duplicates with more than one label; of each label the first rows, so that every label is shown."""
    by_group: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        by_group.setdefault(group, []).append(row)
    for row in np.flatnonzero(near_gold >= 0).tolist():
        by_group.setdefault(int(groups[near_gold[row]]), []).append(row)
    found = []
    for members in by_group.values():
        if len({labels[row] for row in members}) > 1:
            by_label: dict[str, list[int]] = {}
            for row in sorted(set(members)):
                by_label.setdefault(labels[row], []).append(row)
            each = max(1, MEMBERS_MAX // len(by_label))
            found.append(tuple(sorted(row for own in by_label.values() for row in own[:each])))
    return sorted(set(found))


def _doubts(labels: Sequence[str], opinion: Opinion) -> list[Conflict]:
    index = {name: place for place, name in enumerate(opinion.classes)}
    given = np.array([index[label] for label in labels])
    own = opinion.probabilities[np.arange(len(given)), given]
    counts = np.bincount(given, minlength=len(index))
    heard = counts >= CLASS_SAMPLES_MIN
    sums = np.bincount(given, own, minlength=len(index))
    usual = np.where(heard, sums / np.maximum(counts, 1), np.inf)  # how sure it is of a class where that is the label
    sure = np.where(opinion.probabilities >= usual, opinion.probabilities, -1.0)
    other = sure.argmax(axis=1)
    margin = sure.max(axis=1) - own
    rows = np.flatnonzero((other != given) & (margin >= MARGIN_MIN) & heard[given])
    found = [Conflict(Kind.DOUBTED, (int(row),), opinion.classes[other[row]], float(margin[row])) for row in rows]
    return sorted(found, key=lambda doubt: (-doubt.strength, doubt.rows))
