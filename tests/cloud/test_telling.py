"""What gateways are told, how often, and in which form."""

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from cloud.learning.export import export_head
from cloud.learning.heads import HeadWeights
from cloud.service import Service
from cloud.settings import CloudSettings, RolloutSettings
from cloud.shelf import PROBE_NAME
from common import codec
from common.manifest import SHARED, Layer, Scenario
from common.messages import Desired, Fetch, LayerPart, Shelved, State
from common.metadata import TrustedMetadata
from common.mqtt import Broker
from common.parcels import PIECE_BYTES
from common.topics import parse_release, release
from edge.proofs import Proofs

S = 10**9
SITE_BYTES_PER_S = 1_000_000.0


class Hands:
    """A clock that is moved by hand."""

    now_ns = 1_800_000_000 * S

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_s(self) -> float:
        return self.now_ns / S


class Mine:
    """A centre whose messages are looked at, and gateways that say what they run."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.sent = Hands(), list[tuple[str, bytes]]()
        settings = CloudSettings(
            data_dir=folder, rollout=RolloutSettings(enabled=False, site_bytes_per_s=SITE_BYTES_PER_S)
        )
        self.service = Service(settings, Broker(), self.clock)
        self.service.link.publish = self._publish  # type: ignore[method-assign]
        self.service.shelf.step()

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if topic == release(PROBE_NAME):
            self.service._on_message(topic, payload)
        else:
            self.sent.append((topic, payload))
        return True

    def publish(self, number: int) -> str:
        registry = self.service.registry
        backbone = registry.put(b"backbone")
        head = registry.put(b"head %d" % number)
        scenario = Scenario("belt", ("normal", "tear"), "normal", {SHARED: head})
        name = registry.publish((scenario,), backbone, {"passed": True}, f"{number}")
        self.step()
        return name

    def report(self, name: str, release: str = "", *, shared: bool = True) -> None:
        state = State(gateway_id=name, site_id="north", at_ns=1, agent_version="1", release_id=release, shared=shared)
        self.service._on_state(state)

    def step(self, seconds: float = 1) -> None:
        self.clock.now_ns += int(seconds * S)
        self.service.rollouts.step()
        self.service.telling.step(self.service.online())

    def told(self) -> list[Desired]:
        found = [codec.decode(payload) for topic, payload in self.sent if topic.endswith("/desired")]
        self.sent = [item for item in self.sent if not item[0].endswith("/desired")]
        return [item for item in found if isinstance(item, Desired)]


@pytest.fixture
def mine(tmp_path: Path) -> Mine:
    made = Mine(tmp_path)
    yield made  # type: ignore[misc]
    made.service.store.close()


def test_a_gateway_is_told_little_and_the_proof_is_published_once(mine: Mine, tmp_path: Path) -> None:
    release = mine.publish(1)
    for number in range(20):
        mine.report(f"gw-{number}")
    told = mine.told()
    assert [desired.release_id for desired in told] == [release] * 20
    assert max(len(codec.encode(desired)) for desired in told) < 900
    pieces = [(parse_release(topic), data) for topic, data in mine.sent if parse_release(topic)]
    assert len(pieces) == 1
    whole: list[Desired] = []
    proofs = Proofs(mine.clock, lambda _f: True, whole.append, lambda: "")
    proofs.on_desired(told[3])
    proofs.on_piece(*pieces[0])
    trust = TrustedMetadata(tmp_path / "gateway", mine.service.repository.root(), "gw-3")
    assert trust.check(whole[0], mine.clock.now_ns) == mine.service.registry.manifest(release)


@pytest.mark.parametrize("shares", [True, False])
def test_an_agent_that_knows_no_parcels_is_told_everything(mine: Mine, shares: bool) -> None:
    if not shares:
        mine.service.shelf._carried = False
    mine.publish(1)
    mine.report("old", shared=shares is False)
    (desired,) = mine.told()
    assert desired.proof is None
    assert desired.metadata
    assert desired == mine.service.registry.desired("old", mine.service.rollouts.targets.active)


def test_a_gateway_that_does_without_from_now_on_is_told_everything_at_once(mine: Mine) -> None:
    mine.publish(1)
    mine.report("gw")
    assert mine.told()[0].proof is not None
    mine.report("gw", shared=False)
    assert mine.told()[0].proof is None


def test_it_is_told_again_ever_less_often_until_it_reports(mine: Mine) -> None:
    release = mine.publish(1)
    mine.report("gw")
    times = []
    for second in range(200):
        if mine.told():
            times.append(second)
        mine.report("gw") if second % 10 == 0 else mine.step()
        mine.clock.now_ns += S if second % 10 == 0 else 0
    assert [b - a for a, b in pairwise(times)] == [10, 20, 40, 80]
    mine.report("gw", release)
    mine.step()
    assert mine.told() == []


def test_who_runs_what_it_should_is_not_told_of_what_is_for_others(mine: Mine) -> None:
    release = mine.publish(1)
    for name in ("gw-1", "gw-2"):
        mine.report(name)
        mine.report(name, release)
    mine.told()
    other = mine.service.registry.sign(
        msgspec.structs.replace(mine.service.registry.active(), note="for others"), {}, "", status="candidate"
    )
    assert other != release
    for _ in range(5):
        mine.step()
    assert mine.told() == []


@pytest.mark.parametrize("event", ["keys", "a day"])
def test_new_keys_and_a_new_day_are_told_to_everybody(mine: Mine, event: str) -> None:
    release = mine.publish(1)
    mine.report("gw")
    mine.report("gw", release)
    mine.told()
    if event == "keys":
        assert mine.service.repository.rotate("assignments")
    else:
        mine.clock.now_ns += 25 * 3600 * S
        mine.service.repository.refresh()
        mine.report("gw", release)
    mine.step()
    assert [desired.release_id for desired in mine.told()] == [release]
    mine.step()
    assert mine.told() == []


def test_the_files_of_the_metadata_are_not_looked_at_for_each_gateway(mine: Mine) -> None:
    mine.publish(1)
    looks = 0

    def state() -> int:
        nonlocal looks
        looks += 1
        return 1

    mine.service.repository.state = state  # type: ignore[method-assign]
    for number in range(50):
        mine.report(f"gw-{number}")
    for _ in range(10):
        mine.step()
    assert looks <= 12


def big_layer(mine: Mine) -> Layer:
    return mine.service.registry.put(bytes(range(256)) * 1024 * 3)


def test_a_layer_is_published_once_and_each_is_told_where(mine: Mine) -> None:
    layer = big_layer(mine)
    for number in range(4):
        mine.report(f"gw-{number}")
        answer = mine.service.giving.answer(f"gw-{number}", Fetch(layer=layer.hash, offset=0, length=1, shared=True))
        assert isinstance(answer, Shelved)
        assert answer.parcel.total_bytes == layer.size_bytes
    assert sum(bool(parse_release(topic)) for topic, _ in mine.sent) == 1 + 1, "equal pieces are one; and the index"
    assert answer.bytes_per_s == SITE_BYTES_PER_S / 1, "counted when the first one asked"
    mine.clock.now_ns += 11 * S
    answer = mine.service.giving.answer("gw-0", Fetch(layer=layer.hash, offset=0, length=1, shared=True))
    assert isinstance(answer, Shelved)
    assert answer.bytes_per_s == SITE_BYTES_PER_S / 4


def test_who_asks_in_parts_gets_parts_within_the_same_bound(mine: Mine) -> None:
    layer = big_layer(mine)
    ask = Fetch(layer=layer.hash, offset=0, length=PIECE_BYTES)
    giving = mine.service.giving
    assert isinstance(giving.answer("old", ask), LayerPart)
    mine.service.shelf._rate._bytes_per_s = PIECE_BYTES
    assert isinstance(giving.answer("old", ask), LayerPart)
    assert giving.answer("old", ask) is None
    missing = giving.answer("old", Fetch(layer="e" * 64, offset=0, length=1))
    assert isinstance(missing, LayerPart)
    assert missing.total_bytes == 0


def test_a_proof_is_answered_for_while_it_lies_there_and_then_said_to_be_gone(mine: Mine) -> None:
    mine.publish(1)
    mine.report("gw")
    proof = mine.told()[0].proof
    assert proof is not None
    mine.publish(2)  # by now another proves it, but this one is on its way
    ask = Fetch(layer=proof.root.hex(), offset=0, length=1, shared=True, silent=True)
    answer = mine.service.giving.answer("gw", ask)
    assert isinstance(answer, Shelved)
    assert answer.parcel == proof
    answer = mine.service.giving.answer("gw", Fetch(layer="d" * 64, offset=0, length=1, shared=True, silent=True))
    assert isinstance(answer, LayerPart)
    assert answer.total_bytes == 0


def test_a_delta_is_offered_though_the_whole_layer_lies_there_too(mine: Mine) -> None:
    registry, giving = mine.service.registry, mine.service.giving
    (old, new) = (head(np.random.default_rng(1).normal(size=(2, 2000)) * scale) for scale in (1.0, 1.0001))
    base, layer = registry.put(old), registry.put(new)
    whole = giving.answer("new box", Fetch(layer=layer.hash, offset=0, length=1, shared=True))
    delta = giving.answer("old box", Fetch(layer=layer.hash, offset=0, length=1, bases=(base.hash,), shared=True))
    assert isinstance(whole, Shelved)
    assert isinstance(delta, Shelved)
    assert (whole.base, delta.base) == ("", base.hash)
    assert delta.parcel.total_bytes < whole.parcel.total_bytes


def head(directions: NDArray[np.float64]) -> bytes:
    weights = HeadWeights(("normal", "tear"), directions, np.zeros(2), np.ones(2), np.eye(2))
    return export_head(weights, "belt", "b" * 64)
