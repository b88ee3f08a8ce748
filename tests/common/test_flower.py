"""Flower: the version whose internals we touch, and that nothing leaves the machine."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import WireError
from common.flower import (
    ConfigRecord,
    Message,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    node_id_of,
    take_identity,
)

REPOSITORY = Path(__file__).resolve().parents[2]

WATCHED = """
import sys
def watch(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            sys.stderr.write(f"LEAK connect {address}\\n")
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "127.0.0.1", "localhost", "::1", ""):
        sys.stderr.write(f"LEAK lookup {arguments[0]}\\n")
sys.addaudithook(watch)
"""


def run_watched(code: str, **environment: str) -> str:
    """Run code in a fresh process that reports every look-up and connection beyond the loopback."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + code],
        cwd=REPOSITORY,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "LEAK" not in done.stderr, done.stderr
    return done.stdout


def test_the_version_whose_internals_we_touch() -> None:
    assert importlib.metadata.version("flwr").startswith("1.41."), "read common/flower.py again before a new version"


def test_the_watch_does_see_a_leak() -> None:
    with pytest.raises(AssertionError, match=r"LEAK (lookup|connect)"):
        run_watched(
            "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 9), 0.2)\nexcept OSError:\n    pass\n"
        )


@pytest.mark.parametrize("entry", ["simulations.__main__", "edge.app", "cloud.app", "cloud.federation.grid"])
def test_telemetry_is_off_before_flower_is_imported(entry: str) -> None:
    code = f"""
import os, importlib
seen = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "flwr":
            seen.append((os.environ.get("FLWR_TELEMETRY_ENABLED"), os.environ.get("FLWR_DISABLE_UPDATE_CHECK")))
sys.meta_path.insert(0, Finder())
importlib.import_module("{entry}")
if "{entry}" == "simulations.__main__":
    sys.argv = ["headframe", "cloud", "--help"]
    try:
        sys.modules["{entry}"].main()
    except SystemExit:
        pass
    import cloud.app
assert seen and all(item == ("0", "1") for item in seen), seen
print("quiet")
"""
    assert "quiet" in run_watched(code, FLWR_TELEMETRY_ENABLED="1")


def test_a_whole_round_reaches_nothing_outside() -> None:
    code = """
from cloud.federation.grid import MqttGrid
from cloud.federation.server_app import run_round
grid = MqttGrid(lambda gateway, data: True, lambda: ["north-1"])
from common.errors import EnvironmentFault
try:
    run_round(grid, "b" * 64, {"belt": ("normal", "tear")}, lambda _: {}, deadline_s=0.5, quorum=1.0)
except EnvironmentFault as error:
    print(error)
import threading
print([thread.name for thread in threading.enumerate()])
"""
    said = run_watched(code)
    assert "0 of 1 gateways answered" in said
    assert "telemetry" not in said.lower()


def test_a_message_survives_its_bytes_and_garbage_is_refused() -> None:
    take_identity(1)
    message = Message(RecordDict({"c": ConfigRecord({"x": b"1"})}), 7, "train", group_id="1")
    found = message_from_bytes(message_to_bytes(message))
    assert found.metadata.dst_node_id == 7
    assert found.content["c"]["x"] == b"1"
    for garbage in (b"", b"\xff" * 30, message_to_bytes(message)[:-3]):
        with pytest.raises(WireError):
            message_from_bytes(garbage)


def test_node_ids_are_stable_and_apart() -> None:
    ids = {node_id_of(f"gateway-{number}") for number in range(20_000)}
    assert len(ids) == 20_000
    assert min(ids) > 1
    assert max(ids) < 2**63
    assert node_id_of("gateway-1") == node_id_of("gateway-1")
