"""The machines of a run: gateways with disk, clock and process, centre, broker; a supervisor starts the fallen."""

import http.client
import json
import shutil
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cloud.trust import Repository
from common.clock import SystemClock
from simulations.chaos.machine import CLOCK_TRUE, BoxClock, Disk
from simulations.mosquitto import Mosquitto
from simulations.processes import Centre, Managed, toml_text

STATE_S: Final = 2.0
RESTART_S: Final = 0.5
"""As long as systemd waits with the units in deploy/."""
CHEATED: Final = ("simulations.chaos.cheated",)
GATEWAY_DISK_BYTES: Final = 192 << 20
CENTRE_DISK_BYTES: Final = 1 << 30


@dataclass
class Gateway:
    """One box with an agent. `wanted` says whether it should run."""

    name: str
    folder: Path
    managed: Managed
    disk: Disk
    clock: BoxClock
    journal: Path
    wanted: bool = False
    full: bool = False
    replaced: list[Path] = field(default_factory=list)
    """Copies of the disks that were taken out of it."""
    blind_config: str = ""
    """For a gateway with a camera: its configuration without a picture."""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pid(self) -> int | None:
        process = self.managed.process
        return process.pid if process and self.managed.alive else None

    def state(self) -> dict[str, Any] | None:
        """What it says of itself, or None when it does not answer."""
        try:
            port = json.loads((self.data / "status.json").read_text())["port"]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STATE_S)
            with closing(connection):
                connection.request("GET", "/api/state")
                found: dict[str, Any] = json.loads(connection.getresponse().read())
        except (http.client.HTTPException, OSError, ValueError, KeyError):
            return None
        return found

    def save_disk(self, to: Path) -> Path:
        """An image of the disk, of a box without power."""
        shutil.copytree(self.data, to, ignore=shutil.ignore_patterns("ballast", "lock"))
        return to

    def restore_disk(self, image: Path) -> None:
        """Put an image in; what was there is gone."""
        for path in self.data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(image, self.data, dirs_exist_ok=True)


def make_fed_gateway(
    folder: Path, gateway_id: str, port: int, *, per_s: float, camera: str = "belt", spool_bytes_max: int = 0
) -> Gateway:
    """A gateway that is fed with pictures (`simulations.chaos.feeder`). It does not run yet."""
    disk, clock = Disk(folder / "data", GATEWAY_DISK_BYTES), BoxClock(folder / "clock")
    root = folder / "root.json"
    root.write_bytes(Repository.open(folder / "trust", SystemClock()).root())
    values: dict[str, Any] = {
        "data_dir": folder / "data",
        "gateway_id": gateway_id,
        "site_id": "chaos",
        "release_root": root,
        "heartbeat_s": 1.0,
        "broker": {"port": port},
        "uplink": {"resend_s": 3.0},
        "cameras": [{"id": camera, "source": "fed.mp4"}],
    }
    if spool_bytes_max:
        values["spool"] = {"bytes_max": spool_bytes_max}
    config, journal = folder / "edge.toml", folder / "journal"
    config.write_text(toml_text(values), encoding="utf-8")
    managed = Managed(
        folder.name,
        ["--config", str(config), "--journal", str(journal), "--per-s", str(per_s)],
        folder / "edge.log",
        module=(*CHEATED, str(clock.file), "simulations.chaos.feeder"),
    )
    return Gateway(folder.name, folder, managed, disk, clock, journal)


class Boxes:
    """Everything that can be killed, and the supervisor that brings it back."""

    def __init__(self, server: Mosquitto, centre: Centre, gateways: list[Gateway]) -> None:
        self.server, self.centre = server, centre
        self.gateways = {gateway.name: gateway for gateway in gateways}
        self.centre_disk = Disk(centre.folder / "data", CENTRE_DISK_BYTES)
        self.centre_clock = BoxClock(centre.folder / "clock")
        self.centre.managed.module = (*CHEATED, str(self.centre_clock.file), "simulations")
        self.centre_wanted = self.centre_full = False
        self.crashes: Counter[str] = Counter()
        """Processes that ended by themselves."""
        self._fell_s: dict[str, float] = {}
        self._killed: set[str] = set()

    @property
    def kills(self) -> int:
        """kill -9 so far."""
        edges = sum(gateway.managed.kills for gateway in self.gateways.values())
        return edges + self.server.kills + self.centre.managed.kills

    def blind(self, gateway: Gateway) -> None:
        """Nothing new is accepted from now on."""
        gateway.journal.with_suffix(".pause").touch()
        if gateway.blind_config:
            (gateway.folder / "edge.toml").write_text(gateway.blind_config, encoding="utf-8")
            self.kill(gateway)

    def begin(self, gateway: Gateway) -> None:
        """Switch a box on."""
        gateway.wanted = True
        gateway.managed.start()

    def retire(self, gateway: Gateway) -> None:
        """Shut a box down in order."""
        gateway.wanted = False
        gateway.managed.stop()

    def kill(self, gateway: Gateway) -> None:
        """kill -9; the supervisor starts it again."""
        self._killed.add(gateway.name)
        gateway.managed.kill()

    def kill_centre(self) -> None:
        """kill -9; the supervisor starts it again."""
        self._killed.add("centre")
        self.centre.managed.kill()

    def supervise(self) -> None:
        """Start again what has fallen `RESTART_S` ago."""
        if self.server.pid is None and self._may_start("broker", ours=True):
            self.server.start()
        if self.centre_wanted and not self.centre.managed.alive and self._may_start("centre"):
            self.centre.managed.start()
            if self.centre_full and not self.centre_disk.mounted:
                self.centre_disk.fill(self.centre_pid)
        for gateway in self.gateways.values():
            if gateway.wanted and not gateway.managed.alive and self._may_start(gateway.name):
                gateway.managed.start()
                if gateway.full and not gateway.disk.mounted:
                    gateway.disk.fill(gateway.pid)

    def _may_start(self, name: str, *, ours: bool = False) -> bool:
        now_s = time.monotonic()
        fell_s = self._fell_s.setdefault(name, now_s)
        if now_s - fell_s < RESTART_S:
            return False
        del self._fell_s[name]
        if not ours and name not in self._killed:
            self.crashes[name] += 1
        self._killed.discard(name)
        return True

    @property
    def centre_pid(self) -> int | None:
        process = self.centre.managed.process
        return process.pid if process and process.poll() is None else None

    def mend(self) -> None:
        """Room on all disks, the right time everywhere."""
        self.centre_disk.free(self.centre_pid)
        self.centre_clock.set(CLOCK_TRUE)
        self.centre_full = False
        for gateway in self.gateways.values():
            gateway.disk.free(gateway.pid)
            gateway.clock.set(CLOCK_TRUE)
            gateway.full = False

    def stop(self) -> None:
        """End all processes; the disks stay."""
        self.centre_wanted = False
        for gateway in self.gateways.values():
            gateway.wanted = False
        for gateway in self.gateways.values():
            gateway.managed.stop()
        self.centre.managed.stop()
        self.server.stop()

    def mount(self) -> None:
        """Give every machine its disk."""
        self.centre_disk.mount()
        for gateway in self.gateways.values():
            gateway.disk.mount()

    def unmount(self) -> None:
        """Give the disks back."""
        for gateway in self.gateways.values():
            gateway.disk.unmount()
        self.centre_disk.unmount()
