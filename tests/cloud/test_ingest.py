"""Ingest: what is stored is whole, receipts come after the commit, and the rest is refused with a reason."""

import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud import ingest as ingest_module
from cloud.admission import check_sample
from cloud.ingest import Ingest
from cloud.pictures import read_headers
from cloud.settings import IngestSettings
from cloud.store import Store
from common import codec, topics
from common.chunks import split
from common.clock import SystemClock
from common.errors import EnvironmentFault, HeadframeError, WireError
from common.messages import Box, Ended, Ledger, Message, Partial, Prediction, Receipt, Sample, Scores

MakeSample = Callable[..., Sample]
REPOSITORY = Path(__file__).resolve().parents[2]
GATEWAY = "north-1"
UP = topics.up(GATEWAY, "sample")


class Desk:
    """An ingest on a real store, and the receipts it sent."""

    def __init__(self, store: Store, **changes: object) -> None:
        self.store = store
        self.receipts: list[tuple[str, Receipt]] = []
        self.ingest = Ingest(store, IngestSettings(batch_wait_s=0.02, **changes), SystemClock(), self._send)

    def _send(self, topic: str, message: Message) -> bool:
        assert isinstance(message, Receipt)
        self.receipts.append((topic, message))
        return True

    def take(self, sample: Sample) -> None:
        self.ingest.on_message(topics.up(sample.gateway_id, "sample"), codec.encode(sample))

    def stored(self) -> set[bytes]:
        return {name for _, receipt in self.receipts for name in receipt.stored}

    def refused(self) -> dict[bytes, str]:
        return {item.sample_id: item.reason for _, receipt in self.receipts for item in receipt.refused}


@pytest.fixture
def desk(store: Store) -> Iterator[Desk]:
    made = Desk(store)
    made.ingest.start()
    yield made
    made.ingest.stop(10)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def test_samples_are_stored_then_receipted_to_their_own_gateway(desk: Desk, make_sample: MakeSample) -> None:
    samples = [make_sample(number) for number in range(5)]
    other = make_sample(9, gateway_id="south-1")
    for sample in (*samples, other):
        desk.take(sample)
    names = {sample.sample_id for sample in (*samples, other)}
    wait_until(lambda: desk.stored() == names)
    assert desk.store.sample_ids() == names
    to = {topic: set(receipt.stored) for topic, receipt in desk.receipts if topic.endswith("south-1/receipt")}
    assert to == {topics.down("south-1", "receipt"): {other.sample_id}}


def test_a_repeated_sample_is_receipted_again_and_stored_once(desk: Desk, make_sample: MakeSample) -> None:
    for _ in range(3):
        desk.take(make_sample())
        wait_until(lambda: desk.ingest.figures()["waiting"] == 0)
    wait_until(lambda: sum(len(receipt.stored) for _, receipt in desk.receipts) == 3)
    assert desk.store.sample_ids() == {make_sample().sample_id}
    assert desk.ingest.figures()["duplicates"] == 2


def test_a_chunked_sample_is_the_same_sample(desk: Desk, make_sample: MakeSample) -> None:
    sample = make_sample(size=(400, 600))
    for chunk in reversed(list(split(codec.encode(sample), 50_000))):
        desk.ingest.on_message(topics.up(GATEWAY, "chunk"), codec.encode(chunk))
    wait_until(lambda: desk.stored() == {sample.sample_id})
    assert desk.store.jpeg(sample.sample_id) == sample.jpeg


def bomb() -> bytes:
    """A JPEG header that claims 60,000 x 60,000 pixels."""
    small = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", 60_000, 60_000) + small[at + 4 :]


PNG = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
NOT_FINITE = np.array([np.nan, 1], "<f2").tobytes()
WRONG: list[tuple[str, dict[str, object], str]] = [
    ("of another gateway", {"gateway_id": "south-1"}, "came on the topic"),
    ("with another id", {"sample_id": b"x" * 16}, "not the hash"),
    ("no JPEG", {"jpeg": PNG}, "no JPEG"),
    ("a bomb", {"jpeg": bomb(), "width_px": 60_000, "height_px": 60_000}, "over the bound"),
    ("of another size", {"width_px": 49}, "said to be"),
    ("with a bad camera name", {"camera_id": "../x"}, "not valid"),
    ("with a long reason", {"reason": "x" * 21}, "at most 20"),
    ("with a line break", {"release_id": "r1\nx"}, "one line"),
    ("from before 1970", {"captured_at_ns": -1}, "out of bounds"),
    ("with an odd embedding", {"embedding": b"123"}, "float16"),
    ("without an embedding", {"embedding": b""}, "float16"),
    ("with NaN in the embedding", {"embedding": NOT_FINITE}, "not finite"),
    ("with NaN in the scores", {"scores": Scores(0, 0, float("nan"), 0, 0)}, "not finite"),
    ("with a box outside", {"boxes": (Box("people", "person", 0.9, 0, 0, 1.5, 1),)}, "not within"),
    ("with a box of no number", {"boxes": (Box("people", "person", float("nan"), 0, 0, 1, 1),)}, "not within"),
    ("with a thousand boxes", {"boxes": (Box("people", "person", 0.9, 0, 0, 1, 1),) * 1001}, "over the bound"),
    ("with a lame prediction", {"predictions": (Prediction("belt", ("a", "b"), (1.0,), 0.0),)}, "probability"),
]


@pytest.mark.parametrize(("what", "changes", "said"), WRONG, ids=[what for what, _, _ in WRONG])
def test_a_sample_that_is_wrong_is_refused_with_the_reason(
    desk: Desk, make_sample: MakeSample, what: str, changes: dict[str, object], said: str
) -> None:
    sample = make_sample(**changes)
    desk.ingest.on_message(UP, codec.encode(sample))
    (reason,) = desk.refused().values()
    assert said in reason
    ((gateway, topic, kept),) = desk.store.quarantined()
    assert (gateway, topic) == (GATEWAY, UP)
    assert said in kept
    assert desk.store.sample_ids() == set()
    good = make_sample(1)
    desk.take(good)
    wait_until(lambda: desk.stored() == {good.sample_id})


def test_a_cut_off_picture_and_one_over_the_bound_are_refused(store: Store, make_sample: MakeSample) -> None:
    whole = make_sample(size=(64, 64))
    cut = make_sample(size=(64, 64), jpeg=whole.jpeg[: len(whole.jpeg) // 2])
    desk = Desk(store, jpeg_bytes_max=10_000)
    desk.take(cut)
    desk.take(make_sample(size=(400, 600)))
    assert sorted(desk.refused().values())[1] == "the picture is cut off"
    assert any("over the bound of 10000" in reason for reason in desk.refused().values())


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_message_crashes_ingest(store: Store, make_sample: MakeSample, data: st.DataObject) -> None:
    desk = Desk(store)
    payload = bytearray(codec.encode(make_sample()))
    for _ in range(data.draw(st.integers(1, 6))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    kind = data.draw(st.sampled_from(["sample", "chunk"]))
    desk.ingest.on_message(topics.up(GATEWAY, kind), bytes(payload))
    figures = desk.ingest.figures()
    assert figures["refused"] + figures["waiting"] == 1


@given(st.binary(max_size=200))
def test_any_bytes_have_a_size_or_a_reason(jpeg: bytes) -> None:
    try:
        headers = read_headers(b"\xff\xd8" + jpeg)
    except WireError as error:
        assert error.message
    else:
        assert 0 <= headers.width < 2**16
        assert 0 <= headers.height < 2**16


@pytest.mark.parametrize("extension", [".jpg"])
def test_the_size_is_read_from_the_header_of_any_encoder(extension: str) -> None:
    for flags in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]):
        jpeg = cv2.imencode(extension, np.zeros((37, 53, 3), np.uint8), flags)[1].tobytes()
        headers = read_headers(jpeg)
        assert (headers.width, headers.height) == (53, 37)
        assert jpeg[headers.scan_at : headers.scan_at + 2] == b"\xff\xda"


def test_nothing_is_receipted_while_the_disk_fails_and_all_of_it_after(
    desk: Desk, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "RETRY_S", 0.02)
    add = desk.store.add_samples
    failures = iter(range(3))

    def failing(batch: object, at_ns: int, alone: object) -> int:
        if next(failures, None) is not None:
            assert desk.receipts == []
            raise EnvironmentFault("The disk that holds the database is full", "Free space.")
        return add(batch, at_ns)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.store, "add_samples", failing)
    desk.take(make_sample())
    wait_until(lambda: desk.stored() == {make_sample().sample_id})
    assert desk.ingest.figures()["faults"] == 3


def test_a_full_queue_makes_the_sender_wait_and_then_send_again(
    store: Store, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "PATIENCE_S", 0.05)
    desk = Desk(store, queue=2)
    for number in range(4):
        desk.take(make_sample(number))
    assert desk.ingest.figures()["overflowed"] == 2
    assert [(receipt.stored, receipt.pause_s > 0) for _, receipt in desk.receipts] == [((), True)] * 2, "come later"
    desk.ingest.start()
    desk.ingest.stop(10)
    assert desk.stored() == {make_sample(0).sample_id, make_sample(1).sample_id}


KILLED = """
import sys
from pathlib import Path
import cv2, numpy as np
from cloud.ingest import Ingest
from cloud.settings import IngestSettings
from cloud.store import Store
from common import codec, topics
from common.clock import SystemClock
folder = Path(sys.argv[1])
store = Store.open(f"sqlite:///{folder / 'centre.db'}", folder / "blobs")
def send(topic, receipt):
    for name in receipt.stored:
        print(name.hex(), flush=True)
    return True
ingest = Ingest(store, IngestSettings(batch=4, batch_wait_s=0.01), SystemClock(), send)
ingest.start()
for path in sorted((folder / "wire").iterdir()):
    ingest.on_message(topics.up("north-1", "sample"), path.read_bytes())
ingest.stop(60)
"""


def test_kill_9_in_mid_run_every_receipted_sample_is_in_the_store(tmp_path: Path, make_sample: MakeSample) -> None:
    (tmp_path / "wire").mkdir()
    for number in range(120):
        (tmp_path / "wire" / f"{number:04d}").write_bytes(codec.encode(make_sample(number, size=(128, 160))))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    said += [line for line in process.stdout.read().split("\n") if len(line) == 32]
    process.wait(10)
    process.stdout.close()
    store = Store.open(f"sqlite:///{tmp_path / 'centre.db'}", tmp_path / "blobs")
    held = store.sample_ids()
    assert len(said) >= 25
    assert {bytes.fromhex(name) for name in said} <= held
    for name in held:
        assert cv2.imdecode(np.frombuffer(store.jpeg(name), np.uint8), cv2.IMREAD_COLOR) is not None
    store.close()


def test_a_good_sample_passes_and_is_not_changed(make_sample: MakeSample) -> None:
    sample = make_sample()
    before = msgspec.msgpack.encode(sample)
    check_sample(sample, GATEWAY, IngestSettings())
    assert msgspec.msgpack.encode(sample) == before
    with pytest.raises(HeadframeError):
        check_sample(sample, "south-1", IngestSettings())


def test_a_ledger_is_kept_then_receipted_and_a_refused_sample_is_no_gap(desk: Desk, make_sample: MakeSample) -> None:
    epoch = "a" * 16
    ended = (Ended(epoch, 1, b"1" * 16, 0.1, "evicted"), Ended(epoch, 2, b"2" * 16, 0.2, "expired"))
    payload = codec.encode(Ledger(gateway_id=GATEWAY, ended=ended))
    for _ in range(2):
        desk.ingest.on_message(topics.up(GATEWAY, "ledger"), payload)
    wanted = Receipt(ledger=((epoch, 1), (epoch, 2)))
    assert desk.receipts == [(topics.down(GATEWAY, "receipt"), wanted)] * 2
    desk.take(make_sample(3, width_px=49, epoch=epoch, sequence=3))
    (gap,) = desk.store.gaps()
    assert (gap.head, gap.ended) == (3, 3)
    desk.ingest.on_message(topics.up("south-1", "ledger"), payload)
    assert desk.ingest.figures()["refused"] == 2, "of another gateway"


def test_a_chunk_that_comes_again_is_answered_with_what_is_missing(desk: Desk, make_sample: MakeSample) -> None:
    parts = list(split(codec.encode(make_sample(size=(400, 600))), 50_000))
    for chunk in parts[:3]:
        desk.ingest.on_message(topics.up(GATEWAY, "chunk"), codec.encode(chunk))
    assert desk.receipts == []
    desk.ingest.on_message(topics.up(GATEWAY, "chunk"), codec.encode(parts[0]))
    ((_, receipt),) = desk.receipts
    assert receipt.partial == (Partial(parts[0].transfer_id, tuple(range(3, len(parts)))),)


def test_a_centre_that_is_behind_asks_for_time(store: Store, make_sample: MakeSample) -> None:
    desk = Desk(store, queue=20, batch=2)
    for number in range(20):
        desk.take(make_sample(number))
    assert not desk.ingest.has_room()
    desk.ingest.start()
    desk.ingest.stop(20)
    pauses = [receipt.pause_s for _, receipt in desk.receipts]
    assert max(pauses) > 0
    assert pauses[-1] == 0, "it has caught up"
    assert len(desk.stored()) == 20
