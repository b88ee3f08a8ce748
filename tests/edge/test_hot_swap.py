"""Releases swapped in between two frames of a running agent: counted, not believed."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cloud.trust import Repository
from common import codec, topics
from common.clock import SystemClock
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario, encode_manifest, release_id
from common.messages import Desired, Fetch, LayerPart
from common.mqtt import Broker, MqttLink
from common.settings import BrokerSection
from edge.agent import Agent
from edge.settings import CameraSettings, EdgeSettings, InstallSettings

FRAMES = 160
FPS = 20.0


class Depot:
    """The centre as far as releases go: answers fetches, publishes what is desired."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.repository = Repository.open(folder / "trust", SystemClock())
        self.layers: dict[str, bytes] = {}
        self.link = MqttLink(broker, "depot", (topics.up_filter(),), self._on, window=256)
        self.link.start()
        self.link.wait_connected(15)

    def put(self, data: bytes) -> Layer:
        self.layers[layer_hash(data)] = data
        return Layer(layer_hash(data), len(data))

    def release(self, sequence: int, backbone: bytes, head: bytes) -> str:
        scenario = Scenario("belt", ("normal", "tear"), "normal", {SHARED: self.put(head)})
        now_ns = time.time_ns()
        manifest = Manifest(
            sequence=sequence,
            created_at_ns=now_ns,
            expires_at_ns=now_ns + 10**15,
            minimum_agent="0.1.0",
            backbone=self.put(backbone),
            scenarios=(scenario,),
        )
        data = encode_manifest(manifest)
        self.repository.add(data, (), ())
        desired = Desired(
            manifest=data,
            metadata=self.repository.bundle(data, b""),
            assignment=self.repository.assign("gw-1", data, sequence),
        )
        assert self.link.publish(topics.down("gw-1", "desired"), codec.encode(desired), retain=True)
        return release_id(manifest)

    def _on(self, topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        if isinstance(message, Fetch):
            data = self.layers[message.layer]
            part = LayerPart(
                layer=message.layer,
                offset=message.offset,
                total_bytes=len(data),
                data=data[message.offset : message.offset + message.length],
            )
            self.link.publish(topics.down("gw-1", "layer"), codec.encode(part))


@pytest.fixture
def depot(broker: Broker, tmp_path: Path) -> Iterator[Depot]:
    made = Depot(broker, tmp_path)
    yield made
    made.link.stop()


def wait_until(condition: Callable[[], bool], step: Callable[[], None], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        step()
        time.sleep(0.005)


def test_no_frame_is_dropped_and_each_is_seen_by_one_whole_release(
    depot: Depot,
    broker: Broker,
    tmp_path: Path,
    tiny_backbone: Callable[..., bytes],
    tiny_head: Callable[..., bytes],
) -> None:
    pictures = tmp_path / "camera"
    pictures.mkdir()
    for number in range(FRAMES):
        cv2.imwrite(str(pictures / f"{number:04d}.png"), np.full((12, 16, 3), number % 250, np.uint8))
    backbones = [tiny_backbone(), tiny_backbone(), tiny_backbone(seed=3)]
    first = depot.release(1, backbones[0], tiny_head(layer_hash(backbones[0])))
    root = tmp_path / "root.json"
    root.write_bytes(depot.repository.root())
    settings = EdgeSettings(
        gateway_id="gw-1",
        site_id="north",
        data_dir=tmp_path / "gateway",
        release_root=root,
        broker=BrokerSection(port=broker.port),
        install=InstallSettings(shadow_frames=5, probation_frames=5),
        cameras=(CameraSettings(id="belt", source=str(pictures), looks_per_s=FPS, picture_fps=FPS),),
    )
    warm = Agent(settings)  # fetches the first release, so that the run below begins with one
    warm.start()
    wait_until(lambda: warm.release_id == first, warm.step)
    warm.stop()

    agent = Agent(settings)
    agent.start()
    releases = [first]
    closed: dict[str, int] = {}
    try:
        for sequence, backbone in enumerate(backbones[1:], start=2):  # a head-only release, then a new backbone
            wait_until(lambda: agent.looks_by_release[releases[-1]] > 25, agent.step)
            releases.append(depot.release(sequence, backbone, tiny_head(layer_hash(backbone), seed=sequence)))
            wait_until(lambda: agent.looks_by_release[releases[-1]] > 0, agent.step)
            for old in releases[:-1]:
                closed.setdefault(old, agent.looks_by_release[old])
        wait_until(lambda: agent.ended, agent.step)
        state = agent.state()
        looks = dict(agent.looks_by_release)
    finally:
        agent.stop()
    (camera,) = state.cameras
    assert camera.frames == FRAMES
    assert camera.looks == FRAMES
    # on a starved machine a frame may be replaced by a newer one while it waits; none may be lost between two models
    assert sum(looks.values()) == FRAMES - camera.dropped, "each frame that was taken was seen once"
    assert camera.dropped < FRAMES // 4
    assert list(looks) == releases, "in order, and by nothing else"
    assert {old: looks[old] for old in closed} == closed, "an old release never comes back"
    assert state.release_id == releases[-1]
    samples = [codec.decode(queued.payload) for queued in reopen(settings).pending(1000)]
    assert {sample.release_id for sample in samples} <= set(releases)  # type: ignore[union-attr]


def reopen(settings: EdgeSettings):  # type: ignore[no-untyped-def]
    from edge.spool import Spool

    return Spool.open(settings.data_dir / "spool.db", 10**9)
