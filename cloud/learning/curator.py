"""Applies the rules of `cloud.curation` to what the centre holds: what is learnt from, gold, or in conflict.

Reads pictures of the catalogue and labelled samples of the store; statistics of gateways that share no pixels cannot be
looked into, they are only named in the version. Perceptual hashes of uploaded samples are computed once and kept in a
file beside the datasets, a cache: without it the next look is slower.
"""

import io
import logging
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.curation.conflicts import CLASS_SAMPLES_MIN, Conflict, Opinion, find_conflicts, rows_in
from cloud.curation.folding import near_groups, nearest_among
from cloud.curation.roles import Past, Role, assign_roles, doubt_gold, fix_gold
from cloud.curation.rows import HASH_BYTES, UPLOADED, Rows, join_rows
from cloud.curation.versions import Version, balance, counts, decode_version, encode_version, make_version
from cloud.learning.datasets import SCENES_MIN, Catalogue, Dataset
from cloud.learning.heads import HeadWeights, principal_basis, solve_lda
from cloud.pictures import perceptual_hash
from cloud.store import LabelledSet, Store
from common.errors import EnvironmentFault, OperatorError, WireError
from common.files import write_atomically
from common.ids import SAMPLE_ID_BYTES
from common.statistics import Statistics

log = logging.getLogger(__name__)

FOLDS = 5
SHRINKAGE, DIRECTIONS = 0.3, 256  # of the heads that look for wrong labels; solved in a tenth of a second each
CONFLICTS_MAX = 500
"""Kept with a version for people to decide; they see the strongest, the rest when these are decided."""
CHUNK = 16_384  # rows whose embeddings are float64 at once


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a scenario found."""

    rows: Rows
    groups: NDArray[np.int64]
    roles: NDArray[np.uint8]
    past: Past
    conflicts: tuple[Conflict, ...]
    datasets: tuple[Dataset, ...]
    """With the pictures that are learnt from or gold, and no others."""
    samples: LabelledSet
    """The uploaded ones that are learnt from."""
    files: Mapping[bytes, str]
    """Pictures of datasets -> where they lie."""

    def version(
        self, scenario: str, backbone: str, classes: Sequence[str], contributions: Mapping[str, str]
    ) -> Version:
        """What was found, as a version.

        Args:
            contributions: gateways whose own statistics are in the sum -> which version of them.
        """
        return make_version(scenario, backbone, classes, self.rows, self.groups, self.roles, contributions, self.past)

    def told(self, limit: int = CONFLICTS_MAX) -> list[dict[str, Any]]:
        """The open conflicts as plain values, most important first."""
        return [
            {
                "kind": conflict.kind.value,
                "suggested": conflict.suggested,
                "strength": round(conflict.strength, 4),
                "pictures": [
                    {
                        "id": self.rows.ids[row].hex(),
                        "label": self.rows.labels[row],
                        "site": self.rows.owners[row],
                        "source": self.rows.sources[row],
                        "file": self.files.get(self.rows.ids[row], ""),
                        "gold": bool(self.roles[row] in (Role.GOLD, Role.GOLD_IN_DOUBT)),
                    }
                    for row in conflict.rows
                ],
            }
            for conflict in self.conflicts[:limit]
        ]


class Curator:
    """Looks at one scenario at a time."""

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        self._store, self._catalogue = store, catalogue
        self._cache = catalogue.folder.parent / "curation" / "hashes.npz"

    def look(self, scenario: str, classes: Sequence[str], backbone: str, *, judge: bool = True) -> Look:
        """Apply the rules to everything that counts now.

        Args:
            judge: look for conflicts too; without it the roles of gold pictures in doubt are those of gold.
        """
        excluded, decided = self._store.excluded(), self._store.decisions(scenario)
        datasets = [
            _decide(dataset.without(excluded), decided)
            for dataset in self._catalogue.datasets(scenario)
            if dataset.backbone == backbone
        ]
        datasets = [dataset for dataset in datasets if dataset.labels]
        samples = self._samples(scenario, backbone, classes, excluded, datasets)
        parts = [*map(_rows_of_dataset, datasets), self._rows_of_samples(samples)]
        together = join_rows([part for part in parts if len(part)] or parts[-1:])
        order = together.order()
        rows = together.pick(order)
        past = self._past(scenario)
        gold = fix_gold(rows, past)
        groups = near_groups(rows.hashes, rows.hashed, rows.embeddings, rows.owners)
        near = nearest_among(rows.hashes, rows.hashed, rows.embeddings, np.flatnonzero(gold))
        near[gold] = -1
        roles = assign_roles(rows, groups, near, gold)
        conflicts: list[Conflict] = []
        if judge:
            opinion = _opinion(classes, rows, groups, roles)
            people = self._store.disagreements(scenario)
            conflicts = find_conflicts(rows, groups, near, opinion, people, decided)
            roles = doubt_gold(roles, rows_in(conflicts))
        own = np.empty_like(roles)
        own[order] = roles  # as the parts were joined
        files = {name: file for d in datasets for name, file in zip(d.ids, d.files, strict=False)}
        parted = _part(own, [*(len(d.labels) for d in datasets), len(samples.sample_ids)])
        kept = tuple(_with_roles(d, part) for d, part in zip(datasets, parted, strict=False))
        learnt = _pick(samples, np.flatnonzero(parted[-1] == Role.LEARNT))
        return Look(rows, groups, roles, past, tuple(conflicts), kept, learnt, files)

    def keep(self, look: Look, version: Version, at_ns: int) -> dict[str, Any]:
        """Keep the version (a new one, or the last once more) and tell which it is."""
        name, content = encode_version(version)
        summary = {"counts": counts(version), "balance": balance(version), "backbone": version.backbone}
        number = self._store.put_version(version.scenario, name, content, summary, look.told(), at_ns)
        return {"version": number, "hash": name, "counts": summary["counts"], "conflicts": len(look.conflicts)}

    def _past(self, scenario: str) -> Past:
        found = self._store.version_content(scenario)
        return decode_version(found[1], found[0]).past() if found else Past()

    def _samples(
        self,
        scenario: str,
        backbone: str,
        classes: Sequence[str],
        excluded: Collection[str],
        datasets: Sequence[Dataset],
    ) -> LabelledSet:
        """The labelled samples that may count."""
        found = self._store.labelled(scenario, backbone)
        if datasets and found.sample_ids and found.embeddings.shape[1] != datasets[0].embeddings.shape[1]:
            log.warning("embeddings of uploaded samples of %s have another size than the datasets'", scenario)
            return _pick(found, np.zeros(0, np.int64))
        rows = [
            row
            for row, label in enumerate(found.labels)
            if label in classes and found.gateways[row] not in excluded and found.sites[row] not in excluded
        ]
        return _pick(found, np.array(rows, np.int64))

    def _rows_of_samples(self, samples: LabelledSet) -> Rows:
        hashes, hashed = self._hashes(samples.sample_ids)
        count = len(samples.sample_ids)
        return Rows(
            tuple(samples.sample_ids),
            tuple(samples.labels),
            tuple(samples.sites),
            (UPLOADED,) * count,
            samples.embeddings,
            hashes,
            hashed,
            np.zeros(count, dtype=bool),
            np.zeros(count, dtype=bool),
        )

    def _hashes(self, names: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Hash (n, 32) of each sample, and whether there is one: a damaged picture has none."""
        known = self._read_cache()
        new = {}
        for name in names:
            if name not in known:
                try:
                    new[name] = perceptual_hash(self._store.jpeg(name))
                except (EnvironmentFault, WireError, KeyError) as error:
                    log.warning("sample %s cannot be compared with others: %s", name.hex(), error)
        if new:
            known |= new
            self._write_cache(known)
        missing = bytes(HASH_BYTES)
        hashes = np.frombuffer(b"".join(known.get(name, missing) for name in names), np.uint8)
        return hashes.reshape(-1, HASH_BYTES), np.array([name in known for name in names], dtype=bool)

    def _read_cache(self) -> dict[bytes, bytes]:
        try:
            with np.load(self._cache, allow_pickle=False) as arrays:
                ids, hashes = arrays["ids"].tobytes(), arrays["hashes"].tobytes()
        except FileNotFoundError:
            return {}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("the kept hashes cannot be read and are made anew: %s", error)
            return {}
        return {
            ids[SAMPLE_ID_BYTES * n : SAMPLE_ID_BYTES * (n + 1)]: hashes[HASH_BYTES * n : HASH_BYTES * (n + 1)]
            for n in range(len(hashes) // HASH_BYTES)
        }

    def _write_cache(self, known: Mapping[bytes, bytes]) -> None:
        buffer = io.BytesIO()
        ids, hashes = (np.frombuffer(b"".join(part), np.uint8) for part in (known.keys(), known.values()))
        np.savez(buffer, ids=ids, hashes=hashes)
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._cache, buffer.getvalue())


def _decide(dataset: Dataset, decided: Mapping[bytes, str]) -> Dataset:
    """The dataset with the labels that people decided on."""
    labels = tuple(decided.get(name, label) for name, label in zip(dataset.ids, dataset.labels, strict=True))
    return replace(dataset, labels=labels)


def _rows_of_dataset(dataset: Dataset) -> Rows:
    count = len(dataset.labels)
    known = len(dataset.hashes) == count
    return Rows(
        dataset.ids,
        dataset.labels,
        dataset.sites,
        (dataset.name,) * count,
        dataset.embeddings,
        dataset.hashes if known else np.zeros((count, HASH_BYTES), np.uint8),
        np.full(count, known),
        dataset.is_gold,
        np.full(count, len(set(dataset.sites)) >= SCENES_MIN),
    )


def _with_roles(dataset: Dataset, roles: NDArray[np.uint8]) -> Dataset:
    rows = np.flatnonzero((roles == Role.LEARNT) | (roles == Role.GOLD))
    return replace(dataset, is_gold=roles == Role.GOLD).pick(rows)


def _pick(samples: LabelledSet, rows: NDArray[np.int64]) -> LabelledSet:
    return LabelledSet(
        [samples.sample_ids[row] for row in rows],
        [samples.gateways[row] for row in rows],
        [samples.sites[row] for row in rows],
        samples.embeddings[rows],
        [samples.labels[row] for row in rows],
    )


def _part(roles: NDArray[np.uint8], sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Cut into pieces of these sizes."""
    return np.split(roles, np.cumsum(sizes)[:-1])


def _opinion(classes: Sequence[str], rows: Rows, groups: NDArray[np.int64], roles: NDArray[np.uint8]) -> Opinion | None:
    """What heads say of pictures that they did not see, nor a near-duplicate of them.

    Folds are whole groups of near-duplicates, not scenes: whether a label is wrong is best said by other pictures of
    its own scene. Gold pictures are judged by the head of all that is learnt from. None of these is ever released.
    """
    learnt = roles == Role.LEARNT
    enough = {label for label in classes if _count(rows.labels, learnt, label) >= CLASS_SAMPLES_MIN}
    if len(enough) < 2:
        return None
    whole = Statistics.empty(classes, rows.embeddings.shape[1])
    for part in np.array_split(np.flatnonzero(learnt), max(1, int(learnt.sum()) // CHUNK)):
        whole = whole + Statistics.of(classes, rows.embeddings[part], [rows.labels[row] for row in part])
    basis = principal_basis(whole, DIRECTIONS)
    small = np.concatenate([rows.embeddings[at : at + CHUNK] @ basis for at in range(0, len(rows), CHUNK)])
    total = whole.project(basis)
    folds = np.array([rows.ids[group][-1] % FOLDS for group in groups])
    folds[~learnt[_first_learnt(groups, learnt)]] = FOLDS  # nothing of its group is in the sum
    found = np.zeros((len(rows), len(classes)))
    for fold in range(FOLDS + 1):
        asked, out = folds == fold, np.flatnonzero((folds == fold) & learnt)
        rest = total - Statistics.of(classes, small[out], [rows.labels[row] for row in out])
        head = _solve(rest)
        if head is None:
            return None
        found[asked] = head.probabilities(small[asked])
    return Opinion(tuple(classes), found)


def _solve(statistics: Statistics) -> HeadWeights | None:
    try:
        return solve_lda(statistics, SHRINKAGE)
    except OperatorError:  # without the fold there are fewer than two classes
        return None


def _count(labels: Sequence[str], among: NDArray[np.bool_], label: str) -> int:
    return sum(labels[row] == label for row in np.flatnonzero(among).tolist())


def _first_learnt(groups: NDArray[np.int64], learnt: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row one of its group that is learnt from, or the row's group itself where none is."""
    first = np.arange(len(groups))
    rows = np.flatnonzero(learnt)
    first[groups[rows]] = rows
    return first[groups]
