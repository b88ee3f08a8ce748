"""A mosquitto of our own for simulations: started with the limits that a fleet needs, killed and started again.

The broker of production for thousands of gateways; `deploy/mosquitto` has the configuration with TLS and ACL.
"""

import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import EnvironmentFault
from common.mqtt import Broker
from simulations import packets
from simulations.processes import STOP_S, free_port

START_S: Final = 20.0
FILES_SPARE: Final = 500
"""Open files of a process beside its connections."""
_FOLDERS = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_CONNECTED = b"\x20\x02\x00\x00"


def find_mosquitto() -> str | None:
    """The server, or None when it is not installed. Debian keeps it where a user's PATH does not look."""
    return shutil.which("mosquitto", path=_FOLDERS)


def raise_open_files(wanted: int) -> None:
    """Let this process, and those it starts, hold `wanted` connections and some files.

    Raises:
        EnvironmentFault: the hard limit is lower, and we may not raise it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES_SPARE
    if soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (ValueError, OSError) as error:
        raise EnvironmentFault(
            f"{wanted} connections need {needed} open files, the limit is {hard}",
            "Raise it: `ulimit -n` as root, LimitNOFILE= of the unit, or nofile in /etc/security/limits.conf.",
        ) from error


class Mosquitto:
    """One server on a free port of the loopback, which it keeps over restarts.

    Args:
        persistent: keep sessions and retained messages on disk, in `folder`/data, as production does.
    """

    def __init__(self, folder: Path, *, persistent: bool = False) -> None:
        found = find_mosquitto()
        if found is None:
            raise EnvironmentFault("mosquitto is not installed", "apt-get install mosquitto")
        folder.mkdir(parents=True, exist_ok=True)
        self.broker = Broker(port=free_port())
        self.data = folder / "data"
        self.kills = 0
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._config = folder / "mosquitto.conf"
        lines = [
            f"listener {self.broker.port} {self.broker.host}",
            "allow_anonymous true",
            "user root",  # takes effect only for root; another user stays who it is
            "max_queued_messages 0",  # without bound: receipts bound what is under way
            "max_inflight_messages 256",
            "log_type error",
            "log_type warning",
        ]
        if persistent:
            self.data.mkdir(exist_ok=True)
            lines += ["persistence true", f"persistence_location {self.data}/", "autosave_interval 5"]
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._command = [found, "-c", str(self._config)]

    @property
    def pid(self) -> int | None:
        """Process id, when it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start and wait until it accepts clients.

        Raises:
            EnvironmentFault: it does not.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"mosquitto does not answer:\n{self._log.read_text(errors='replace')[-800:]}", f"See {self._log}."
                )
            time.sleep(0.03)

    def kill(self) -> None:
        """kill -9."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait(STOP_S)
            self.kills += 1

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when it does not end in time."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.broker.host, self.broker.port), timeout=1) as connection:
                connection.sendall(packets.connect("headframe-probe"))
                answer = connection.recv(4)
                connection.sendall(packets.DISCONNECT)
                return answer == _CONNECTED
        except OSError:
            return False


@contextmanager
def running_mosquitto(folder: Path, *, persistent: bool = False) -> Iterator[Mosquitto]:
    """A mosquitto that runs within the block."""
    server = Mosquitto(folder, persistent=persistent)
    server.start()
    try:
        yield server
    finally:
        server.stop()
