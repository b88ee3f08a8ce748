"""Sums that the centre can read of contributions that it cannot: exact, whoever falls silent, and refused where a
member can see that it is deceived.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.serverapp import Grid
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.federation.accounting import epsilon_of, multiplier_for
from cloud.federation.secure import CohortRules, CohortSum, Question, SecureSums
from common import cohort
from common.cohort import KeysAsked, KeysGiven, MaskedAsked, RevealAsked, SharesAsked
from common.contribution import pack_request, unpack_reply, unpack_request
from common.errors import HeadframeError, OperatorError, RefusedError
from common.flower import (
    APP_FAILED,
    Context,
    Error,
    Message,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    name_message,
    take_identity,
)
from common.ids import sample_id
from common.partition import Partition
from common.projection import Projection, describe, lift
from common.statistics import Statistics
from edge.contributor import Policy, answer, make_client_app
from edge.member import Member

CLASSES, D, BACKBONE = ("normal", "tear", "wood"), 10, "b" * 64
FULL = Projection(np.full(D, 0.5), np.eye(D), 4.0)
SHARING = Policy(shares_updates=True, cohort_min=3)
Break = Callable[[str, int], bool]


def partition(node: int, count: int = 12) -> Partition:
    rng = np.random.default_rng(node)
    truth = rng.integers(0, 3, count)
    ids = tuple(sample_id(b"", f"g-{node}", "c", row) for row in range(count))
    rows = (rng.normal(size=(count, D)) + truth[:, None]).astype(np.float32)
    return Partition(ids, rows, tuple(CLASSES[k] for k in truth), "belt", BACKBONE)


@dataclass
class Fleet:
    """A grid whose nodes run our ClientApp; messages pass as bytes. Some fall silent at some step."""

    nodes: Mapping[int, Policy]
    silent: Break = lambda step, node: False
    seen: list[tuple[int, RecordDict]] = field(default_factory=list)
    """Every vector that the centre saw."""
    tamper: Callable[[str, Message], Message] = lambda step, reply: reply

    def __post_init__(self) -> None:
        take_identity(1)
        self.partitions = {node: partition(node) for node in self.nodes}
        self.apps = {node: make_client_app(self.partitions[node], policy, node) for node, policy in self.nodes.items()}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for number, message in enumerate(messages):
            step, node = message.metadata.message_type, message.metadata.dst_node_id
            name_message(message, f"{step}-{number}")
            request = message_from_bytes(message_to_bytes(message))
            try:
                reply = self.apps[node](request, Context(1, node, {}, RecordDict(), {}))
            except HeadframeError as error:
                reply = Message(Error(APP_FAILED, str(error)), reply_to=request)
            reply.metadata.__dict__["_src_node_id"] = node
            if self.silent(step, node):
                continue
            if step == cohort.MASKED and not reply.has_error():
                self.seen.append((node, reply.content))
            yield self.tamper(step, message_from_bytes(message_to_bytes(reply)))

    def total(self, nodes: Iterable[int]) -> Statistics:
        parts = [self.partitions[node] for node in nodes]
        x = np.concatenate([part.embeddings for part in parts])
        return Statistics.of(CLASSES, x, [label for part in parts for label in part.labels])


def question(**more: object) -> Question:
    return Question(BACKBONE, {"belt": CLASSES}, {"belt": FULL}, **more)  # type: ignore[arg-type]


def run(fleet: Fleet, rules: CohortRules, asked: Question | None = None) -> tuple[list[CohortSum], SecureSums]:
    assert isinstance(fleet, Fleet)
    grid: Grid = fleet  # type: ignore[assignment]
    sums = SecureSums(grid, asked or question(), rules, 1.0)
    return sums.run(sorted(fleet.nodes)), sums


def same(found: CohortSum, expected: Statistics) -> None:
    opened = lift(found.described["belt"], FULL, CLASSES).statistics()
    np.testing.assert_array_equal(opened.counts, expected.counts)
    np.testing.assert_allclose(opened.sums, expected.sums, atol=1e-7)
    np.testing.assert_allclose(opened.moment, expected.moment, atol=1e-6)


def test_every_cohort_is_the_sum_of_its_members_and_no_vector_is_anybodys_statistics() -> None:
    fleet = Fleet(dict.fromkeys(range(100, 117), SHARING))
    found, sums = run(fleet, CohortRules(size=6, minimum=3))
    assert sorted(node for made in found for node in made.members) == sorted(fleet.nodes)
    assert [len(made.members) for made in found] == [6, 6, 5]
    for made in found:
        same(made, fleet.total(made.members))
    assert sums.counters["summed"] == 17
    for node, content in fleet.seen:
        words = content["vector"]["words"].numpy()
        own = describe(FULL, CLASSES, fleet.partitions[node].embeddings, list(fleet.partitions[node].labels))
        assert np.abs(words.view(np.int64) / 2.0**32 - own).min() > 1, "masked"


@pytest.mark.parametrize("step", [cohort.KEYS, cohort.SHARES, cohort.MASKED, cohort.REVEAL])
def test_whoever_falls_silent_is_not_in_the_sum_and_hurts_nobody(step: str) -> None:
    gone = {103, 107}
    fleet = Fleet(dict.fromkeys(range(100, 109), SHARING), lambda at, node: at == step and node in gone)
    (made,), _ = run(fleet, CohortRules(size=16, minimum=3))
    counted = set(fleet.nodes) - (gone if step != cohort.REVEAL else set())
    assert set(made.members) == counted
    same(made, fleet.total(counted))


@settings(max_examples=25)
@given(st.integers(3, 8), st.data())
def test_whoever_falls_silent_when_the_sum_is_exact_or_is_not_opened(count: int, data: st.DataObject) -> None:
    steps = (cohort.KEYS, cohort.SHARES, cohort.MASKED, cohort.REVEAL)
    gone = {node: data.draw(st.sampled_from((*steps, "never", "never"))) for node in range(100, 100 + count)}
    fleet = Fleet(dict.fromkeys(gone, SHARING), lambda at, node: at == gone[node])
    rules = CohortRules(size=16, minimum=3)
    found, _ = run(fleet, rules)
    left = [{node for node, when in gone.items() if when not in steps[:number]} for number in range(5)]
    threshold = rules.threshold(len(left[1]))
    if len(left[1]) < 3 or any(len(nodes) < threshold for nodes in left[2:]):
        assert found == []
    else:
        (made,) = found
        assert set(made.members) == left[3]
        same(made, fleet.total(left[3]))


@pytest.mark.parametrize("step", [cohort.KEYS, cohort.SHARES, cohort.MASKED, cohort.REVEAL])
def test_with_too_few_nothing_is_opened(step: str) -> None:
    fleet = Fleet(dict.fromkeys(range(100, 109), SHARING), lambda at, node: at == step and node > 102)
    found, sums = run(fleet, CohortRules(size=16, minimum=4))
    assert found == []
    assert sums.counters["summed"] == 0


def test_a_member_with_wrong_shares_or_an_impossible_vector_costs_its_cohort_and_is_noticed() -> None:
    def wrong_share(step: str, reply: Message) -> Message:
        if step == cohort.REVEAL and reply.metadata.src_node_id == 101:
            given = cohort.read_step(reply.content, cohort.Revealed)
            broken = {node: bytes(16) for node in given.own_masks}
            reply.content["step"] = cohort.pack_step(cohort.Revealed(broken, given.mask_keys))["step"]
        return reply

    def wrong_vector(step: str, reply: Message) -> Message:
        if step == cohort.MASKED and reply.metadata.src_node_id == 101:
            words = reply.content["vector"]["words"].numpy().copy()
            words[0] += np.uint64(1 << 31)
            cohort.put_vector(reply.content, words)
        return reply

    for tamper in (wrong_share, wrong_vector):
        fleet = Fleet(dict.fromkeys(range(100, 106), SHARING), tamper=tamper)
        found, sums = run(fleet, CohortRules(size=16, minimum=3))
        assert found == []
        assert sums.counters["sums refused"] == 1


def test_samples_the_centre_holds_and_rare_classes_are_not_told() -> None:
    fleet = Fleet(dict.fromkeys(range(100, 104), SHARING))
    held = fleet.partitions[100].ids[:5]
    labels = {"belt": dict.fromkeys(held, "tear")}
    asked = question(labels_for=lambda node: labels if node == 100 else {}, class_samples_min=4)
    (made,), _ = run(fleet, CohortRules(size=16, minimum=3), asked)
    expected = np.zeros(3)
    for node, part in fleet.partitions.items():
        own = [label for name, label in zip(part.ids, part.labels, strict=True) if node != 100 or name not in held]
        counts = np.array([own.count(name) for name in CLASSES])
        expected += counts * (counts >= 4)
    np.testing.assert_allclose(made.described["belt"][:3], expected, atol=1e-6)


def test_sites_that_share_no_updates_or_want_more_company_take_no_part() -> None:
    shy = Policy(shares_updates=True, cohort_min=9)
    fleet = Fleet({**dict.fromkeys(range(100, 106), SHARING), 200: Policy(), 201: shy})
    (made,), sums = run(fleet, CohortRules(size=16, minimum=3))
    assert set(made.members) == set(range(100, 106))
    assert sums.counters["refused"] == 2


def test_in_the_clear_a_site_tells_what_its_policy_lets_it() -> None:
    take_identity(1)
    own = partition(103, 13)
    content = pack_request(BACKBONE, {"belt": CLASSES}, {}, class_samples_min=2)
    asked = Message(content, 100, "train", group_id="1")
    request = unpack_request(content)

    def told(policy: Policy) -> dict[str, int]:
        found = unpack_reply(answer(asked, own, policy).content, request)
        return {n: int(c) for n, c in zip(CLASSES, found["belt"][0].counts, strict=True)} if found else {}

    counts = {name: own.labels.count(name) for name in CLASSES}
    rare = min(counts, key=counts.__getitem__)
    assert told(Policy(shares_updates=True)) == counts, "the centre asks for two of each, and there are"
    strict = Policy(shares_updates=True, class_samples_min=counts[rare] + 1)
    assert told(strict) == {name: count if count > counts[rare] else 0 for name, count in counts.items()}
    assert told(Policy(shares_updates=True, masked_only=True)) == {}
    assert told(Policy()) == {}


def test_noise_is_in_the_sum_and_in_nobodys_knowledge() -> None:
    fleet = Fleet(dict.fromkeys(range(100, 112), SHARING))
    (made,), _ = run(fleet, CohortRules(size=16, minimum=3), question(multipliers={"belt": 2.0}))
    exact = Fleet(fleet.nodes)
    (clean,), _ = run(exact, CohortRules(size=16, minimum=3))
    off = made.described["belt"] - clean.described["belt"]
    width = 3 * D
    expected = 2.0 * np.sqrt(12 / CohortRules(16, 3).threshold(12)) / np.sqrt(0.45)
    assert 0.6 * expected < off[3 : 3 + width].std() < 1.5 * expected


def test_the_accountant_composes_rounds() -> None:
    pytest.importorskip("dp_accounting")
    one = multiplier_for(4.0, 1e-6)
    assert epsilon_of([one], 1e-6) == pytest.approx(4.0, abs=1e-3)
    assert epsilon_of([2 * one] * 4, 1e-6) == pytest.approx(4.0, abs=1e-3)
    assert 4.0 < epsilon_of([one, one], 1e-6) < 8.0
    assert epsilon_of([], 1e-6) == 0.0


def test_without_the_accountant_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(OperatorError, match=r"headframe\[privacy\]"):
        multiplier_for(1.0, 1e-6)


class Deceived:
    """One member in a session whose other members the test plays."""

    def __init__(self) -> None:
        self.member = Member(100, partition(100), cohort_min=3)
        self.others = {node: Member(node, partition(node), cohort_min=3) for node in range(101, 105)}
        session = KeysAsked(b"s" * 16)
        keys = {node: member.keys(session) for node, member in {100: self.member, **self.others}.items()}
        self.cohort = SharesAsked(session.session, keys, 4)

    def sealed(self) -> dict[int, bytes]:
        given = {node: other.shares(self.cohort) for node, other in self.others.items()}
        return {node: shares.sealed[100] for node, shares in given.items()}

    def masked(self, sealed: dict[int, bytes]) -> np.ndarray:
        asked = MaskedAsked(b"s" * 16, sealed, BACKBONE, {"belt": CLASSES}, {})
        return self.member.masked(asked, {"belt": FULL})


def test_a_member_refuses_what_would_open_its_vector() -> None:
    play = Deceived()
    member, cohort_of = play.member, play.cohort
    keys = dict(cohort_of.members)
    for bad in (
        SharesAsked(b"s" * 16, {node: keys[node] for node in (100, 101)}, 2),
        SharesAsked(b"s" * 16, keys, 2),
        SharesAsked(b"s" * 16, {**keys, 100: KeysGiven(b"x" * 32, b"y" * 32)}, 4),
        SharesAsked(b"t" * 16, keys, 4),
    ):
        with pytest.raises(RefusedError):
            member.shares(bad)
    member.shares(cohort_of)
    with pytest.raises(RefusedError, match="another cohort"):
        member.shares(SharesAsked(b"s" * 16, {**keys, 999: keys[101]}, 4))
    sealed = play.sealed()
    with pytest.raises(RefusedError, match="a sum over 3 members"):
        play.masked({node: sealed[node] for node in (101, 102)})
    first = play.masked(sealed)
    np.testing.assert_array_equal(first, play.masked(sealed))
    with pytest.raises(RefusedError, match="another sum"):
        play.masked({node: sealed[node] for node in (101, 102, 103)})
    for answered, silent in (
        ((100, 101, 102, 103, 104), (104,)),
        ((100, 101, 102), (103, 104)),
        ((101, 102, 103, 104), (100,)),
        ((100, 101, 102, 103, 104), (999,)),
    ):
        with pytest.raises(RefusedError):
            member.reveal(RevealAsked(b"s" * 16, answered, silent))
    member.reveal(RevealAsked(b"s" * 16, (100, 101, 102, 103), (104,)))
    with pytest.raises(RefusedError, match="other shares"):
        member.reveal(RevealAsked(b"s" * 16, (100, 101, 102, 103, 104), ()))
    with pytest.raises(RefusedError, match="never begun"):
        member.reveal(RevealAsked(b"u" * 16, (100,), ()))
