"""The agent's process as systemd sees it: ready, alive, stopping."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from common.flower import (
    ArrayRecord,
    Message,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    name_message,
    node_id_of,
    take_identity,
)
from common.settings import load_settings
from common.training import AdapterTask, pack_task
from edge.agent import Agent
from edge.app import STEP_S, notify_systemd
from edge.settings import EdgeSettings, TrainingSettings

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    """The end of systemd's notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(120)
        yield channel


def test_a_line_reaches_the_supervisor_and_without_one_nothing_happens(
    supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_systemd("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", supervisor.getsockname())
    notify_systemd("WATCHDOG=1")
    assert supervisor.recv(100) == b"WATCHDOG=1"


def test_an_abstract_address_begins_with_a_null_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0headframe-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@headframe-test-{os.getpid()}")
        notify_systemd("READY=1")
        assert channel.recv(100) == b"READY=1"


@pytest.fixture
def config(tmp_path: Path, free_port: int, release_root: Path) -> Path:
    """edge.toml of a gateway with one camera and no centre."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        cv2.imwrite(str(pictures / f"{number}.png"), np.full((12, 16, 3), 60 * number, np.uint8))
    path = tmp_path / "edge.toml"
    path.write_text(
        f'gateway_id = "gw-1"\nsite_id = "north"\nrelease_root = "{release_root}"\ndata_dir = "{tmp_path / "data"}"\n'
        f"[broker]\nport = {free_port}\n"
        f'[[cameras]]\nid = "gate"\nsource = "{pictures}"\nloop = true\n'
    )
    return path


@pytest.fixture
def agent(config: Path, supervisor: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """The command, as the unit runs it."""
    command = [sys.executable, "-m", "simulations", "edge", "run", "--config", str(config)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | {"NOTIFY_SOCKET": str(supervisor.getsockname())}
    )
    yield process
    process.kill()
    process.wait(10)


def test_the_agent_is_ready_then_feeds_the_watchdog_then_stops(
    agent: subprocess.Popen[bytes], supervisor: socket.socket
) -> None:
    assert supervisor.recv(100) == b"READY=1"
    unit = RawConfigParser(strict=False)
    unit.read(REPOSITORY / "deploy" / "systemd" / "headframe-edge.service")
    assert unit["Service"]["Type"] == "notify"
    began_s = time.monotonic()
    for _ in range(3):
        assert supervisor.recv(100) == b"WATCHDOG=1"
    assert time.monotonic() - began_s < 3 * float(unit["Service"]["WatchdogSec"]) / 2, "systemd asks for half of it"
    assert float(unit["Service"]["WatchdogSec"]) > 20 * STEP_S
    os.kill(agent.pid, signal.SIGSTOP)  # a process that hangs says nothing: systemd ends it
    supervisor.settimeout(0.1)
    with pytest.raises(TimeoutError):
        while True:
            supervisor.recv(100)
    supervisor.settimeout(4 * STEP_S)
    with pytest.raises(TimeoutError):
        supervisor.recv(100)
    os.kill(agent.pid, signal.SIGCONT)
    agent.send_signal(signal.SIGTERM)
    supervisor.settimeout(120)
    said = b""
    while said != b"STOPPING=1":
        said = supervisor.recv(100)
    assert agent.wait(120) == 0


def test_an_agent_whose_terminal_is_closed_ends(config: Path, supervisor: socket.socket) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "simulations", "edge", "run", "--config", str(config)]
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        cwd=REPOSITORY,
        env=os.environ | {"NOTIFY_SOCKET": str(supervisor.getsockname())},
        stdin=theirs,
        stdout=subprocess.DEVNULL,
    )
    os.close(theirs)
    try:
        assert supervisor.recv(100) == b"READY=1"
        os.close(ours)
        said = b""
        while said != b"STOPPING=1":
            said = supervisor.recv(100)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait(10)


def reported(config: Path, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The state on the agent's page, once it is as wanted."""
    port = json.loads((config.parent / "data" / "status.json").read_text())["port"]
    deadline = time.monotonic() + 20
    while True:
        state: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/api/state", timeout=10).json()
        if holds(state):
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.1)


def test_on_sighup_cameras_come_and_go_and_a_wrong_file_changes_nothing(
    agent: subprocess.Popen[bytes], supervisor: socket.socket, config: Path
) -> None:
    assert supervisor.recv(100) == b"READY=1"
    frames = reported(config, lambda state: state["cameras"][0]["frames"] > 0)["cameras"][0]["frames"]
    good = config.read_text()
    camera = good[good.index("[[cameras]]") :]

    config.write_text(good + "[[cameras]]\nid = 'gate'\nsource = 'elsewhere'\n")
    agent.send_signal(signal.SIGHUP)
    state = reported(config, lambda state: state["config"].startswith("refused"))
    assert "camera ids are not unique: gate, gate" in state["config"]
    assert [one["camera_id"] for one in state["cameras"]] == ["gate"]

    config.write_text("heartbeat_s = 3\n" + good + camera.replace('"gate"', '"yard"'))
    agent.send_signal(signal.SIGHUP)
    state = reported(config, lambda state: len(state["cameras"]) == 2)
    assert state["config"] == "applied: attached yard; at the next start: heartbeat_s"
    state = reported(config, lambda state: state["cameras"][1]["frames"] > 0)
    assert state["cameras"][0]["frames"] > frames
    assert state["cameras"][0]["reconnects"] == 0
    config.write_text(good.replace(camera, camera.replace('"gate"', '"yard"')))
    agent.send_signal(signal.SIGHUP)
    state = reported(config, lambda state: len(state["cameras"]) == 1)
    assert state["config"] == "applied: detached gate"
    assert agent.poll() is None


def test_a_box_that_names_an_app_reports_that_it_trains_and_asks_that_app(config: Path) -> None:
    known = load_settings(EdgeSettings, config)

    def answer(share: str, app: str) -> tuple[bool, str]:
        """What it reports, and what it answers to a round for a backbone that it does not have."""
        agent = Agent(known.model_copy(update={"share": share, "training": TrainingSettings(app=app)}))
        task = AdapterTask(backbone="b" * 64, depth="adapter", rounds=1)
        message = Message(RecordDict({"arrays": ArrayRecord(), "config": pack_task(task)}), node_id_of("gw-1"), "train")
        name_message(message, "asked")
        reply = agent.learner.answer(message_to_bytes(message))
        assert reply is not None
        agent.spool.close()
        agent.exemplars.close()
        return agent.trainer.trains, str(message_from_bytes(reply).error.reason)

    take_identity(1)
    ours = "cloud.finetuning.site_app:app"
    trains, said = answer("updates", ours)
    assert trains
    assert "no labelled pictures" in said
    assert answer("samples", ours) == (False, "this site shares no weight updates")
    trains, said = answer("both", "")
    assert not trains
    assert "names no app" in said
