"""The embedded broker: nats-server from PyPI as an MQTT 3.1.1 broker, kept alive while the centre lives.

It keeps acknowledged messages through kill -9; still, nothing relies on it (receipts do that). The real server behind
the default of one machine; production points `[broker]` at its own.
"""

import ctypes
import datetime as dt
import json
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from cloud.authority import CENTRE_FILE, Authority
from cloud.settings import CloudSettings
from common.certificates import CENTRE
from common.errors import EnvironmentFault, HeadframeError, OperatorError
from common.files import write_atomically
from common.mqtt import Broker
from common.tls import client_context

log = logging.getLogger(__name__)

PAYLOAD_MAX = "64MB"
START_S = 15.0
STOP_S = 10.0
PORT_WAIT_S = 20.0
"""With a thousand connections the broker of a killed centre takes more than three seconds to end."""
WATCH_S = 0.5
RESTART_S_MAX = 10.0
LOG_TAIL_BYTES = 800
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: after a fork it could deadlock
_CLIENT_ID = b"headframe-probe"
_CONNECT = (
    bytes([0x10, 12 + len(_CLIENT_ID)]) + b"\x00\x04MQTT\x04\x02\x00\x0a\x00" + bytes([len(_CLIENT_ID)]) + _CLIENT_ID
)
_CONNECTED = b"\x20\x02\x00\x00"


def broker_of(settings: CloudSettings) -> Broker:
    """Where a process beside the running centre connects, as the centre."""
    section, folder = settings.broker, settings.data_dir
    if not section.embedded:
        return section.to_broker()
    return EmbeddedBroker(folder / "broker", section.host, section.port, folder / "ca" if section.tls else None).broker


class EmbeddedBroker:
    """Starts, watches and stops the server; its files are in `folder`. Port 0 takes a free one and keeps it.

    One thread owns the server: Linux ends a child with the thread that started it, so that thread must live.

    Args:
        authority: folder of the authority: TLS with client certificates, each gateway with its own topics. None: plain.
    """

    def __init__(self, folder: Path, host: str, port: int, authority: Path | None = None) -> None:
        self._folder, self._host, self._authority = folder, host, authority
        self._port = port or self._remembered() or _free_port(host)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._outcome: queue.Queue[HeadframeError | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    @property
    def broker(self) -> Broker:
        """Where the centre connects."""
        if self._authority is None:
            return Broker(host=self._host, port=self._port)
        near = "127.0.0.1" if self._host == "0.0.0.0" else self._host  # noqa: S104
        return Broker(near, self._port, ca_file=self._authority / "ca.pem", cert_file=self._authority / CENTRE_FILE)

    @property
    def pid(self) -> int | None:
        """Process id of the server, when it runs."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def start(self) -> None:
        """Start and wait until MQTT answers.

        Raises:
            OperatorError: the port is taken.
            EnvironmentFault: the server is not installed or ended at once; holds the end of its log.
        """
        self._await_port()
        write_atomically(self._folder / "broker.json", json.dumps({"port": self._port}).encode())
        write_atomically(self._folder / "nats.conf", self._configuration().encode())
        self._thread.start()
        error = self._outcome.get(timeout=START_S + STOP_S)
        if error:
            raise error

    def reload(self) -> None:
        """Take up who was enrolled or revoked since; connections of those who may stay, stay."""
        write_atomically(self._folder / "nats.conf", self._configuration().encode())
        process = self._process
        if process and process.poll() is None:
            process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End the server; acknowledged messages are on disk."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(START_S + STOP_S)

    def _await_port(self) -> None:
        """A killed centre's broker dies with it, but a moment later: give the port that moment."""
        deadline = time.monotonic() + PORT_WAIT_S
        said = False
        while True:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self._host, self._port))
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise OperatorError(
                            f"port {self._port} of {self._host}, for the embedded broker, is taken ({error.strerror})",
                            "Set broker.port to a free one, or broker.embedded = false to use the broker there.",
                        ) from error
                    if not said:
                        log.info("port %d is taken; waiting up to %g s for it", self._port, PORT_WAIT_S)
                        said = True
                else:
                    return
            time.sleep(0.1)

    def _configuration(self) -> str:
        """MQTT on our host; NATS's own protocol, which nobody needs, on the loopback and a port of its choice."""
        return (
            "server_name: headframe\n"
            'listen: "127.0.0.1:-1"\n'
            f"max_payload: {PAYLOAD_MAX}\n"
            f"jetstream {{ store_dir: {json.dumps(str(self._folder.resolve() / 'jetstream'))} }}\n"
            + (self._secured() if self._authority else f'mqtt {{ listen: "{self._host}:{self._port}" }}\n')
        )

    def _secured(self) -> str:
        """TLS, and one user per certificate, named by its subject; MQTT's `/` and `+` are NATS's `.` and `*`."""
        folder = self._authority
        if folder is None:
            raise ValueError("plain")
        users = [f'{{ user: "CN={CENTRE}" }}']
        for name in Authority.open(folder).enrolled(dt.datetime.now(dt.UTC)):
            # what is at QoS 1 is delivered on $MQTT.sub
            up, down = f"headframe.up.*.{name}.*", f"headframe.down.{name}.*"
            users.append(
                f'{{ user: "CN={name}", permissions: {{ publish: {{ allow: ["{up}"] }}, '
                f'subscribe: {{ allow: ["{down}", "headframe.release.*", "$MQTT.sub.>"] }} }} }}'
            )
        quoted = {part: json.dumps(str(folder.resolve() / part)) for part in ("ca.pem", "server.pem", "server.key")}
        return (
            f"authorization {{ users = [\n{chr(10).join(users)}\n] }}\n"
            f'mqtt {{ listen: "{self._host}:{self._port}", tls {{ cert_file: {quoted["server.pem"]}, '
            f"key_file: {quoted['server.key']}, ca_file: {quoted['ca.pem']}, verify_and_map: true }} }}\n"
        )

    def _run(self) -> None:
        try:
            self._launch()
        except HeadframeError as error:
            self._end()
            self._outcome.put(error)
            return
        self._outcome.put(None)
        wait_s = WATCH_S
        while not self._stopping.wait(wait_s):
            if self._process and self._process.poll() is None:
                wait_s = WATCH_S
                continue
            log.error("the embedded broker has ended; starting it again")
            try:
                self._launch()
            except HeadframeError as error:
                log.error("%s", error)
                self._end()
                wait_s = min(2 * wait_s, RESTART_S_MAX)
        self._end()

    def _launch(self) -> None:
        """Start the server and wait until it answers, or until we are asked to stop."""
        log_file = self._folder / "broker.log"
        if log_file.exists():
            log_file.replace(log_file.with_suffix(".log.1"))
        parent = os.getpid()
        try:
            with log_file.open("wb") as output:
                self._process = subprocess.Popen(
                    [_find_server(), "-c", str(self._folder / "nats.conf")],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509  two system calls
                )
        except OSError as error:
            raise EnvironmentFault(f"the embedded broker cannot be started: {error}", "Check data_dir.") from error
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None and not self._stopping.is_set():
            if _answers(self.broker):
                return
            time.sleep(0.05)
        if not self._stopping.is_set():
            tail = log_file.read_text(errors="replace")[-LOG_TAIL_BYTES:]
            raise EnvironmentFault(f"the embedded broker did not start:\n{tail}", f"See {log_file}.")

    def _end(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)

    def _remembered(self) -> int:
        try:
            return int(json.loads((self._folder / "broker.json").read_text())["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0


def _find_server() -> str:
    beside_python = Path(sys.executable).with_name("nats-server")
    found = str(beside_python) if beside_python.exists() else shutil.which("nats-server")
    if found is None:
        raise EnvironmentFault("nats-server is not installed", "pip install 'headframe[cloud]' brings it.")
    return found


def _answers(broker: Broker) -> bool:
    """Whether an MQTT server says CONNACK."""
    try:
        with socket.create_connection((broker.host, broker.port), timeout=1) as connection:
            if broker.ca_file is None:
                return _says_connack(connection)
            context = client_context(broker.ca_file, broker.cert_file, broker.key_file)
            with context.wrap_socket(connection, server_hostname=broker.host) as secured:
                return _says_connack(secured)
    except OSError:
        return False


def _says_connack(connection: socket.socket) -> bool:
    connection.sendall(_CONNECT)
    return connection.recv(4) == _CONNECTED


def _die_with(parent: int) -> None:
    """Linux: the server gets SIGTERM when the centre is killed, so that the port and the files are free again."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before this line
            os._exit(1)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
