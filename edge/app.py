"""Entry of the agent process: runs it until SIGTERM or SIGINT, tells systemd, serves the status page.

SIGHUP reads the configuration again (`systemctl reload`): a signal, because whoever may send one may edit the file as
well, while the status page takes no orders from whoever reaches it.
"""

import json
import logging
import os
import signal
import socket
import threading
from pathlib import Path

from common.errors import OperatorError
from common.files import own_folder, write_atomically
from common.logs import configure_logs
from common.quiet import silence_flower
from common.settings import load_settings

silence_flower()

from edge.agent import Agent  # noqa: E402
from edge.settings import EdgeSettings  # noqa: E402
from edge.status import StatusPage  # noqa: E402
from edge.threads import one_thread_each  # noqa: E402

log = logging.getLogger(__name__)

STEP_S = 0.5


def run_agent(settings: EdgeSettings, config: Path | None = None) -> None:
    """Run until a signal asks to stop.

    Args:
        settings: to begin with.
        config: the file that they are from, read again on SIGHUP; None: there is none to read.

    Raises:
        OperatorError: another agent works in the same data_dir.
        RuntimeError: a part died; the exit code makes the supervisor (systemd, `headframe demo`) start it anew.
    """
    configure_logs(settings.log_level)
    stop, reload = threading.Event(), threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: reload.set())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with own_folder(settings.data_dir), one_thread_each():
        _run(settings, config, stop, reload)


def _run(settings: EdgeSettings, config: Path | None, stop: threading.Event, reload: threading.Event) -> None:
    agent = Agent(settings)
    page = StatusPage(settings.status.host, settings.status.port, agent)
    page.start()
    write_atomically(settings.data_dir / "status.json", json.dumps({"port": page.port, "pid": os.getpid()}).encode())
    agent.start()
    notify_systemd("READY=1")
    log.info("gateway %s runs, status page on port %d", settings.gateway_id, page.port)
    try:
        while not stop.wait(STEP_S):
            if reload.is_set():
                reload.clear()
                _reload(agent, config)
            agent.step()
            notify_systemd("WATCHDOG=1")
    finally:
        notify_systemd("STOPPING=1")
        page.stop()
        agent.stop()


def _reload(agent: Agent, config: Path | None) -> None:
    """A wrong file changes nothing: its reason is in the log, on the page and in the reported state."""
    if config is None:
        return
    try:
        agent.reconfigure(load_settings(EdgeSettings, config))
    except OperatorError as error:
        agent.refuse(error)


def notify_systemd(state: str) -> None:
    """Send one line of the sd_notify protocol; does nothing outside systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
