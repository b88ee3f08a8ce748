"""Samples up over a real broker: every one is receipted in the end, and what may not leave does not."""

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import codec, topics
from common.chunks import CHUNK_BYTES, Joiner
from common.clock import SystemClock
from common.messages import Chunk, Ledger, Partial, Receipt, Refusal, Sample
from common.mqtt import Broker, MqttLink
from edge.pacing import DAY_S
from edge.settings import UplinkSettings
from edge.spool import Spool
from edge.transfer import ANSWER_S
from edge.uplink import PACKET_BYTES, SPENT_S, Uplink

MakeSample = Callable[..., Sample]
GATEWAY = "north-1"


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return int(self.now_s * 1e9)


class Wire:
    """A link that remembers what was published."""

    def __init__(self) -> None:
        self.connected = True
        self.takes = 10**9
        self.sent: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if not self.connected or len(self.sent) >= self.takes:
            return False
        self.sent.append((topic, payload))
        return True

    def samples(self) -> list[Sample]:
        return [m for _, payload in self.sent if isinstance(m := codec.decode(payload), Sample)]


class LossyCentre:
    """Receipts what arrives, but loses a share of the receipts and repeats some; counts what it got."""

    def __init__(self, broker: Broker, lost: float) -> None:
        self.arrived: Counter[bytes] = Counter()
        self.topics: set[str] = set()
        self._random, self._lost, self._joiner = random.Random(3), lost, Joiner(64_000_000)
        self.link = MqttLink(broker, "centre", ("headframe/#",), self._on, window=500)
        self.link.start()
        self.link.wait_connected(15)

    def _on(self, topic: str, payload: bytes) -> None:
        if "/up/" not in topic:
            return
        self.topics.add(topic)
        message = codec.decode(payload)
        if isinstance(message, Chunk):
            whole = self._joiner.add(message)
            if whole is None:
                return
            message = codec.decode(whole)
        assert isinstance(message, Sample)
        self.arrived[message.sample_id] += 1
        for _ in range(self._random.choice((1, 1, 2))):
            if self._random.random() > self._lost:
                receipt = Receipt(stored=(message.sample_id,))
                self.link.publish(topics.down(GATEWAY, "receipt"), codec.encode(receipt))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool.open(tmp_path / "spool.db", 10**9)
    yield opened
    opened.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def run_uplink(broker: Broker, spool: Spool, share: str = "samples") -> tuple[Uplink, MqttLink]:
    found: list[Uplink] = []

    def on_message(_topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        assert isinstance(message, Receipt)
        found[0].on_receipt(message)

    link = MqttLink(broker, "gateway", (topics.down_filter(GATEWAY),), on_message)
    uplink = Uplink(link, spool, GATEWAY, UplinkSettings(resend_s=0.4), SystemClock(), share)
    found.append(uplink)
    link.start()
    link.wait_connected(15)
    uplink.start()
    return uplink, link


def test_every_sample_is_receipted_though_a_third_of_the_receipts_are_lost(
    broker: Broker, spool: Spool, make_sample: MakeSample
) -> None:
    samples = [make_sample(number) for number in range(60)]
    big = make_sample(1_000, size=3 * CHUNK_BYTES)
    for sample in (*samples, big):
        spool.accept(sample)
    centre = LossyCentre(broker, 0.33)
    uplink, link = run_uplink(broker, spool)
    wait_until(lambda: spool.figures().rows == 0)
    uplink.stop(5)
    link.stop()
    centre.link.stop()
    assert set(centre.arrived) == {sample.sample_id for sample in (*samples, big)}
    assert max(centre.arrived.values()) > 1, "a lost receipt makes a sample travel again"
    assert set(spool.ledger().values()) == {"receipted"}
    assert centre.topics == {topics.up(GATEWAY, "sample"), topics.up(GATEWAY, "chunk")}


def test_with_share_updates_no_pixel_ever_leaves(broker: Broker, spool: Spool, make_sample: MakeSample) -> None:
    for number in range(5):
        spool.accept(make_sample(number))
    spool.accept(make_sample(9, size=2 * CHUNK_BYTES))
    seen: list[str] = []
    watcher = MqttLink(broker, "watcher", ("#",), lambda topic, _: seen.append(topic))
    watcher.start()
    watcher.wait_connected(15)
    uplink, link = run_uplink(broker, spool, "updates")
    time.sleep(0.8)
    link.publish(topics.up(GATEWAY, "state"), b"the watcher does see what is sent")
    wait_until(lambda: bool(seen))
    uplink.stop(5)
    link.stop()
    watcher.stop()
    assert set(seen) == {topics.up(GATEWAY, "state")}
    assert spool.figures().rows == 6, "they stay for the site's own page"


def test_the_window_bounds_what_is_under_way(spool: Spool, make_sample: MakeSample) -> None:
    for number in range(20):
        spool.accept(make_sample(number, value=number / 20))
    wire, clock = Wire(), Clock()
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(window=4, resend_s=10), clock, "samples")
    for _ in range(3):
        uplink.step()
    sent = wire.samples()
    assert [sample.scores.value for sample in sent] == [0.95, 0.9, 0.85, 0.8], "the most valuable, once each"
    uplink.on_receipt(Receipt(stored=(sent[1].sample_id,), refused=(Refusal(sent[2].sample_id, "no"),)))
    uplink.step()
    assert [sample.scores.value for sample in wire.samples()[4:]] == [0.75, 0.7]
    clock.now_s = 12.6  # a quarter of jitter at most
    uplink.step()
    again = [sample.sample_id for sample in wire.samples()[6:]]
    assert again[:2] == [sent[0].sample_id, sent[3].sample_id], "only what has no receipt is sent again"


def test_a_busy_or_broken_link_loses_nothing(spool: Spool, make_sample: MakeSample) -> None:
    for number in range(4):
        spool.accept(make_sample(number))
    wire, clock = Wire(), Clock()
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(), clock, "samples")
    wire.takes = 1
    uplink.step()
    wire.connected = False
    uplink.step()
    wire.connected, wire.takes = True, 10**9
    uplink.step()
    assert len({sample.sample_id for sample in wire.samples()}) == 4
    assert spool.figures().rows == 4, "sent is not receipted"


def test_the_days_bytes_are_never_exceeded_and_go_to_the_most_valuable(tmp_path: Path, make_sample: MakeSample) -> None:
    wire, clock = Wire(), Clock()
    spool = Spool.open(tmp_path / "spool.db", 10**9, clock=clock)
    for number in range(30):
        spool.accept(make_sample(number, value=(number * 7 % 30) / 30))
    size = len(spool.pending(1)[0].payload) + len(topics.up(GATEWAY, "sample")) + PACKET_BYTES
    settings = UplinkSettings(window=100, bytes_per_day=10 * size + size // 2)
    uplink = Uplink(wire, spool, GATEWAY, settings, clock, "samples")
    assert uplink.step() == SPENT_S, "no use in asking again soon"
    assert len(wire.sent) == 1, "an eighth at once, the rest as the day passes"
    while clock.now_s < DAY_S - 3600:
        uplink.on_receipt(Receipt(stored=tuple(sample.sample_id for sample in wire.samples())))
        clock.now_s += 3600
        uplink.step()
    assert sum(len(payload) for _, payload in wire.sent) <= settings.bytes_per_day
    sent = {sample.scores.value for sample in wire.samples()}
    kept = {queued.value for queued in spool.pending(100)} - sent
    assert 8 <= len(sent) <= 10
    assert min(sent) > max(kept)
    uplink.on_receipt(Receipt(stored=tuple(sample.sample_id for sample in wire.samples())))
    before = len(wire.sent)
    clock.now_s = DAY_S + 1
    uplink.step()
    assert len(wire.sent) == before + 1, "a new day, new bytes"
    spool.close()


@pytest.mark.parametrize("seed", range(6))
def test_no_crash_no_reset_and_no_repetition_buys_a_byte(tmp_path: Path, make_sample: MakeSample, seed: int) -> None:
    """A day of restarts, lost connections and missing receipts, some samples in chunks: never more than the cap."""
    rng = random.Random(seed)
    cap = 2_500_000
    settings = UplinkSettings(window=8, resend_s=5, bytes_per_day=cap)
    path, wire = tmp_path / "spool.db", Wire()
    ran_s = 0.0
    values: dict[bytes, float] = {}
    for number in range(40):
        sample = make_sample(number, value=rng.random(), size=rng.choice((40_000, 60_000, 2 * CHUNK_BYTES)))
        values[sample.sample_id] = sample.scores.value
    first = Spool.open(path, 10**9, clock=Clock())
    for number in range(40):
        first.accept(make_sample(number, value=list(values.values())[number], size=50_000))
    first.close()
    while ran_s < DAY_S * 0.9:
        clock = Clock()
        spool = Spool.open(path, 10**9, clock=clock)
        uplink = Uplink(wire, spool, GATEWAY, settings, clock, "samples", rng=random.Random(seed))
        for _ in range(rng.randrange(1, 6)):
            wire.connected = rng.random() < 0.7
            uplink.step()
            clock.now_s += rng.choice((1.0, 7.0, 900.0, 5000.0))
        ran_s += clock.now_s
        if rng.random() < 0.5:
            spool._db.close()  # killed: nothing more is written
        else:
            spool.close()
    used = sum(len(payload) + len(topic) for topic, payload in wire.sent)
    assert 0.2 * cap < used <= cap, "each crash forgoes what was set aside"


def test_what_was_sent_is_worth_more_than_what_was_kept(tmp_path: Path, make_sample: MakeSample) -> None:
    """Samples come and go all day; at the end those that left are worth more on average than those that did not."""
    rng = random.Random(7)
    wire, clock = Wire(), Clock()
    spool = Spool.open(tmp_path / "spool.db", 10**9, clock=clock)
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(bytes_per_day=30_000), clock, "samples")
    value: dict[bytes, float] = {}
    for number in range(150):
        sample = make_sample(number, value=rng.random())
        value[sample.sample_id] = sample.scores.value
        spool.accept(sample)
        if number % 10 == 9:  # the link is up only now and then
            uplink.step()
            uplink.on_receipt(Receipt(stored=tuple(sample.sample_id for sample in wire.samples())))
        clock.now_s += 500
    sent = [value[name] for name in {sample.sample_id for sample in wire.samples()}]
    kept = [value[queued.sample_id] for queued in spool.pending(1000)]
    assert len(sent) > 10
    assert len(kept) > 10
    assert sum(sent) / len(sent) > sum(kept) / len(kept) + 0.1
    spool.close()


def test_the_rate_is_kept_on_average(spool: Spool, make_sample: MakeSample) -> None:
    for number in range(40):
        spool.accept(make_sample(number))
    wire, clock = Wire(), Clock()
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(window=100, bytes_per_s=500), clock, "samples")
    while clock.now_s < 60:
        uplink.step()
        clock.now_s += 0.25
    largest = max(len(payload) for _, payload in wire.sent)
    used = sum(len(payload) for _, payload in wire.sent)
    assert 0.7 * 30_000 < used <= 30_000 + largest + 200


def test_silence_halves_the_window_and_receipts_open_it_again(spool: Spool, make_sample: MakeSample) -> None:
    for number in range(40):
        spool.accept(make_sample(number))
    wire, clock = Wire(), Clock()
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(window=16, resend_s=10), clock, "samples")
    uplink.step()
    assert len(wire.sent) == 16
    sent_by_round = []
    for _ in range(40):
        clock.now_s += 15
        before = len(wire.sent)
        uplink.step()
        sent_by_round.append(len(wire.sent) - before)
    assert sum(sent_by_round[-20:]) <= 4, "a centre that is silent is hardly bothered"
    wire.sent.clear()
    for _ in range(60):
        clock.now_s += 15
        uplink.step()
        uplink.on_receipt(Receipt(stored=tuple(sample.sample_id for sample in wire.samples())))
    assert spool.figures().rows == 0, "and when it answers, all of it comes"


def test_a_centre_that_asks_for_time_gets_it(spool: Spool, make_sample: MakeSample) -> None:
    for number in range(10):
        spool.accept(make_sample(number))
    wire, clock = Wire(), Clock()
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(window=4, resend_s=1000), clock, "samples")
    uplink.step()
    uplink.on_receipt(Receipt(stored=(wire.samples()[0].sample_id,), pause_s=20))
    clock.now_s = 19
    uplink.step()
    assert len(wire.sent) == 4
    clock.now_s = 26
    uplink.step()
    assert len(wire.sent) == 5


def test_a_large_sample_goes_on_where_it_was_and_after_a_lost_link_with_what_is_missing(
    spool: Spool, make_sample: MakeSample
) -> None:
    spool.accept(make_sample(0, size=6 * CHUNK_BYTES))
    wire, clock, joiner = Wire(), Clock(), Joiner(64_000_000)
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(resend_s=1000), clock, "samples")

    def chunks_sent() -> list[Chunk]:
        found = [m for _, payload in wire.sent if isinstance(m := codec.decode(payload), Chunk)]
        wire.sent.clear()
        wire.takes = 10**9
        return found

    wire.takes = 3
    uplink.step()
    first = chunks_sent()
    assert [chunk.index for chunk in first] == [0, 1, 2]
    wire.takes = 1
    uplink.step()
    first += chunks_sent()
    assert first[-1].index == 3, "a busy link is no reason to begin again"
    for chunk in first:
        joiner.add(chunk)
    wire.connected = False
    uplink.step()
    wire.connected = True
    uplink.step()
    (asked,) = chunks_sent()
    assert asked.index == 0
    assert joiner.has(asked)
    missing = joiner.missing(asked)
    assert missing == tuple(range(4, asked.count))
    uplink.step()
    assert chunks_sent() == [], "the answer is awaited"
    uplink.on_receipt(Receipt(partial=(Partial(asked.transfer_id, missing),)))
    uplink.step()
    rest = chunks_sent()
    assert [chunk.index for chunk in rest] == list(missing)
    joined = [whole for chunk in rest if (whole := joiner.add(chunk)) is not None]
    assert joined == [spool.pending(1)[0].payload]


def test_without_an_answer_the_whole_transfer_is_sent(spool: Spool, make_sample: MakeSample) -> None:
    spool.accept(make_sample(0, size=3 * CHUNK_BYTES))
    wire, clock = Wire(), Clock()
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(resend_s=1000), clock, "samples")
    uplink.step()
    count = len(wire.sent)
    wire.connected = False
    uplink.step()
    wire.connected = True
    uplink.step()
    assert len(wire.sent) == count + 1
    clock.now_s += ANSWER_S
    uplink.step()
    assert len(wire.sent) == 2 * count


def test_what_the_spool_let_go_is_told_until_it_is_receipted(tmp_path: Path, make_sample: MakeSample) -> None:
    wire, clock = Wire(), Clock()
    spool = Spool.open(tmp_path / "spool.db", 6000, clock=clock)
    for number in range(8):
        spool.accept(make_sample(number, value=number / 10))
    uplink = Uplink(wire, spool, GATEWAY, UplinkSettings(resend_s=10), clock, "samples")

    def told() -> list[Ledger]:
        found = [m for _, payload in wire.sent if isinstance(m := codec.decode(payload), Ledger)]
        wire.sent.clear()
        return found

    uplink.step()
    (ledger,) = told()
    assert [entry.sequence for entry in ledger.ended] == [entry.sequence for entry in spool.ended(100)]
    uplink.step()
    assert told() == []
    clock.now_s = 13
    uplink.step()
    assert told() == [ledger]
    uplink.on_receipt(Receipt(ledger=tuple((entry.epoch, entry.sequence) for entry in ledger.ended)))
    clock.now_s = 100
    uplink.step()
    assert told() == []
    assert spool.ended(10) == []
    spool.close()


@pytest.mark.parametrize("keep", [False, True])
def test_the_link_repeats_nothing_by_itself(keep: bool) -> None:
    """Else the bytes of a day could not be counted. The broker takes a message, acknowledges nothing, and goes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        link = MqttLink(Broker(port=server.getsockname()[1]), "gateway", (), lambda _t, _p: None, keep=keep)
        link.start()
        heard: list[bytes] = []
        for _ in range(2):
            connection, _address = server.accept()
            with connection:
                connection.settimeout(0.7)
                assert connection.recv(1000).startswith(b"\x10"), "CONNECT"
                connection.sendall(b"\x20\x02\x00\x00")
                wait_until(lambda: link.connected)
                if not heard:
                    assert link.publish("a", b"payload")
                with contextlib.suppress(TimeoutError):
                    heard.append(connection.recv(1000))
            wait_until(lambda: not link.connected)
        link.stop()
    assert [b"payload" in data for data in heard] == ([True, True] if keep else [True])


def test_stopping_is_prompt(spool: Spool) -> None:
    uplink = Uplink(Wire(), spool, GATEWAY, UplinkSettings(), SystemClock(), "samples")
    uplink.start()
    began_s = time.monotonic()
    uplink.stop(5)
    assert time.monotonic() - began_s < 2
    assert "uplink" not in {thread.name for thread in threading.enumerate()}
