"""How each fault of the plan is done to the machines, and undone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from simulations.chaos.boxes import Boxes, Gateway
from simulations.chaos.link import CLEAR, Links
from simulations.chaos.machine import CLOCK_10_YEARS, CLOCK_1970, CLOCK_BACK, CLOCK_TRUE
from simulations.chaos.plan import WEATHERS, Act, Fault

TWIN: Final = "gw-2-twin"
"""The box that has the identity of gw-2."""


class Acts:
    """`begin` an act, `end` it when its time is over."""

    def __init__(self, boxes: Boxes, links: Links, out: Path) -> None:
        self._boxes, self._links, self._out = boxes, links, out
        on_gateway: dict[Fault, tuple[Callable[[Gateway], None], Callable[[Gateway], None]]] = {
            Fault.KILL_EDGE: (boxes.kill, _nothing),
            Fault.DISK_FULL_EDGE: (_fill, _free),
            Fault.CLOCK_1970: (self._wake_in_1970, _true_time),
            Fault.CLOCK_10_YEARS: (lambda gateway: gateway.clock.set(CLOCK_10_YEARS), _true_time),
            Fault.CLOCK_BACK: (lambda gateway: gateway.clock.set(CLOCK_BACK), _true_time),
            Fault.OLD_DISK: (self._save_disk, self._restore_disk),
        }
        self._on_gateway = on_gateway
        self._on_others: dict[Fault, tuple[Callable[[], None], Callable[[], None]]] = {
            Fault.KILL_BROKER: (boxes.server.kill, _nothing),
            Fault.KILL_CENTRE: (boxes.kill_centre, _nothing),
            Fault.AMNESIA: (self._forget_all, _nothing),
            Fault.DISK_FULL_CENTRE: (self._fill_centre, self._free_centre),
            Fault.CLOCK_BACK_CENTRE: (
                lambda: boxes.centre_clock.set(CLOCK_BACK),
                lambda: boxes.centre_clock.set(CLOCK_TRUE),
            ),
            Fault.TWIN: (lambda: boxes.begin(boxes.gateways[TWIN]), lambda: boxes.retire(boxes.gateways[TWIN])),
        }

    def begin(self, act: Act) -> None:
        """Do it."""
        if act.fault is Fault.WEATHER:
            self._links.set(act.target, WEATHERS[act.weather][0])
        elif act.fault in self._on_gateway:
            self._on_gateway[act.fault][0](self._boxes.gateways[act.target])
        else:
            self._on_others[act.fault][0]()

    def end(self, act: Act) -> None:
        """Undo it."""
        if act.fault is Fault.WEATHER:
            self._links.set(act.target, CLEAR)
        elif act.fault in self._on_gateway:
            self._on_gateway[act.fault][1](self._boxes.gateways[act.target])
        else:
            self._on_others[act.fault][1]()

    def _wake_in_1970(self, gateway: Gateway) -> None:
        """As a box does that has no clock of its own; the true time arrives later, while it runs."""
        self._boxes.kill(gateway)
        gateway.clock.set(CLOCK_1970)

    def _save_disk(self, gateway: Gateway) -> None:
        self._boxes.kill(gateway)
        gateway.save_disk(self._image(gateway))

    def _restore_disk(self, gateway: Gateway) -> None:
        self._boxes.kill(gateway)
        gateway.replaced.append(gateway.save_disk(self._out / f"{gateway.name}-replaced-{len(gateway.replaced)}"))
        gateway.restore_disk(self._image(gateway))

    def _image(self, gateway: Gateway) -> Path:
        return self._out / f"{gateway.name}-image"

    def _forget_all(self) -> None:
        """The broker loses sessions, retained messages and what it has acknowledged."""
        self._boxes.server.kill()
        shutil.rmtree(self._boxes.server.data)
        self._boxes.server.data.mkdir()

    def _fill_centre(self) -> None:
        self._boxes.centre_full = True
        self._boxes.centre_disk.fill(self._boxes.centre_pid)

    def _free_centre(self) -> None:
        self._boxes.centre_full = False
        self._boxes.centre_disk.free(self._boxes.centre_pid)


def _nothing(*_: object) -> None:
    """What happens at once has no end."""


def _fill(gateway: Gateway) -> None:
    gateway.full = True
    gateway.disk.fill(gateway.pid)


def _free(gateway: Gateway) -> None:
    gateway.full = False
    gateway.disk.free(gateway.pid)


def _true_time(gateway: Gateway) -> None:
    gateway.clock.set(CLOCK_TRUE)
