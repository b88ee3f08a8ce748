"""A gateway's part in secure sums: its secrets, what it gives out and what it refuses. No I/O.

It does not trust the centre to follow the protocol where it can see that it does not: a cohort that is too small, a sum
that is asked for twice with other members, both secrets of one member. Secrets live in memory and for one session.
"""

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common import masking
from common.cohort import (
    COHORT_MAX,
    KeysAsked,
    KeysGiven,
    MaskedAsked,
    RevealAsked,
    Revealed,
    SharesAsked,
    SharesGiven,
)
from common.errors import RefusedError
from common.masking import SEED_BYTES, SHARE_BYTES, Words
from common.projection import Projection, describe, noise
from common.statistics import Array

SESSIONS_MAX = 4


class Labelled(Protocol):
    """Where labelled embeddings come from (`edge.contributor.Source`)."""

    def labelled(self, scenario: str, backbone: str) -> tuple[list[bytes], NDArray[np.float32], list[str]]: ...


@dataclass
class _Session:
    mask_seed: bytes
    seal_seed: bytes
    own_mask: bytes
    own_share: bytes = b""
    """Of the own mask; of the key nobody needs ours."""
    cohort: SharesAsked | None = None
    given: SharesGiven | None = None
    summed: MaskedAsked | None = None
    vector: Words = field(default_factory=lambda: np.zeros(0, np.uint64))
    revealed: RevealAsked | None = None


class Member:
    """Answers the four steps of any number of sessions, of which the last few are kept.

    Args:
        own: the node id of this gateway.
        cohort_min: a sum over fewer is refused, whatever the centre says.
        class_samples_min: a class of which there are fewer is left out; the larger of this and the centre's holds.
        draw: random bytes.
    """

    def __init__(
        self,
        own: int,
        source: Labelled,
        *,
        cohort_min: int,
        class_samples_min: int = 0,
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._own, self._source, self._draw = own, source, draw
        self._cohort_min, self._class_samples_min = cohort_min, class_samples_min
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def keys(self, asked: KeysAsked) -> KeysGiven:
        """Begin a session."""
        session = self._sessions.get(asked.session)
        if session is None:
            session = _Session(self._draw(SEED_BYTES), self._draw(SEED_BYTES), self._draw(SEED_BYTES))
            self._sessions[asked.session] = session
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        return KeysGiven(masking.public_of(session.mask_seed), masking.public_of(session.seal_seed))

    def shares(self, asked: SharesAsked) -> SharesGiven:
        """Share out both secrets.

        Raises:
            RefusedError: a cohort that this gateway does not want to be part of.
            WireError: keys that are none.
        """
        session = self._session(asked.session)
        if session.given is not None:
            _require(session.cohort == asked, "another cohort for the same session")
            return session.given
        members, threshold = asked.members, asked.threshold
        _require(self._cohort_min <= len(members) <= COHORT_MAX, f"a cohort of {len(members)} members")
        _require(
            max(self._cohort_min, len(members) // 2 + 1) <= threshold <= len(members), f"a threshold of {threshold}"
        )
        _require(members.get(self._own) == self.keys(KeysAsked(asked.session)), "a cohort without our keys")
        everyone = sorted(members)
        own_masks = masking.split_secret(session.own_mask, threshold, len(everyone))
        mask_keys = masking.split_secret(session.mask_seed, threshold, len(everyone))
        sealed = {
            node: masking.seal(session.seal_seed, members[node].seal_key, own_mask + mask_key, asked.session)
            for node, own_mask, mask_key in zip(everyone, own_masks, mask_keys, strict=True)
            if node != self._own
        }
        session.own_share = own_masks[everyone.index(self._own)]
        session.cohort, session.given = asked, SharesGiven(sealed, masking.commitment(session.own_mask))
        return session.given

    def masked(self, asked: MaskedAsked, projections: Mapping[str, Projection]) -> Words:
        """The vector under its masks. Asked again, the same; with other members, nothing: two sums over different
        members would differ by what one of them sent.

        Raises:
            RefusedError: fewer members than the threshold, or a second and different question.
            BoundError: a value too large for the sum.
        """
        session = self._session(asked.session)
        cohort = _begun(session)
        if session.summed is not None:
            _require(session.summed == asked, "another sum for the same session")
            return session.vector
        others = asked.sealed.keys()
        _require(others <= cohort.members.keys() - {self._own}, "a sum with a stranger")
        _require(len(others) + 1 >= cohort.threshold, f"a sum over {len(others) + 1} members")
        described = [
            self._describe(asked, scenario, projections[scenario], cohort.threshold)
            for scenario in sorted(asked.scenarios)
        ]
        words = masking.to_words(np.concatenate(described), len(cohort.members))
        peers = {node: cohort.members[node].mask_key for node in others}
        session.vector = masking.masked(words, self._own, session.mask_seed, session.own_mask, peers, asked.session)
        session.summed = asked
        return session.vector

    def reveal(self, asked: RevealAsked) -> Revealed:
        """Shares of the own masks of those that answered and of the keys of those that did not.

        Raises:
            RefusedError: too few answered, a second and different question, or both secrets of a member.
            WireError: a share that does not open.
        """
        session = self._session(asked.session)
        cohort = _begun(session)
        if session.summed is None:
            raise RefusedError("shares are asked for before there is a sum")
        _require(session.revealed in (None, asked), "other shares of the same session")
        answered, silent = set(asked.answered), set(asked.silent)
        _require(not answered & silent, "both secrets of one member")
        _require(answered | silent == {*session.summed.sealed, self._own}, "shares of another sum")
        _require(self._own in answered and len(answered) >= cohort.threshold, f"a sum over {len(answered)} members")
        opened = {
            node: masking.unseal(session.seal_seed, cohort.members[node].seal_key, sealed, asked.session)
            for node, sealed in session.summed.sealed.items()
        }
        session.revealed = asked
        own_masks = {node: opened[node][:SHARE_BYTES] for node in answered - {self._own}}
        return Revealed(
            {**own_masks, self._own: session.own_share}, {node: opened[node][SHARE_BYTES:] for node in silent}
        )

    def _describe(self, asked: MaskedAsked, scenario: str, projection: Projection, contributors: int) -> Array:
        """What is told of a scenario: samples that the centre does not hold, of classes with enough of them.

        With noise all classes are told: whether one is would depend on a single sample, and the noise covers no such
        leap.
        """
        classes, held = asked.scenarios[scenario], asked.labels.get(scenario, {})
        names, embeddings, labels = self._source.labelled(scenario, asked.backbone)
        known = [row for row, name in enumerate(names) if labels[row] in classes and name.hex() not in held]
        multiplier = asked.multipliers.get(scenario, 0.0)
        bound = 0 if multiplier > 0 else max(asked.class_samples_min, self._class_samples_min)
        rows = [known[place] for place in enough([labels[row] for row in known], bound)]
        told = [labels[row] for row in rows]
        chosen = (
            embeddings[np.array(rows, dtype=np.int64)] if rows else np.zeros((0, len(projection.origin)), np.float32)
        )
        described = describe(projection, classes, chosen, told, clip=multiplier > 0)
        if multiplier > 0:
            seed = self._draw(SEED_BYTES)
            described = described + noise(len(classes), projection.width, multiplier, contributors, seed)
        return described

    def _session(self, name: bytes) -> _Session:
        if name not in self._sessions:
            raise RefusedError("a secure sum goes on that was never begun here", "This gateway was started anew.")
        return self._sessions[name]


def enough(labels: Sequence[str], class_samples_min: int) -> list[int]:
    """The places of labels that come so often."""
    often = Counter(labels)
    return [place for place, label in enumerate(labels) if often[label] >= class_samples_min]


def _begun(session: _Session) -> SharesAsked:
    if session.cohort is None:
        raise RefusedError("a vector is asked for before the cohort is known")
    return session.cohort


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise RefusedError(f"refused: {what}")
