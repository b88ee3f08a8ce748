"""Releases published once, over real brokers with certificates: agents take them, one of before is served as before."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.manifest import SHARED, Scenario
from edge.agent import Agent
from edge.settings import EdgeSettings
from simulations.bench._secured import SecuredCentre, secured_centre
from simulations.mosquitto import find_mosquitto

Make = Callable[..., bytes]


@contextmanager
def running_agent(centre: SecuredCentre, folder: Path, name: str) -> Iterator[Agent]:
    """A gateway of the site north, with a camera that shows a folder of pictures."""
    folder = folder / name
    (folder / "camera").mkdir(parents=True)
    cv2.imwrite(str(folder / "camera" / "0.png"), np.zeros((12, 16, 3), np.uint8))
    root = folder / "root.json"
    root.write_bytes(centre.service.repository.root())
    broker = {
        "host": centre.broker.host,
        "port": centre.broker.port,
        "ca_file": centre.broker.ca_file,
        "cert_file": centre.identity(name),
    }
    agent = Agent(
        EdgeSettings.model_validate(
            {
                "gateway_id": name,
                "site_id": "north",
                "release_root": root,
                "data_dir": folder / "data",
                "broker": broker,
                "cameras": [{"id": "belt", "source": str(folder / "camera")}],
            }
        )
    )
    agent.start()
    try:
        yield agent
    finally:
        agent.stop()


def turn(centre: SecuredCentre, agents: list[Agent], condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, [agent.installer.outcome for agent in agents]
        centre.service.step()
        for agent in agents:
            agent.step()
        time.sleep(0.05)


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_one_publish_serves_every_gateway(tmp_path: Path, broker: str, tiny_backbone: Make, tiny_head: Make) -> None:
    if broker == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    with (
        secured_centre(tmp_path, broker) as centre,
        running_agent(centre, tmp_path, "north-1") as first,
        running_agent(centre, tmp_path, "north-2") as second,
        running_agent(centre, tmp_path, "old-1") as old,
    ):
        old.proofs._back_at_s = float("inf")  # as one that knows nothing of this
        registry, sent = centre.service.registry, centre.service.link.bytes_out
        backbone = registry.put(tiny_backbone())
        head = registry.put(tiny_head(backbone.hash))
        scenario = Scenario("belt", ("normal", "tear"), "normal", {SHARED: head})
        name = registry.publish((scenario,), backbone, {"passed": True}, "the first")
        agents = [first, second, old]
        turn(centre, agents, lambda: all(agent.release_id == name for agent in agents))
        layers = backbone.size_bytes + head.size_bytes
        assert layers < sent["release"] < layers + 8_000, "once, and the proof"
        assert layers < sent["layer"] < layers + 2_000, "for the old one alone"
        assert first.installer.bytes_down == second.installer.bytes_down == layers
        assert [state.shared for state in (first.state(), old.state())] == [True, False]
        turn(centre, agents, lambda: not (first.shared._now or second.shared._now))
        centre.service.guard.step()
        assert centre.service.guard.attempts.fresh(time.time_ns()) == [], "nobody did what it may not"
