"""Real processes of the demo and the end-to-end tests: a centre, gateways, their configuration, and kill -9.

Decides nothing about learning; writes the TOML a person would write, and starts the commands a person would start.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from common.errors import EnvironmentFault

START_S = 60.0
STOP_S = 20.0


def toml_value(value: object) -> str:
    """A TOML literal of a string, number, boolean, or a list or table of these."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {toml_value(item)}' for name, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    return json.dumps(str(value), ensure_ascii=False) if isinstance(value, (str, Path)) else repr(value)


def toml_text(values: Mapping[str, Any]) -> str:
    """A TOML document: plain keys first, then tables, then arrays of tables."""
    plain = [f"{k} = {toml_value(v)}" for k, v in values.items() if not isinstance(v, dict) and not _is_tables(v)]
    tables = [
        f"\n[{k}]\n" + "\n".join(f"{n} = {toml_value(x)}" for n, x in v.items())
        for k, v in values.items()
        if isinstance(v, dict)
    ]
    arrays = [
        f"\n[[{k}]]\n" + "\n".join(f"{n} = {toml_value(x)}" for n, x in row.items() if x is not None)
        for k, v in values.items()
        if _is_tables(v)
        for row in v
    ]
    return "\n".join([*plain, *tables, *arrays]) + "\n"


def _is_tables(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, dict) for item in value)


@dataclass
class Managed:
    """One of our processes, started again after a kill like systemd would."""

    name: str
    arguments: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0
    module: Sequence[str] = ("simulations",)
    """What `python -m` runs."""

    def start(self) -> None:
        """Start it; its log is appended to `log`."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.module, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """kill -9, no chance to tidy up."""
        if self.process and self.alive:
            self.process.kill()
            self.process.wait(STOP_S)
            self.kills += 1

    def stop(self) -> int:
        """SIGTERM, and the exit status; killed when it does not end in time."""
        if self.process is None:
            return 0
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(STOP_S)


@dataclass
class Centre:
    """The centre as a process, and its console as a client sees it."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "cloud.toml"
        values = {
            "data_dir": self.folder / "data",
            "broker": {"embedded": True, "port": free_port()},
            "console": {"port": 0},
            "rollout": {"healthy_frames": 5, "soak_s": 1.0, "deadline_s": 60.0},
            **self.settings,
        }
        self.config.write_text(toml_text(values), encoding="utf-8")
        self.managed = Managed("centre", ["cloud", "run", "--config", str(self.config)], self.folder / "centre.log")

    @property
    def where(self) -> dict[str, int]:
        """Ports, as the running centre wrote them."""
        found: dict[str, int] = json.loads((self.folder / "data" / "console.json").read_text())
        return found

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.where['port']}"

    def start(self) -> None:
        """Start and wait until the console answers.

        Raises:
            EnvironmentFault: it ended or did not answer; the message holds the end of its log.
        """
        (self.folder / "data" / "console.json").unlink(missing_ok=True)
        self.managed.start()
        wait_for(self._answers, START_S, "the centre's console", self.managed)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/api/v1/health", timeout=2).status_code == 200
        except (httpx.HTTPError, OSError, ValueError):
            return False

    def get(self, path: str, **parameters: Any) -> Any:
        """GET of the console's JSON API."""
        reply = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=20)
        reply.raise_for_status()
        return reply.json()

    def post(self, path: str, body: Any) -> Any:
        """POST to the console's JSON API."""
        reply = httpx.post(f"{self.url}/api/v1/{path}", json=body, timeout=20)
        reply.raise_for_status()
        return reply.json()


def make_gateway(folder: Path, values: Mapping[str, Any]) -> Managed:
    """Write edge.toml for a gateway and describe its process (not started)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "edge.toml"
    config.write_text(toml_text({"data_dir": folder / "data", **values}), encoding="utf-8")
    return Managed(str(values["gateway_id"]), ["edge", "run", "--config", str(config)], folder / "edge.log")


def wait_for(
    condition: Callable[[], bool],
    timeout_s: float,
    what: str,
    process: Managed | None = None,
    every_s: float = 0.2,
) -> None:
    """Wait until `condition` holds.

    Raises:
        EnvironmentFault: not within `timeout_s`, or `process` ended before.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        ended = process is not None and not process.alive
        if ended or time.monotonic() > deadline:
            tail = process.log.read_text(errors="replace")[-2000:] if process and process.log.exists() else ""
            how = "ended" if ended else f"was not there in {timeout_s:g} s"
            raise EnvironmentFault(f"{what} {how}\n{tail}", f"See {process.log}." if process else "")
        time.sleep(every_s)


def free_port() -> int:
    """A TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
