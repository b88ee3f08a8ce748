"""Entry of the agent process: runs it until SIGTERM or SIGINT, tells systemd, serves the status page.

SIGHUP reads the configuration again (`systemctl reload`): a signal, because whoever may send one may edit the file as
well, while the status page takes no orders from whoever reaches it. The SIGHUP of a terminal that was closed ends the
agent as it always did.
"""

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from common.errors import EnvironmentFault, OperatorError
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


def run_agent(
    settings: EdgeSettings, config: Path | None = None, make_agent: Callable[[EdgeSettings], Agent] = Agent
) -> None:
    """Run until a signal asks to stop.

    Args:
        settings: to begin with.
        config: the file that they are from, read again on SIGHUP; None: there is none to read.
        make_agent: simulations give the agent other eyes.

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
        _run(make_agent(settings), config, stop, reload)


def _run(agent: Agent, config: Path | None, stop: threading.Event, reload: threading.Event) -> None:
    settings = agent.settings
    page = StatusPage(settings.status.host, settings.status.port, agent)
    page.start()
    at_terminal = has_terminal()
    told = _tell_where(settings.data_dir, page.port)
    agent.start()
    notify_systemd("READY=1")
    log.info("gateway %s runs, status page on port %d", settings.gateway_id, page.port)
    try:
        while not stop.wait(STEP_S):
            if reload.is_set():
                reload.clear()
                if at_terminal and not has_terminal():
                    break
                _reload(agent, config)
            told = told or _tell_where(settings.data_dir, page.port)
            agent.step()
            notify_systemd("WATCHDOG=1")
    finally:
        notify_systemd("STOPPING=1")
        page.stop()
        agent.stop()


def _tell_where(folder: Path, port: int) -> bool:
    """Write the page's port. On a full disk the agent runs all the same, and the port is told when there is room."""
    try:
        write_atomically(folder / "status.json", json.dumps({"port": port, "pid": os.getpid()}).encode())
    except EnvironmentFault as error:
        log.error("%s", error)
        return False
    return True


def _reload(agent: Agent, config: Path | None) -> None:
    """A wrong file changes nothing: its reason is in the log, on the page and in the reported state."""
    if config is None:
        return
    try:
        agent.reconfigure(load_settings(EdgeSettings, config))
    except OperatorError as error:
        agent.refuse(error)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, and somebody is still at its other end."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def notify_systemd(state: str) -> None:
    """Send one line of the sd_notify protocol; does nothing outside systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
