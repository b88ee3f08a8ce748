"""A centre behind a broker with client certificates: the files of `deploy/mosquitto`, or the embedded broker."""

import datetime as dt
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from cloud.authority import CENTRE_FILE, Authority
from cloud.broker import EmbeddedBroker
from cloud.guard import roster_version
from cloud.service import Service
from cloud.settings import CloudSettings
from common.certificates import Identity, new_key
from common.errors import EnvironmentFault, OperatorError
from common.mqtt import Broker, MqttLink
from common.topics import down_filter
from simulations.mosquitto import find_mosquitto
from simulations.processes import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "mosquitto"
HOST = "127.0.0.1"
START_S = 15.0
Reload = Callable[[], None]


@dataclass
class SecuredCentre:
    """The centre, its broker's address, and the identities that tests and attackers use."""

    folder: Path
    broker: Broker
    service: Service
    authority: Authority
    reload: Reload
    links: list[MqttLink] = field(default_factory=list)

    def identity(self, name: str, authority: Authority | None = None, at: dt.datetime | None = None) -> Path:
        """A file with a certificate of that name and its key."""
        key = new_key()
        pem = (authority or self.authority).issue(name, key.public_key(), at or now())
        path = self.folder / "identities" / f"{name}-{len(list((self.folder / 'identities').glob('*')))}.pem"
        Identity(x509.load_pem_x509_certificate(pem), key).save(path)
        self.reload()
        return path

    def connect(
        self, cert_file: Path | None, client_id: str, *filters: str, wait_s: float = START_S
    ) -> tuple[MqttLink, list[tuple[str, bytes]]]:
        """A client, and what it receives. Whoever waits 0 s looks at `connected` later."""
        got: list[tuple[str, bytes]] = []
        broker = Broker(self.broker.host, self.broker.port, ca_file=self.broker.ca_file, cert_file=cert_file)
        link = MqttLink(broker, client_id, filters, lambda topic, payload: got.append((topic, payload)))
        self.links.append(link)
        link.start()
        if wait_s:
            link.wait_connected(wait_s)
        return link, got

    def gateway(self, name: str) -> tuple[MqttLink, list[tuple[str, bytes]], Path]:
        """A gateway with a valid certificate, connected as the agent connects."""
        path = self.identity(name)
        link, got = self.connect(path, f"headframe-{name}", down_filter(name))
        return link, got, path


@contextmanager
def secured_centre(folder: Path, kind: str, port: int = 0) -> Iterator[SecuredCentre]:
    """Run a centre behind `mosquitto` or the `embedded` broker.

    Raises:
        OperatorError: mosquitto or its configuration is not here.
        EnvironmentFault: a broker did not start.
    """
    port = port or free_port()
    data = folder / "centre"
    authority = Authority.create(data / "ca", "Bench", now())
    authority.equip([HOST], now())
    run = _mosquitto if kind == "mosquitto" else _embedded
    with run(folder, data, port) as (reload, log_file):
        broker = Broker(HOST, port, ca_file=data / "ca" / "ca.pem", cert_file=data / "ca" / CENTRE_FILE)
        settings = CloudSettings.model_validate(
            {"data_dir": data, "broker": {"embedded": False, "host": HOST, "port": port, "log_file": log_file}}
        )
        service = Service(settings, broker)
        centre = SecuredCentre(folder, broker, service, authority, reload)
        try:
            service.start()
            service.link.wait_connected(START_S)
            yield centre
        finally:
            for link in centre.links:
                link.stop()
            service.stop()


@contextmanager
def _mosquitto(folder: Path, data: Path, port: int) -> Iterator[tuple[Reload, Path]]:
    """The deployed files with only ports and paths replaced."""
    binary = find_mosquitto()
    if binary is None:
        raise OperatorError("mosquitto is not installed", "apt-get install mosquitto")
    if not DEPLOY.is_dir():
        raise OperatorError(f"there is no {DEPLOY}", "Run it from the source tree.")
    log_file, store = folder / "mosquitto.log", folder / "mosquitto"
    store.mkdir(parents=True)
    text = (DEPLOY / "headframe.conf").read_text(encoding="utf-8")
    for before, after in (
        ("listener 8883", f"listener {port} {HOST}"),
        ("/etc/mosquitto/certs/", f"{data / 'ca'}/"),
        ("/etc/mosquitto/headframe.acl", str(DEPLOY / "headframe.acl")),
        ("/var/lib/mosquitto/", f"{store}/"),
        ("/var/log/mosquitto/headframe.log", str(log_file)),
    ):
        if before not in text:
            raise OperatorError(f"deploy/mosquitto/headframe.conf no longer says {before!r}", "Mend this table.")
        text = text.replace(before, after)
    config = folder / "mosquitto.conf"
    config.write_text(text + ("user root\n" if os.geteuid() == 0 else ""), encoding="utf-8")
    process = subprocess.Popen([binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_port(port, process)
        yield (lambda: process.send_signal(signal.SIGHUP)), log_file
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def _embedded(folder: Path, data: Path, port: int) -> Iterator[tuple[Reload, Path]]:
    broker = EmbeddedBroker(folder / "broker", HOST, port, data / "ca")
    broker.start()
    known = [roster_version(data / "ca")]

    def reload() -> None:
        if (version := roster_version(data / "ca")) != known[0]:
            known[0] = version
            broker.reload()
            time.sleep(0.3)  # SIGHUP is not answered

    try:
        yield reload, folder / "broker" / "broker.log"
    finally:
        broker.stop()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise EnvironmentFault("mosquitto did not start", "Run it by hand with the same file to see why.")


def now() -> dt.datetime:
    """The time, with its zone."""
    return dt.datetime.now(dt.UTC)
