"""Offer before pixels: what the centre asks for across the fleet; what a gateway then sends, declines and forgets."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.admission import check_offer
from cloud.choosing import PENDING_MAX, Choice
from cloud.service import Service
from cloud.settings import CloudSettings
from common import codec, topics
from common.coverage import Coverage, from_int8, to_int8, unit_rows
from common.errors import BoundError, ForgeryError, HeadframeError, OperatorError, WireError
from common.messages import Offer, Receipt, Sample, Scores, Want
from common.mqtt import Broker
from edge.offers import AGAIN_S, OFFER_BYTES_MAX, UNHEARD_S, Offers, make_offer
from edge.settings import OfferSettings, UplinkSettings
from edge.spool import Spool
from edge.uplink import Uplink

MakeSample = Callable[..., Sample]
DIMENSION = 64
HOUR_NS = 3600 * 10**9


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return 1_790_000_000 * 10**9 + int(self.now_s * 1e9)


class Wire:
    """A link that remembers what was published."""

    def __init__(self) -> None:
        self.connected = True
        self.sent: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if self.connected:
            self.sent.append((topic, payload))
        return self.connected

    def take(self, kind: str) -> list[bytes]:
        """What was published under a kind of topic since the last call."""
        found = [payload for topic, payload in self.sent if topic.endswith(f"/{kind}")]
        self.sent = [item for item in self.sent if not item[0].endswith(f"/{kind}")]
        return found


class Site:
    """A gateway's spool, offers and uplink, without threads."""

    def __init__(self, folder: Path, name: str, clock: Clock, share: str = "samples") -> None:
        self.name, self.clock, self.wire = name, clock, Wire()
        self.folder = folder / name
        self.spool = Spool.open(self.folder / "spool.db", 10**9)
        self.open(share)

    def open(self, share: str = "samples") -> None:
        """As after a restart."""
        self.offers = Offers.open(self.folder / "offers.db", self.spool, OfferSettings(keep_hours=24), self.clock)
        settings = UplinkSettings(resend_s=10_000)  # receipts come a round later
        self.uplink = Uplink(self.wire, self.spool, self.name, settings, self.clock, share, self.offers)

    def see(self, make_sample: MakeSample, number: int, embedding: np.ndarray, **fields: object) -> bytes:
        sample = make_sample(
            number, gateway_id=self.name, site_id=self.name, embedding=embedding.astype("<f2").tobytes(), **fields
        )
        self.spool.accept(sample)
        return sample.sample_id


class Centre(Service):
    """The real service with a link of our own."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        settings = {"data_dir": folder, "broker": {"embedded": False}, "offers": {"samples_per_hour": 3600}}
        super().__init__(CloudSettings.model_validate(settings), Broker(), clock)
        self.wire = Wire()
        self.link = self.wire  # type: ignore[assignment]
        self.ingest.start()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def centre(tmp_path: Path, clock: Clock) -> Iterator[Centre]:
    made = Centre(tmp_path / "centre", clock)
    yield made
    made.ingest.stop(10)
    made.store.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def exchange(centre: Centre, sites: list[Site], clock: Clock, rounds: int = 6) -> list[Sample]:
    """Turn the wires by hand until nothing moves; returns what was uploaded."""
    uploaded: list[Sample] = []
    for _ in range(rounds):
        for site in sites:
            site.uplink.step()
            for payload in site.wire.take("offer"):
                centre._on_message(topics.up(site.name, "offer"), payload)
            for payload in site.wire.take("sample"):
                message = codec.decode(payload)
                assert isinstance(message, Sample)
                uploaded.append(message)
                centre._on_message(topics.up(site.name, "sample"), payload)
        wait_until(lambda: {sample.sample_id for sample in uploaded} <= centre.store.sample_ids())
        clock.now_s += 11
        centre.guard.step()
        centre.offers.step()
        for topic, payload in centre.wire.sent:
            target = next(site for site in sites if f"/{site.name}/" in topic)
            message = codec.decode(payload)
            if isinstance(message, Want):
                target.uplink.on_want(message)
            elif isinstance(message, Receipt):
                target.uplink.on_receipt(message)
        centre.wire.sent.clear()
    return uploaded


def spread(rng: np.random.Generator, count: int) -> np.ndarray:
    """Embeddings that are unlike each other."""
    rows: np.ndarray = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0][:count] * 10
    return rows


def test_near_duplicates_at_fifty_sites_are_uploaded_once(
    centre: Centre, clock: Clock, tmp_path: Path, make_sample: MakeSample
) -> None:
    rng = np.random.default_rng(3)
    sights = spread(rng, 5)
    sites = [Site(tmp_path, f"site-{number}", clock) for number in range(50)]
    for number, site in enumerate(sites):
        for sight in range(5):
            noisy = sights[sight] + rng.normal(0, 0.05, DIMENSION)
            site.see(make_sample, 100 * number + sight, noisy, value=0.1 + 0.001 * number)
    uploaded = exchange(centre, sites, clock, rounds=4)
    nearest = [int((sights @ np.frombuffer(sample.embedding, "<f2")).argmax()) for sample in uploaded]
    assert sorted(nearest) == [0, 1, 2, 3, 4]
    assert {sample.sample_id for sample in uploaded} == centre.store.sample_ids()
    assert centre.offers.figures()["duplicates"] == 245
    assert sum(site.spool.figures().receipted for site in sites) == 5
    clock.now_s += 25 * 3600
    for site in sites:
        site.uplink.step()
    figures = [site.spool.figures() for site in sites]
    assert sum(item.declined for item in figures) == 245
    assert sum(item.rows for item in figures) == 0
    states = {state for site in sites for state in site.spool.ledger().values()}
    assert states == {"receipted", "declined"}


def test_the_random_trickle_is_sent_without_asking(
    centre: Centre, clock: Clock, tmp_path: Path, make_sample: MakeSample
) -> None:
    site = Site(tmp_path, "north-1", clock)
    sight = spread(np.random.default_rng(1), 1)[0]
    names = [site.see(make_sample, number, sight, reason="trickle") for number in range(3)]
    assert {sample.sample_id for sample in exchange(centre, [site], clock)} == set(names)
    assert centre.offers.figures()["taken"] == 0


def test_what_the_store_holds_is_not_asked_for_again_even_after_a_restart_of_the_centre(
    centre: Centre, clock: Clock, tmp_path: Path, make_sample: MakeSample
) -> None:
    sights = spread(np.random.default_rng(2), 2)
    held = make_sample(1, gateway_id="other-1", embedding=sights[0].astype("<f2").tobytes())
    centre._on_message(topics.up("other-1", "sample"), codec.encode(held))
    wait_until(lambda: held.sample_id in centre.store.sample_ids())
    centre.wire.sent.clear()
    site = Site(tmp_path, "north-1", clock)
    site.see(make_sample, 5, sights[0] * 1.5)
    new = site.see(make_sample, 6, sights[1])
    assert [sample.sample_id for sample in exchange(centre, [site], clock)] == [new]


def test_a_restart_of_the_gateway_forgets_no_wish_and_offers_nothing_twice(
    centre: Centre, clock: Clock, tmp_path: Path, make_sample: MakeSample
) -> None:
    site = Site(tmp_path, "north-1", clock)
    names = [site.see(make_sample, n, row) for n, row in enumerate(spread(np.random.default_rng(2), 3))]
    site.uplink.step()
    assert len(site.wire.take("offer")) == 3
    site.uplink.on_want(Want(wanted=(names[0],), heard=tuple(names[1:])))
    site.offers.close()
    site.open()
    site.uplink.step()
    (sent,) = site.wire.take("sample")
    assert codec.decode(sent).sample_id == names[0]  # type: ignore[union-attr]
    site.uplink.step()
    assert len(site.wire.take("offer")) in (0, 2)  # heard before the restart: at most once more


def test_an_offer_that_was_not_heard_is_made_again_and_one_that_was_heard_within_the_hour(
    clock: Clock, tmp_path: Path, make_sample: MakeSample
) -> None:
    site = Site(tmp_path, "north-1", clock)
    name = site.see(make_sample, 1, spread(np.random.default_rng(2), 1)[0])
    site.uplink.step()
    site.uplink.step()
    assert len(site.wire.take("offer")) == 1
    clock.now_s += UNHEARD_S + 1
    site.uplink.step()
    assert len(site.wire.take("offer")) == 1
    site.uplink.on_want(Want(heard=(name, b"unknown")))
    clock.now_s += UNHEARD_S + 1
    site.uplink.step()
    assert site.wire.take("offer") == []
    clock.now_s += AGAIN_S
    site.uplink.step()
    assert len(site.wire.take("offer")) == 1
    assert site.wire.take("sample") == []


def test_a_wish_that_was_lost_is_repeated_when_it_is_offered_again(
    centre: Centre, clock: Clock, tmp_path: Path, make_sample: MakeSample
) -> None:
    site = Site(tmp_path, "north-1", clock)
    name = site.see(make_sample, 1, spread(np.random.default_rng(2), 1)[0])
    site.uplink.step()
    (offer,) = site.wire.take("offer")
    for _ in range(2):
        centre._on_message(topics.up("north-1", "offer"), offer)
        clock.now_s += 11
        centre.offers.step()
        (answer,) = centre.wire.take("want")
        assert codec.decode(answer).wanted == (name,)  # type: ignore[union-attr]


def test_a_site_that_shares_updates_offers_nothing(clock: Clock, tmp_path: Path, make_sample: MakeSample) -> None:
    site = Site(tmp_path, "north-1", clock, share="updates")
    site.see(make_sample, 1, spread(np.random.default_rng(2), 1)[0])
    site.uplink.step()
    assert site.wire.sent == []


def test_a_person_can_ask_for_what_the_budget_does_not(
    centre: Centre, clock: Clock, tmp_path: Path, make_sample: MakeSample
) -> None:
    from cloud.desk import Desk

    site = Site(tmp_path, "north-1", clock)
    name = site.see(make_sample, 1, spread(np.random.default_rng(2), 1)[0], size=(64, 96))
    site.uplink.step()
    for payload in site.wire.take("offer"):
        centre._on_message(topics.up("north-1", "offer"), payload)
    desk = Desk(centre)
    (row,) = desk.offers(10)
    assert row["sample_id"] == name.hex()
    thumbnail = desk.offer_jpeg(name)
    assert thumbnail is not None
    assert cv2.imdecode(np.frombuffer(thumbnail, np.uint8), cv2.IMREAD_COLOR) is not None
    desk.want(name, "lin")
    with pytest.raises(OperatorError, match="not on offer"):
        desk.want(name, "lin")
    centre.offers.step()
    assert codec.decode(centre.wire.take("want")[0]).wanted == (name,)  # type: ignore[union-attr]
    assert centre.store.audits(1)[0]["action"] == "want"


def test_offers_count_against_the_bytes_of_the_day(clock: Clock, tmp_path: Path, make_sample: MakeSample) -> None:
    site = Site(tmp_path, "north-1", clock)
    for number, row in enumerate(spread(np.random.default_rng(2), 20)):
        site.see(make_sample, number, row)
    settings = UplinkSettings(bytes_per_day=24_000)
    uplink = Uplink(site.wire, site.spool, "north-1", settings, clock, "samples", site.offers)
    for _ in range(5):
        uplink.step()
    sent = sum(len(payload) for _, payload in site.wire.sent)
    assert 0 < sent <= 3000, "an eighth at once"
    assert uplink.bytes_up == sent


@pytest.mark.parametrize("dimension", [4, 512, 1280, 3000, 4000])
@pytest.mark.parametrize("size", [(32, 48), (720, 1280), (1, 1)])
def test_an_offer_is_under_4_kb(make_sample: MakeSample, dimension: int, size: tuple[int, int]) -> None:
    embedding = np.random.default_rng(1).normal(size=dimension).astype("<f2")
    sample = make_sample(1, size=size, embedding=embedding.tobytes())
    offer = make_offer(sample, 40_000)
    assert len(codec.encode(offer)) <= max(OFFER_BYTES_MAX, dimension + 700)
    assert bool(offer.thumbnail) == (dimension <= 3000)
    check_offer(offer, sample.gateway_id)


@given(
    rows=st.lists(st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6), min_size=1, max_size=4).map(
        np.array
    )
)
def test_int8_loses_at_most_half_a_step(rows: np.ndarray) -> None:
    for row in rows:
        data, step = to_int8(row)
        assert np.abs(from_int8(data, step) - row).max() <= step / 2 + 1e-9


WRONG: list[tuple[dict[str, object], type[HeadframeError]]] = [
    ({"gateway_id": "south-1"}, ForgeryError),
    ({"sample_id": b"short"}, WireError),
    ({"embedding": b""}, WireError),
    ({"embedding": bytes(64)}, WireError),
    ({"step": float("inf")}, WireError),
    ({"step": 0.0}, WireError),
    ({"scores": Scores(0, 0, 0, 0, float("nan"))}, WireError),
    ({"payload_bytes": -1}, WireError),
    ({"backbone": "x" * 200}, WireError),
    ({"camera_id": "a/b"}, OperatorError),
    ({"thumbnail": b"GIF89a"}, WireError),
    ({"thumbnail": cv2.imencode(".jpg", np.zeros((600, 10, 3), np.uint8))[1].tobytes()}, BoundError),
]


@pytest.mark.parametrize(("changes", "kind"), WRONG, ids=[next(iter(changes)) for changes, _ in WRONG])
def test_an_offer_that_is_wrong_is_refused(
    make_sample: MakeSample, changes: dict[str, object], kind: type[HeadframeError]
) -> None:
    offer = msgspec.structs.replace(make_offer(make_sample(1), 1000), **changes)
    with pytest.raises(kind):
        check_offer(offer, "north-1")


def offered(number: int, embedding: np.ndarray, value: float = 0.5, backbone: str = "b") -> Offer:
    data, step = to_int8(embedding)
    return Offer(
        sample_id=number.to_bytes(16, "big"),
        gateway_id="g",
        site_id="s",
        camera_id="c",
        captured_at_ns=number,
        backbone=backbone,
        embedding=data,
        step=step,
        scores=Scores(0, 0, 0, 0, value),
        reason="novel",
        payload_bytes=1,
    )


def test_the_choice_is_bounded_and_keeps_what_is_valuable() -> None:
    rng, choice = np.random.default_rng(1), Choice(0.9)
    for number in range(PENDING_MAX + 50):
        choice.offer(offered(number, rng.normal(size=8), value=float(number >= 50)))
    pending = choice.pending()
    assert len(pending) == PENDING_MAX
    assert min(offer.scores.value for offer in pending) == 1.0


def test_embeddings_of_another_backbone_or_length_do_not_compete() -> None:
    choice = Choice(0.9)
    row = np.arange(1.0, 9.0)
    choice.know("b", [(b"x" * 16, row)])
    choice.offer(offered(1, row, backbone="other"))
    choice.offer(offered(2, np.arange(1.0, 5.0)))
    choice.offer(offered(3, row))
    assert [offer.captured_at_ns for offer in choice.pick(10)] == [1]


def test_with_a_small_budget_what_covers_most_comes_first() -> None:
    rng = np.random.default_rng(5)
    large, small = spread(rng, 2)
    choice = Choice(0.9999)
    for number in range(12):
        choice.offer(offered(number, (large if number < 8 else small) + rng.normal(0, 0.1, DIMENSION)))
    first, second = choice.pick(2)
    assert first.captured_at_ns < 8
    assert second.captured_at_ns >= 8
    assert choice.pick(0) == []


def test_coverage_takes_what_is_free_only() -> None:
    units = unit_rows(np.random.default_rng(1).normal(size=(6, 4)))
    coverage = Coverage(units, units[:1], np.ones(6), 0.999)
    assert not coverage.free[0]
    for _ in range(5):
        row = coverage.best()
        assert coverage.free[row]
        coverage.take(row)
    assert not coverage.free.any()
