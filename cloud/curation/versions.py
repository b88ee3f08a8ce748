"""A version of a dataset: which pictures, labels, roles and rules made it, as bytes whose hash is its name. Pure.

The same content gives the same bytes. When it was made, and which version came before, is not part of it: the store
keeps that beside it (`cloud.store.curation`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from cloud.curation.folding import COPY_BITS, COPY_COSINE, GOLD_BITS, VIEW_BITS, VIEW_COSINE
from cloud.curation.roles import EVER_GOLD, GONE, Past, Role
from cloud.curation.rows import UPLOADED, Rows
from common.compression import decompress
from common.errors import EnvironmentFault, WireError
from common.ids import SAMPLE_ID_BYTES

SCHEMA = 1
CONTENT_BYTES_MAX = 512 << 20
"""Ten million pictures; a version that says it is larger is not opened."""
FOLDING = {
    "copy_bits": float(COPY_BITS),
    "copy_cosine": COPY_COSINE,
    "view_bits": float(VIEW_BITS),
    "view_cosine": VIEW_COSINE,
    "gold_bits": float(GOLD_BITS),
}
"""The folding rule, as a version names it."""

Member = tuple[bytes, str]
"""Id and source: what a row is called in a comparison of two versions."""


class Version(msgspec.Struct, frozen=True):
    """Columns of equal length, little-endian; texts are indices into the lists beside them."""

    scenario: str
    backbone: str
    classes: tuple[str, ...]
    folding: dict[str, float]
    labels: tuple[str, ...]
    owners: tuple[str, ...]
    sources: tuple[str, ...]
    ids: bytes
    label: bytes
    owner: bytes
    source: bytes
    role: bytes
    group: bytes
    """Row of the first picture of its near-duplicates."""
    contributions: tuple[tuple[str, str], ...] = ()
    """Gateways whose own statistics are in the sum, and which version of them."""
    schema: int = SCHEMA

    def __len__(self) -> int:
        return len(self.role)

    @property
    def roles(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.role, np.uint8)

    def members(self) -> list[Member]:
        """What each row is called."""
        size, source = SAMPLE_ID_BYTES, np.frombuffer(self.source, "<u4").tolist()
        return [(self.ids[size * row : size * (row + 1)], self.sources[source[row]]) for row in range(len(self))]

    def label_of(self) -> list[str]:
        """The label of each row; empty for those that are gone."""
        return [self.labels[place] for place in np.frombuffer(self.label, "<u4").tolist()]

    def owner_of(self) -> list[str]:
        return [self.owners[place] for place in np.frombuffer(self.owner, "<u4").tolist()]

    def past(self) -> Past:
        """What the next version must not undo."""
        roles, size = self.roles, SAMPLE_ID_BYTES
        names = [self.ids[size * row : size * (row + 1)] for row in range(len(self))]
        gold = frozenset(name for name, role in zip(names, roles.tolist(), strict=True) if role in EVER_GOLD)
        was_learnt = (Role.LEARNT, Role.FOLDED, Role.GONE_LEARNT)
        learnt = frozenset(name for name, role in zip(names, roles.tolist(), strict=True) if role in was_learnt)
        return Past(gold, learnt - gold)


def make_version(
    scenario: str,
    backbone: str,
    classes: Sequence[str],
    rows: Rows,
    groups: NDArray[np.integer],
    roles: NDArray[np.uint8],
    contributions: Mapping[str, str],
    past: Past,
) -> Version:
    """The version of these rows, which are in their order; what `past` knows and they do not have is carried along."""
    here = frozenset(rows.ids)
    gone = sorted(
        [(name, Role.GONE_GOLD) for name in past.gold - here] + [(n, Role.GONE_LEARNT) for n in past.learnt - here]
    )
    count, total = len(rows), len(rows) + len(gone)
    labels, label = _coded((*rows.labels, *("" for _ in gone)))
    owners, owner = _coded((*rows.owners, *("" for _ in gone)))
    sources, source = _coded((*rows.sources, *(UPLOADED for _ in gone)))
    return Version(
        scenario,
        backbone,
        tuple(classes),
        dict(FOLDING),
        labels,
        owners,
        sources,
        b"".join((*rows.ids, *(name for name, _ in gone))),
        label,
        owner,
        source,
        np.concatenate([roles, np.array([role for _, role in gone], np.uint8)]).astype(np.uint8).tobytes(),
        np.concatenate([groups, np.arange(count, total)]).astype("<u4").tobytes(),
        tuple(sorted(contributions.items())),
    )


def encode_version(version: Version) -> tuple[str, bytes]:
    """Its hash, and its content compressed: equal versions give equal hashes."""
    plain = msgspec.msgpack.encode(version, order="deterministic")
    return hashlib.blake2b(plain, digest_size=32).hexdigest(), zstandard.ZstdCompressor().compress(plain)


def decode_version(content: bytes, name: str) -> Version:
    """The version of this hash.

    Raises:
        EnvironmentFault: the content is not what the hash says: the disk has damaged it.
    """
    try:
        plain = decompress(content, CONTENT_BYTES_MAX)
        if hashlib.blake2b(plain, digest_size=32).hexdigest() != name:
            raise EnvironmentFault(
                f"the content of dataset version {name[:12]} is damaged", "Restore it from a backup."
            )
        return msgspec.msgpack.decode(plain, type=Version)
    except (WireError, msgspec.DecodeError) as error:
        raise EnvironmentFault(
            f"dataset version {name[:12]} cannot be read: {error}", "Restore it from a backup."
        ) from error


def counts(version: Version) -> dict[str, int]:
    """Pictures of each role; and the groups that more than one counts in, and the largest of them."""
    found = {role.name.lower(): int((version.roles == role).sum()) for role in Role}
    sizes = np.bincount(np.frombuffer(version.group, "<u4")) if len(version) else np.zeros(1, np.int64)
    return found | {"groups": int((sizes > 1).sum()), "largest_group": int(sizes.max())}


def balance(version: Version) -> dict[str, dict[str, dict[str, int]]]:
    """Owner -> label -> pictures that are learnt from, folded, and gold."""
    names = {Role.LEARNT: "learnt", Role.FOLDED: "folded", Role.GOLD: "gold", Role.GOLD_IN_DOUBT: "gold"}
    found: dict[str, dict[str, dict[str, int]]] = {}
    for owner, label, role in zip(version.owner_of(), version.label_of(), version.roles.tolist(), strict=True):
        if name := names.get(Role(role)):
            cell = found.setdefault(owner, {}).setdefault(label, {"learnt": 0, "folded": 0, "gold": 0})
            cell[name] += 1
    return {owner: dict(sorted(found[owner].items())) for owner in sorted(found)}


@dataclass(frozen=True, slots=True)
class Difference:
    """What is otherwise in a later version."""

    added: tuple[Member, ...]
    removed: tuple[Member, ...]
    relabelled: tuple[tuple[Member, str, str], ...]
    moved: tuple[tuple[Member, str, str], ...]
    """Pictures whose role changed."""
    gold_added: int
    contributions: tuple[str, ...]
    """Gateways whose statistics came, went, or are others."""
    rule_changed: bool


def compare_versions(before: Version, after: Version) -> Difference:
    """What changed from one version to another."""
    old, new = _by_member(before), _by_member(after)
    both = sorted(old.keys() & new.keys())
    sent_before, sent_after = dict(before.contributions), dict(after.contributions)
    return Difference(
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(old.keys() - new.keys())),
        tuple((name, old[name][0], new[name][0]) for name in both if old[name][0] != new[name][0]),
        tuple(
            (name, old[name][1].name.lower(), new[name][1].name.lower())
            for name in both
            if old[name][1] != new[name][1]
        ),
        len(_gold(after) - _gold(before)),
        tuple(sorted(n for n in sent_before.keys() | sent_after.keys() if sent_before.get(n) != sent_after.get(n))),
        before.folding != after.folding,
    )


def _by_member(version: Version) -> dict[Member, tuple[str, Role]]:
    rows = zip(version.members(), version.label_of(), version.roles.tolist(), strict=True)
    return {member: (label, Role(role)) for member, label, role in rows if role not in GONE}


def _gold(version: Version) -> frozenset[bytes]:
    return version.past().gold


def _coded(texts: Sequence[str]) -> tuple[tuple[str, ...], bytes]:
    """The different texts in order, and the place of each among them."""
    names = sorted(set(texts))
    index = {name: place for place, name in enumerate(names)}
    return tuple(names), np.array([index[text] for text in texts], "<u4").tobytes()
