"""Entry of the central process: broker, service and console, until SIGTERM or SIGINT."""

import json
import logging
import os
import signal
import threading
from pathlib import Path

from common.errors import EnvironmentFault
from common.files import own_folder, write_atomically
from common.logs import configure_logs
from common.quiet import silence_flower

silence_flower()

from cloud.broker import EmbeddedBroker  # noqa: E402
from cloud.console.server import ConsoleServer  # noqa: E402
from cloud.desk import Desk  # noqa: E402
from cloud.guard import roster_version  # noqa: E402
from cloud.service import Service  # noqa: E402
from cloud.settings import CloudSettings  # noqa: E402

log = logging.getLogger(__name__)

STEP_S = 0.5
BROKER_WAIT_S = 20.0


def run_centre(settings: CloudSettings) -> None:
    """Run until a signal asks to stop.

    Raises:
        OperatorError: another centre works in the same data_dir.
        EnvironmentFault: the broker cannot be started or reached, or a port is taken.
    """
    configure_logs(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with own_folder(settings.data_dir):
        _run(settings, stop)


def _run(settings: CloudSettings, stop: threading.Event) -> None:
    authority = settings.data_dir / "ca"
    embedded = EmbeddedBroker(
        settings.data_dir / "broker",
        settings.broker.host,
        settings.broker.port,
        authority if settings.broker.tls else None,
    )
    broker = settings.broker.to_broker()
    if settings.broker.embedded:
        embedded.start()
        broker = embedded.broker
    service = Service(settings, broker)
    console = ConsoleServer(settings.console.host, settings.console.port, Desk(service))
    try:
        service.start()
        service.link.wait_connected(BROKER_WAIT_S)
        console.start()
        where = {"port": console.port, "pid": os.getpid(), "mqtt_port": broker.port}
        told = _tell_where(settings.data_dir, where)
        log.info("centre runs: console on port %d, MQTT on port %d", console.port, broker.port)
        roster = roster_version(authority)
        while not stop.wait(STEP_S):
            told = told or _tell_where(settings.data_dir, where)
            service.step()
            if settings.broker.embedded and settings.broker.tls and (now := roster_version(authority)) != roster:
                roster = now
                embedded.reload()
    finally:
        console.stop()
        service.stop()
        if settings.broker.embedded:
            embedded.stop()


def _tell_where(folder: Path, where: dict[str, int]) -> bool:
    """Write the ports. On a full disk the centre runs all the same, and they are told when there is room."""
    try:
        write_atomically(folder / "console.json", json.dumps(where).encode())
    except EnvironmentFault as error:
        log.error("%s", error)
        return False
    return True
