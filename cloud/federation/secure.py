"""The centre's side of secure sums (`common.cohort`): it relays keys and shares, adds what it cannot read, and takes
the masks off the sums.

Runs on any Grid. The gateways that answer are dealt into cohorts at random, and each cohort is a sum of its own: a
member makes as many masks as its cohort has members, and a cohort that fails takes nobody with it. In memory is one
vector per cohort. It refuses no member's vector by itself, since it reads none: a sum that cannot be true is dropped as
a whole.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from flwr.serverapp import Grid

from common import cohort, masking
from common.cohort import (
    COHORT_MAX,
    KeysAsked,
    KeysGiven,
    MaskedAsked,
    RevealAsked,
    Revealed,
    SharesAsked,
    SharesGiven,
    pack_step,
    read_step,
)
from common.contribution import Labels
from common.errors import HeadframeError, WireError
from common.flower import Message, RecordDict, release
from common.masking import Words
from common.projection import Projection, size_of
from common.statistics import Array

log = logging.getLogger(__name__)

T = TypeVar("T")
SESSION_BYTES = 16
_WHOLE = 1e-6  # how far a count may be from a whole number
_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Question:
    """What is summed."""

    backbone: str
    scenarios: Mapping[str, tuple[str, ...]]
    projections: Mapping[str, Projection]
    labels_for: Callable[[int], Labels] = lambda _: {}
    """Node id -> the labels of its samples that the centre holds, and counts itself."""
    class_samples_min: int = 0
    multipliers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CohortRules:
    """How many gateways a sum is made of."""

    size: int = 16
    minimum: int = 5

    def threshold(self, members: int) -> int:
        """Of so many, who must answer: two thirds, so that the centre cannot open two sums by telling halves apart."""
        return max(self.minimum, 2 * members // 3 + 1)

    def deal(self, nodes: Sequence[int]) -> list[list[int]]:
        """Cohorts of about `size` at random; none where there are too few."""
        if len(nodes) < self.minimum:
            return []
        shuffled = list(nodes)
        secrets.SystemRandom().shuffle(shuffled)
        size = min(max(self.size, self.minimum), COHORT_MAX)
        count = max(1, min(-(-len(nodes) // size), len(nodes) // self.minimum))
        return [shuffled[number::count] for number in range(count)]


@dataclass(frozen=True, slots=True)
class CohortSum:
    """What a cohort told together."""

    members: tuple[int, ...]
    """Node ids of those whose vectors are in it."""
    described: dict[str, Array]
    """scenario -> `common.projection.describe` of all their samples."""


@dataclass
class _Cohort:
    keys: dict[int, KeysGiven]
    threshold: int
    shares: dict[int, SharesGiven] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    revealed: dict[int, Revealed] = field(default_factory=dict)
    total: Words = field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def places(self) -> dict[int, int]:
        """Node id -> the place of its shares."""
        return {node: place for place, node in enumerate(sorted(self.keys), 1)}


class SecureSums:
    """One session: `run` it once."""

    def __init__(self, grid: Grid, question: Question, rules: CohortRules, step_s: float) -> None:
        self._grid, self._question, self._rules, self._step_s = grid, question, rules, step_s
        self._session = secrets.token_bytes(SESSION_BYTES)
        self._size = cohort.vector_size(question.scenarios, question.projections)
        self._cohort_of: dict[int, _Cohort] = {}
        self.counters: Counter[str] = Counter()

    def run(self, nodes: Sequence[int]) -> list[CohortSum]:
        """Ask these nodes; the sums of the cohorts that came to an end. Each of four steps takes `step_s` at most."""
        self.counters["asked"] = len(nodes)
        cohorts = self._deal(nodes)
        for step in (self._share, self._collect, self._reveal):
            step(cohorts)
            cohorts = [made for made in cohorts if self._goes_on(made)]
        found = [self._open(made) for made in cohorts]
        sums = [made for made in found if made is not None]
        self.counters["summed"] = sum(len(made.members) for made in sums)
        self.counters["cohorts"] = len(sums)
        return sums

    def _deal(self, nodes: Sequence[int]) -> list[_Cohort]:
        asked = pack_step(KeysAsked(self._session))
        keys = dict(self._ask(cohort.KEYS, dict.fromkeys(nodes, asked), lambda c, _: read_step(c, KeysGiven)))
        made = []
        for members in self._rules.deal(sorted(keys)):
            made.append(_Cohort({node: keys[node] for node in members}, self._rules.threshold(len(members))))
            self._cohort_of |= dict.fromkeys(members, made[-1])
        return made

    def _share(self, cohorts: Sequence[_Cohort]) -> None:
        asked: dict[int, RecordDict] = {}
        for made in cohorts:
            step = pack_step(SharesAsked(self._session, made.keys, made.threshold))
            asked |= dict.fromkeys(made.keys, step)
        for node, given in self._ask(cohort.SHARES, asked, self._read_shares):
            own = self._cohort_of[node]
            own.shares[node] = given
            own.answered.add(node)

    def _read_shares(self, content: RecordDict, node: int) -> SharesGiven:
        given = read_step(content, SharesGiven)
        if given.sealed.keys() != self._cohort_of[node].keys.keys() - {node}:
            raise WireError("shares for another cohort")
        return given

    def _collect(self, cohorts: Sequence[_Cohort]) -> None:
        question, projections = self._question, cohort.pack_projections(self._question.projections)
        asked: dict[int, RecordDict] = {}
        for made in cohorts:
            made.total, made.answered = np.zeros(self._size, np.uint64), set()
            for node in made.shares:
                labels = question.labels_for(node)
                content = pack_step(
                    MaskedAsked(
                        self._session,
                        {other: given.sealed[node] for other, given in made.shares.items() if other != node},
                        question.backbone,
                        dict(question.scenarios),
                        {name: {key.hex(): label for key, label in labels.get(name, {}).items()} for name in labels},
                        question.class_samples_min,
                        dict(question.multipliers),
                    )
                )
                content.update(projections)
                asked[node] = content
        for node, words in self._ask(cohort.MASKED, asked, lambda c, _: cohort.read_vector(c, self._size)):
            own = self._cohort_of[node]
            own.total += words
            own.answered.add(node)

    def _reveal(self, cohorts: Sequence[_Cohort]) -> None:
        asked: dict[int, RecordDict] = {}
        for made in cohorts:
            answered = tuple(sorted(made.answered))
            silent = tuple(sorted(made.shares.keys() - made.answered))
            self.counters["silent"] += len(silent)
            asked |= dict.fromkeys(answered, pack_step(RevealAsked(self._session, answered, silent)))
        for node, given in self._ask(cohort.REVEAL, asked, self._read_revealed):
            self._cohort_of[node].revealed[node] = given

    def _read_revealed(self, content: RecordDict, node: int) -> Revealed:
        given, own = read_step(content, Revealed), self._cohort_of[node]
        if given.own_masks.keys() != own.answered or given.mask_keys.keys() != own.shares.keys() - own.answered:
            raise WireError("shares of other members than were asked for")
        return given

    def _goes_on(self, made: _Cohort) -> bool:
        enough = len(made.revealed if made.revealed else made.answered) >= made.threshold
        self.counters["cohorts failed"] += not enough
        return enough

    def _open(self, made: _Cohort) -> CohortSum | None:
        """The sum without its masks; None when a share was wrong or it cannot be true."""
        places, total = made.places, made.total
        holders = sorted(made.revealed)[: made.threshold]
        try:
            for node in made.answered:
                shares = {places[holder]: made.revealed[holder].own_masks[node] for holder in holders}
                own_mask = masking.join_secret(shares)
                if masking.commitment(own_mask) != made.shares[node].own_mask:
                    raise WireError(f"the shares of node {node} give another secret")
                total -= masking.keystream(own_mask, self._size)
            for node in made.shares.keys() - made.answered:
                shares = {places[holder]: made.revealed[holder].mask_keys[node] for holder in holders}
                seed = masking.join_secret(shares)
                if masking.public_of(seed) != made.keys[node].mask_key:
                    raise WireError(f"the shares of node {node} give another key")
                for other in made.answered:  # what `other` added on account of `node`, whose half never came
                    public = made.keys[other].mask_key
                    total += masking.pair_mask(node, other, seed, public, self._session, self._size)
            described = self._cut(masking.from_words(total))
        except (HeadframeError, ValueError) as error:  # ValueError: a share of another length
            log.warning("a secure sum over %d gateways was dropped: %s", len(made.answered), error)
            self.counters["sums refused"] += 1
            return None
        return CohortSum(tuple(sorted(made.answered)), described)

    def _cut(self, numbers: Array) -> dict[str, Array]:
        """The scenarios of a sum.

        Raises:
            WireError: without noise, counts that are not whole, or a moment that the sums do not allow.
        """
        described, at = {}, 0
        for scenario in sorted(self._question.scenarios):
            classes, width = len(self._question.scenarios[scenario]), self._question.projections[scenario].width
            described[scenario] = numbers[at : at + size_of(classes, width)]
            at += size_of(classes, width)
            if not self._question.multipliers.get(scenario):
                _check(described[scenario], classes, width)
        return described

    def _ask(
        self, step: str, asked: Mapping[int, RecordDict], read: Callable[[RecordDict, int], T]
    ) -> Iterator[tuple[int, T]]:
        """The good answers to a step, as they come."""
        messages = [Message(content, node, step, group_id="1") for node, content in asked.items()]
        for reply in self._grid.send_and_receive(messages, timeout=self._step_s) if messages else ():
            node = reply.metadata.src_node_id
            if reply.has_error():
                self.counters["refused"] += 1
                log.warning("node %d takes no part in %s: %s", node, step, reply.error.reason)
                continue
            try:
                found = read(reply.content, node)
            except HeadframeError as error:
                self.counters["malformed"] += 1
                log.warning("the answer of node %d to %s was refused: %s", node, step, error)
                continue
            finally:
                release(reply)
            yield node, found


def _check(described: Array, classes: int, width: int) -> None:
    counts = described[:classes]
    sums = described[classes : classes + classes * width].reshape(classes, width)
    moment = described[classes + classes * width : -1]
    diagonal = np.concatenate([[0], np.cumsum(np.arange(width, 1, -1))])
    if (counts < -_WHOLE).any() or (np.abs(counts - np.round(counts)) > _WHOLE).any():
        raise WireError("counts are not whole, or negative")
    power = np.divide((sums**2).sum(axis=1), counts, out=np.zeros(classes), where=counts > 0.5).sum()
    if moment[diagonal].sum() < power * (1 - _SLACK) - _SLACK or described[-1] < -_SLACK:
        raise WireError("the second moment is smaller than the sums allow")
