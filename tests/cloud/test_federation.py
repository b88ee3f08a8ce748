"""Rounds over a real broker: federated equals centralised, and what is late, repeated or wrong is told apart."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud.federation.grid import MqttGrid, Replies
from cloud.federation.server_app import RoundResult, run_round
from cloud.learning.heads import solve_lda
from common import codec, topics
from common.chunks import split
from common.errors import BoundError, EnvironmentFault, WireError
from common.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    node_id_of,
    release,
    take_identity,
)
from common.frames import Courier, Frame, frames
from common.ids import sample_id
from common.messages import Chunk, FlowerFrame, Sample, Scores
from common.mqtt import Broker, MqttLink
from common.statistics import Statistics
from edge.contributor import Policy, make_client_app
from edge.exemplars import Exemplars
from edge.learner import Learner

BACKBONE = "b" * 64
CLASSES = ("normal", "tear", "wood")
SCENARIOS = {"belt": CLASSES}
DIMENSION = 16
Labels = dict[str, dict[str, dict[bytes, str]]]


@dataclass
class Site:
    """A gateway's learner on a link of its own, and the samples it remembers."""

    gateway_id: str
    broker: Broker
    folder: Path
    share: str = "updates"
    replies: list[bytes] = field(default_factory=list)
    on_request: Callable[[bytes], bool] | None = None
    """May swallow a request (returns False)."""

    def __post_init__(self) -> None:
        self.exemplars = Exemplars.open(self.folder / f"{self.gateway_id}.db")
        policy = Policy(shares_updates=self.share in ("updates", "both"))
        self.learner = Learner(
            self.gateway_id, make_client_app(self.exemplars, policy, node_id_of(self.gateway_id)), self.publish
        )
        self.link = MqttLink(self.broker, self.gateway_id, (topics.down_filter(self.gateway_id),), self._on)
        self.link.start()
        self.link.wait_connected(15)
        self.learner.start()

    def remember(self, seed: int, count: int) -> tuple[np.ndarray, list[str], dict[bytes, str]]:
        """Samples with labels; returns embeddings (as stored), labels, and labels by id."""
        rng = np.random.default_rng(seed)
        labels = [CLASSES[i] for i in rng.integers(0, 3, count)]
        rows, by_id = [], {}
        for number, label in enumerate(labels):
            embedding = (rng.normal(size=DIMENSION) + 2 * CLASSES.index(label)).astype("<f2")
            name = sample_id(b"", self.gateway_id, "c", seed * 1000 + number)
            self.exemplars.remember(remembered(name, embedding), keep_picture=False)
            rows.append(embedding.astype(np.float64))
            by_id[name] = label
        return np.array(rows), labels, by_id

    def send(self, data: bytes) -> bool:
        return all(self.publish(frame) for frame in frames(data))

    def publish(self, frame: Frame) -> bool:
        if isinstance(frame, FlowerFrame):
            self.replies.append(frame.message)
        return self.link.publish(topics.up(self.gateway_id, "flower"), codec.encode(frame))

    def stop(self) -> None:
        self.learner.stop(5)
        self.link.stop()
        self.exemplars.close()

    def _on(self, _topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        assert isinstance(message, FlowerFrame | Chunk)
        if isinstance(message, Chunk) or self.on_request is None or self.on_request(message.message):
            self.learner.on_frame(message)


def remembered(name: bytes, embedding: np.ndarray) -> Sample:
    return Sample(
        sample_id=name,
        gateway_id="g",
        site_id="s",
        camera_id="c",
        captured_at_ns=0,
        release_id="r",
        backbone=BACKBONE,
        width_px=1,
        height_px=1,
        jpeg=b"",
        embedding=embedding.tobytes(),
        predictions=(),
        scores=Scores(0, 0, 0, 0, 0),
        reason="novel",
    )


class Fleet:
    """A grid at the centre and sites around a real broker."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.sites: dict[str, Site] = {}
        self.link = MqttLink(broker, "centre", (topics.up_filter(),), self._on, window=256)
        self.link.start()
        self.link.wait_connected(15)
        self.grid = MqttGrid(Courier(self._publish).send, lambda: sorted(self.sites))

    def add(self, gateway_id: str, share: str = "updates") -> Site:
        self.sites[gateway_id] = Site(gateway_id, self.broker, self.folder, share)
        return self.sites[gateway_id]

    def round(self, labels: Labels | None = None, deadline_s: float = 20.0, quorum: float = 1.0) -> RoundResult:
        given = labels or {}
        return run_round(
            self.grid, BACKBONE, SCENARIOS, lambda g: given.get(g, {}), deadline_s=deadline_s, quorum=quorum
        )

    def stop(self) -> None:
        for site in self.sites.values():
            site.stop()
        self.link.stop()

    def _publish(self, gateway_id: str, frame: Frame) -> bool:
        return self.link.publish(topics.down(gateway_id, "flower"), codec.encode(frame))

    def _on(self, topic: str, payload: bytes) -> None:
        gateway_id, _ = topics.parse_up(topic)
        message = codec.decode(payload)
        if isinstance(message, Chunk):
            self.grid.on_chunk(gateway_id, message)
        elif isinstance(message, FlowerFrame):
            self.grid.on_frame(gateway_id, message.message)


@pytest.fixture
def fleet(broker: Broker, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(broker, tmp_path)
    yield made
    made.stop()


def wait_until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def total(result: RoundResult) -> Statistics:
    found = Statistics.empty(CLASSES, DIMENSION)
    for parts in result.contributions.values():
        found = found + parts["belt"][0].statistics()
    return found


def test_the_federated_head_is_the_centralised_one(fleet: Fleet) -> None:
    everything: list[tuple[np.ndarray, list[str], dict[bytes, str]]] = []
    labels: Labels = {}
    for number in range(4):
        site = fleet.add(f"north-{number}")
        everything.append(site.remember(number, 20 + 5 * number))
        labels[site.gateway_id] = {"belt": everything[-1][2]}
    result = fleet.round(labels)
    x = np.concatenate([rows for rows, _, _ in everything])
    truth = [label for _, given, _ in everything for label in given]
    central = Statistics.of(CLASSES, x, truth)
    federated = total(result)
    for name in ("counts", "sums", "moment"):
        np.testing.assert_allclose(getattr(federated, name), getattr(central, name), rtol=1e-9, atol=1e-9)
    one, other = solve_lda(federated, 0.3), solve_lda(central, 0.3)
    assert one.predict(x) == other.predict(x)
    covered = {name for parts in result.contributions.values() for name in parts["belt"][1]}
    assert covered == {name for _, _, given in everything for name in given}


def test_a_round_that_is_repeated_says_the_same_and_a_label_taken_back_is_gone(fleet: Fleet) -> None:
    site = fleet.add("north-1")
    _, _, given = site.remember(1, 12)
    first = total(fleet.round({"north-1": {"belt": dict(given)}}))
    again = total(fleet.round({"north-1": {"belt": dict(given)}}))
    np.testing.assert_array_equal(first.moment, again.moment)
    taken = next(iter(given))
    fewer = fleet.round({"north-1": {"belt": {taken: ""}}})
    statistics, covered = fewer.contributions["north-1"]["belt"]
    assert statistics.total == 11
    assert taken not in covered


def test_what_a_site_shares_is_its_own_policy(fleet: Fleet) -> None:
    labels: Labels = {}
    for share in ("samples", "updates", "both"):
        site = fleet.add(f"site-{share}", share)
        labels[site.gateway_id] = {"belt": site.remember(3, 6)[2]}
    result = fleet.round(labels)
    assert result.counters["folded"] == 3, "all answer"
    assert set(result.contributions) == {"site-updates", "site-both"}
    empty = message_from_bytes(fleet.sites["site-samples"].replies[0])
    assert not any(key.startswith("statistics/") for key in empty.content)
    assert fleet.sites["site-samples"].exemplars.counts()["labels"] == 0


def test_late_repeated_stale_malformed_and_foreign_replies_are_told_apart(fleet: Fleet) -> None:
    good, late = fleet.add("good"), fleet.add("late")
    good.remember(1, 6)
    held: list[bytes] = []
    late.on_request = lambda data: held.append(data) is not None  # swallows it
    result = fleet.round(deadline_s=1.5, quorum=0.5)
    assert result.counters["folded"] == 1
    assert result.counters["unanswered"] == 1
    counters = fleet.grid.counters
    reply = late.learner.answer(held[0])
    assert reply is not None
    late.send(reply)
    wait_until(lambda: counters["late"] == 1)
    good.send(good.replies[0])
    wait_until(lambda: counters["duplicate"] == 1)
    late.send(good.replies[0])
    wait_until(lambda: counters["foreign"] == 1)
    good.send(b"\xff no Flower message")
    wait_until(lambda: counters["malformed"] == 1)
    never_asked = message_from_bytes(good.replies[0])
    never_asked.metadata.__dict__["_reply_to_message_id"] = "0" * 32
    good.send(message_to_bytes(never_asked))
    wait_until(lambda: counters["stale"] == 1)
    assert counters["answered"] == 1


def test_a_reply_that_cannot_be_true_is_left_out_and_counted(fleet: Fleet) -> None:
    honest, liar = fleet.add("honest"), fleet.add("liar")
    _, _, given = honest.remember(1, 9)

    def lie(data: bytes) -> bool:
        request = message_from_bytes(data)
        content = RecordDict(
            {
                "statistics/belt": ArrayRecord(
                    {
                        "counts": Array(np.array([1e9, 0.0, 0.0])),
                        "sums": Array(np.full((3, DIMENSION), 1e9)),
                        "moment": Array(np.zeros(DIMENSION * (DIMENSION + 1) // 2)),
                    }
                ),
                "covered": ConfigRecord({"belt": b"", "classes/belt": list(CLASSES)}),
                "metrics": MetricRecord({"samples": 1}),
            }
        )
        reply = message_to_bytes(Message(content=content, reply_to=request))
        threading.Thread(target=liar.send, args=(reply,)).start()
        return False

    liar.on_request = lie
    result = fleet.round({"honest": {"belt": given}}, quorum=0.5)
    assert result.counters["refused"] == 1
    assert set(result.contributions) == {"honest"}


def test_too_few_answers_fail_the_round_with_a_sentence(fleet: Fleet) -> None:
    for name in ("one", "two"):
        fleet.add(name).on_request = lambda data: False
    with pytest.raises(EnvironmentFault, match="0 of 2 gateways answered in 1 s, the quorum is 50%"):
        fleet.round(deadline_s=1.0, quorum=0.5)


def large_reply(request: Message, megabytes: int) -> bytes:
    arrays = ArrayRecord({"w": Array(np.random.default_rng(0).integers(0, 255, megabytes << 20, dtype=np.uint8))})
    return message_to_bytes(Message(content=RecordDict({"arrays": arrays}), reply_to=request))


def ask(fleet: Fleet, gateway_id: str, timeout_s: float, content: RecordDict | None = None) -> list[Message]:
    list(fleet.grid.get_node_ids())
    message = Message(content or RecordDict(), node_id_of(gateway_id), "train", group_id="1")
    return list(fleet.grid.send_and_receive([message], timeout=timeout_s))


def test_a_reply_and_a_request_too_large_for_one_message_travel_in_chunks(fleet: Fleet) -> None:
    site = fleet.add("north-1")
    asked: list[bytes] = []

    def echo(message: Message, context: Context) -> Message:
        asked.append(message.content["arrays"]["w"].data)
        return message_from_bytes(large_reply(message, 66))

    site.learner._app = echo
    model = ArrayRecord({"w": Array(np.arange(66 << 20, dtype=np.uint8))})
    (reply,) = ask(fleet, "north-1", 60, RecordDict({"arrays": model}))
    assert bytes(asked[0]) == model["w"].data
    assert reply.content["arrays"]["w"].data == message_from_bytes(large_reply(reply, 66)).content["arrays"]["w"].data
    assert site.replies == [], "no frame carried it whole"
    assert not fleet.grid._joining.is_receiving("north-1", time.monotonic())


def test_chunks_that_were_not_asked_for_or_are_too_many_or_wrong_are_told_apart(fleet: Fleet) -> None:
    site = fleet.add("north-1")
    fleet.grid = MqttGrid(Courier(fleet._publish).send, lambda: ["north-1"], reply_bytes_max=3 << 20)
    counters = fleet.grid.counters
    held: list[Message] = []
    site.on_request = lambda data: held.append(message_from_bytes(data)) is not None  # swallows it
    asking = threading.Thread(target=ask, args=(fleet, "north-1", 60.0))
    asking.start()
    wait_until(lambda: bool(held), 45)
    good, *rest = split(large_reply(held[0], 1))
    with pytest.raises(WireError):
        fleet.grid.on_chunk("north-1", msgspec.structs.replace(good, count=0))
    assert counters["malformed"] == 1
    with pytest.raises(BoundError):
        fleet.grid.on_chunk("north-1", next(iter(split(bytes(4 << 20)))))
    assert counters["oversize"] == 1
    fleet.grid.on_chunk("south-1", good)
    assert counters["stale"] == 1, "nobody asked it: nothing is held"
    for chunk in (good, good, *rest):
        fleet.grid.on_chunk("north-1", chunk)
    asking.join(45)
    assert counters["answered"] == 1
    fleet.grid.on_chunk("north-1", good)
    assert counters["stale"] == 2


def test_replies_can_be_looked_at_twice_and_those_that_were_released_are_gone() -> None:
    take_identity(1)
    made = [Message(RecordDict(), number, "train", group_id="1") for number in range(2, 6)]
    replies = Replies(iter(made))
    assert list(replies) == made == list(replies)
    folded = Replies(iter(made))
    for reply in folded:
        release(reply)
    assert folded._kept == []
    assert list(folded) == []
