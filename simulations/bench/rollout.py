"""`headframe bench rollout`: a release goes to a fleet on a real broker, and nobody helps.

The broker is mosquitto, the centre `headframe cloud run` as its own process with an external broker; thousands of
light gateways (`simulations.bench._rolling`) run the first release, then the head is replaced. A tenth of them is
offline at the start and comes back later, one in fifty goes back from the new release by itself: half of those at the
self-test, half after it has run. The centre's own engine takes the release through its waves. Measured: the time from
the order until 99 % of the gateways that can run it do; the bytes that the centre gave to the broker (everything:
tellings, answers, pieces, repetitions), and those that the gateways received, each against one whole copy of the new
layers for every gateway that fetched them.
"""

import asyncio
import heapq
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import psutil
from rich.console import Console

from cloud.learning.export import export_head
from cloud.learning.heads import solve_lda
from cloud.service import Service
from cloud.settings import CloudSettings
from common.backbone import Backbone
from common.errors import EnvironmentFault
from common.manifest import SHARED, Layer, Manifest, Scenario, decode_manifest
from common.mqtt import Broker
from common.settings import load_settings
from common.statistics import Statistics
from simulations.bench._rolling import Fails, RollingGateway, Shared, trust_of
from simulations.lightclient import Crowd
from simulations.mosquitto import raise_open_files, running_mosquitto
from simulations.processes import Centre

SITE_GATEWAYS: Final = 4
OFFLINE_SHARE: Final = 0.1
FAIL_SHARE: Final = 0.02
"""Half of them refuse it at its self-test, half go back after it has run: 1 % is what may fail after the swap
(`rollout.limits.failed_ok`)."""
CHECKED_EVERY: Final = 50
CLASSES: Final = ("normal", "tear", "spillage", "foreign-object")
TICK_S: Final = 0.05
LOOK_S: Final = 0.5
FETCH_AGAIN_S: Final = 10.0
SETTLE_HEARTBEATS: Final = 2.0
"""After the end: what the centre tells those that failed, and with it the fleet, belongs to the bytes."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it."""

    gateways: int
    heartbeat_s: float
    connects_per_s: float
    offline_s: float
    """How long after the order those that are offline come back."""
    limit_s: float


SIZES: Final = {
    True: Size(700, 1.5, 800.0, 6.0, 34.0),
    False: Size(12_000, 10.0, 500.0, 60.0, 600.0),
}
"""By `quick`."""

console = Console(stderr=True)


def bench_rollout(*, quick: bool) -> dict[str, Any]:
    """Seconds until 99 % run the release, and bytes received over bytes of whole copies.

    Raises:
        EnvironmentFault: mosquitto is missing, or the limit of open files is too low.
    """
    return roll_out(SIZES[quick])


def roll_out(size: Size) -> dict[str, Any]:
    """One fleet of this size."""
    raise_open_files(size.gateways)
    with (
        tempfile.TemporaryDirectory(prefix="headframe-rollout-") as name,
        console.status("rollout: mosquitto and the centre") as status,
        running_mosquitto(Path(name) / "mosquitto") as server,
    ):
        rollout = {"healthy_frames": 100, "soak_s": 0.5, "deadline_s": max(60.0, 6 * size.heartbeat_s)}
        values = {"broker": {"embedded": False, "port": server.broker.port}, "rollout": rollout, "log_level": "WARNING"}
        centre = Centre(Path(name) / "centre", values)
        heads = Heads(centre)
        heads.publish(0)
        centre.start()
        try:
            fleet = Fleet(size, heads, Path(name) / "trust", lambda text: status.update(f"rollout: {text}"))
            return asyncio.run(fleet.run(server.broker))
        finally:
            centre.managed.stop()
            heads.close()


class Heads:
    """The centre's registry, opened beside the running centre as a person's command does."""

    def __init__(self, centre: Centre) -> None:
        self.centre = centre
        self._config = centre.config
        self._open()

    def _open(self) -> None:
        self.service = Service(load_settings(CloudSettings, self._config), Broker())
        self.registry = self.service.registry
        self._backbone, path = self.registry.backbone()
        self._dimension = Backbone.open(path).dimension

    def publish(self, seed: int) -> str:
        """A release with another head; the next rollout begins."""
        rng = np.random.default_rng(7)
        means = rng.normal(size=(len(CLASSES), self._dimension))
        rows = np.repeat(means, 60, axis=0) + rng.normal(size=(60 * len(CLASSES), self._dimension))
        rows += 0.05 * np.random.default_rng(seed).normal(size=rows.shape)  # a few more labels: a head much like before
        labels = [name for name in CLASSES for _ in range(60)]
        head = export_head(solve_lda(Statistics.of(CLASSES, rows, labels), 0.3), "belt", self._backbone.hash)
        layer = self.registry.put(head)
        scenario = Scenario("belt", CLASSES, CLASSES[0], {SHARED: layer})
        return self.registry.publish((scenario,), self._backbone, {"passed": True}, f"bench {seed}")

    def publish_to_the_fleet(self, seed: int) -> str:
        """As `publish`, with eyes for the gateways that have reported since."""
        self.close()
        self._open()
        return self.publish(seed)

    def manifest(self, name: str) -> Manifest:
        found = next(release for release in self.service.store.releases() if release.release_id == name)
        return decode_manifest(found.manifest)

    def layer(self, layer: Layer) -> bytes:
        return self.registry.layer_path(layer.hash).read_bytes()

    def rollout(self) -> dict[str, Any]:
        """The newest, as the command shows it."""
        return self.service.rollouts.list()[0]

    def close(self) -> None:
        self.service.store.close()


class Fleet:
    """The gateways, and the one rollout."""

    def __init__(self, size: Size, heads: Heads, folder: Path, note: Callable[[str], None]) -> None:
        self._size, self._heads, self._note = size, heads, note
        active = heads.registry.active()
        if active is None:
            raise EnvironmentFault("the first release is not active", "See the centre's log.")
        self._shared = Shared({layer.hash: heads.layer(layer) for layer in active.layers_for("")})
        self._first = set(self._shared.layers)
        rng = np.random.default_rng(1)
        order = rng.permutation(size.gateways)
        failing = dict.fromkeys(order[: round(FAIL_SHARE * size.gateways)].tolist(), Fails.AT_TEST)
        failing |= dict.fromkeys(list(failing)[::2], Fails.AFTER_SWAP)
        absent = set(order[-round(OFFLINE_SHARE * size.gateways) :].tolist())
        self._known_offline = 0
        root = heads.service.repository.root()
        self._urgent: list[RollingGateway] = []
        self.gateways = [
            RollingGateway(
                f"roll-{n:05d}",
                f"site-{n // SITE_GATEWAYS:04d}",
                active,
                self._shared,
                self._urgent.append,
                fails=failing.get(n, Fails.NEVER),
                trust=trust_of(folder / str(n), root, f"roll-{n:05d}") if n % CHECKED_EVERY == 0 else None,
            )
            for n in range(size.gateways)
        ]
        self._absent = [self.gateways[n] for n in sorted(absent)]
        self._present = [gateway for n, gateway in enumerate(self.gateways) if n not in absent]

    async def run(self, broker: Broker) -> dict[str, Any]:
        """From the first connection to the end of the rollout."""
        size = self._size
        present = Crowd(broker, [g.client for g in self._present], connects_per_s=size.connects_per_s, seed=1)
        late = Crowd(broker, [g.client for g in self._absent], connects_per_s=size.connects_per_s, seed=2)
        tasks = [asyncio.create_task(present.run()), asyncio.create_task(self._beat())]
        try:
            self._note(f"connecting {len(self._present)} gateways")
            await present.wait_up(self._connect_s())
            await self._see_once(broker)
            await asyncio.sleep(1.5 * size.heartbeat_s)
            before = Counter(self._shared.bytes_down), Counter(self._shared.messages_down)
            sent = await asyncio.to_thread(self._sent)
            name = await asyncio.to_thread(self._heads.publish_to_the_fleet, 1)
            self._known_offline = sum(not state.online for state in self._heads.service.store.states())
            began_s, cpu_s = time.monotonic(), self._centre_cpu_s()
            found = await self._watch(name, late, tasks, began_s)
            found["centre_cpu_cores"] = round((self._centre_cpu_s() - cpu_s) / (time.monotonic() - began_s), 3)
            await asyncio.sleep(SETTLE_HEARTBEATS * size.heartbeat_s)
            return found | self._bytes(name, *before, await asyncio.to_thread(self._sent) - sent)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _connect_s(self) -> float:
        """How long a connecting crowd may take."""
        return 60 + 4 * self._size.gateways / self._size.connects_per_s

    async def _see_once(self, broker: Broker) -> None:
        """The absent are known to the centre: they report, then vanish, and the broker publishes their last will."""
        crowd = Crowd(broker, [g.client for g in self._absent], connects_per_s=self._size.connects_per_s, seed=3)
        task = asyncio.create_task(crowd.run())
        try:
            self._note(f"{len(self._absent)} gateways report once")
            await crowd.wait_up(self._connect_s())
            await asyncio.sleep(self._size.heartbeat_s)
            for client in crowd.clients:
                client.abort()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self, name: str, late: Crowd, tasks: list[asyncio.Task[None]], began_s: float) -> dict[str, Any]:
        able = [gateway for gateway in self.gateways if gateway.fails is Fails.NEVER]
        to_99_s: float | None = None
        waves: dict[int, float] = {}
        back = False
        row: dict[str, Any] = {}
        while (passed_s := time.monotonic() - began_s) < self._size.limit_s:
            if not back and passed_s > self._size.offline_s:
                back = True
                tasks.append(asyncio.create_task(late.run()))
            running = sum(gateway.runs == name for gateway in able)
            if to_99_s is None and running >= 0.99 * len(able):
                to_99_s = passed_s
            row = await asyncio.to_thread(self._heads.rollout)
            waves.setdefault(row["wave"], round(passed_s, 1))
            self._note(f"wave {row['wave']}, {running} of {len(able)} gateways run {name}")
            if running == len(able) and row["phase"] in ("completed", "aborted"):
                break
            await asyncio.sleep(LOOK_S)
        refused = {g.gateway_id for g in self.gateways if g.gone_back and g.fails is Fails.AT_TEST}
        hurt = {g.gateway_id for g in self.gateways if g.gone_back and g.fails is Fails.AFTER_SWAP}
        failed = refused | hurt
        shown = await asyncio.to_thread(self._heads.service.rollouts.show, row["rollout_id"])
        named = {item["gateway_id"] for item in row["failed"]} | _named(shown)
        return {
            "gateways": self._size.gateways,
            "seconds_to_99": None if to_99_s is None else round(to_99_s, 1),
            "phase": row["phase"],
            "converged": row["phase"] == "completed" and running == len(able),
            "running": running,
            "able": len(able),
            "offline_at_start": len(self._absent),
            "back_after_s": self._size.offline_s,
            "failed": len(failed),
            "failed_at_test": len(refused),
            "failed_after_swap": len(hurt),
            "failed_named": len(failed & named),
            "failed_after_swap_named": len(hurt & named),
            "named_wrongly": len(named - failed),
            "wave_began_s": waves,
            "checked_by_the_products_trust": sum(gateway.trust is not None for gateway in self.gateways),
            "refused_by_trust": len(self._shared.refused),
        }

    def _centre_cpu_s(self) -> float:
        """CPU that the centre's process has used so far."""
        process = self._heads.centre.managed.process
        if process is None:
            raise EnvironmentFault("the centre has not been started", "This is a defect; please report it.")
        times = psutil.Process(process.pid).cpu_times()
        return float(times.user + times.system)

    def _sent(self) -> Counter[str]:
        """Bytes that the centre has given to the broker, by kind, as it says itself at `/metrics`."""
        text = httpx.get(f"{self._heads.centre.url}/metrics", timeout=20).raise_for_status().text
        found = re.findall(r'^headframe_bytes_out\{kind="([^"]+)"\} (\S+)$', text, re.MULTILINE)
        return Counter({kind: int(float(number)) for kind, number in found})

    def _bytes(
        self, name: str, bytes_before: Counter[str], messages_before: Counter[str], sent: Counter[str]
    ) -> dict[str, Any]:
        layers = list(self._heads.manifest(name).layers_for(""))
        head = sum(layer.size_bytes for layer in layers if layer.hash not in self._first)
        whole = head * sum(name in (gateway.runs, gateway.gone_back) for gateway in self.gateways)  # all that fetched
        received = self._shared.bytes_down - bytes_before
        told = self._shared.messages_down - messages_before

        def ratio(size: int) -> float | None:
            return round(size / whole, 4) if whole else None

        return {
            "known_offline_at_start": self._known_offline,
            "bytes_of_copies": whole,
            "bytes_published": sent.total(),
            "bytes_ratio_to_copies": ratio(sent.total()),
            "bytes_published_by_kind": dict(sent),
            "bytes_received": received.total(),
            "received_ratio_to_copies": ratio(received.total()),
            "bytes_received_by_kind": dict(received),
            "delta_ratio_to_copies": ratio(self._shared.delta_bytes),
            "tellings_a_gateway": round(told["desired"] / len(self.gateways), 2),
            "head_bytes": head,
            "bytes_ratio_to_models": sent.total() / (whole + self._backbone_bytes(layers)) if whole else None,
        }

    def _backbone_bytes(self, layers: list[Layer]) -> int:
        """Of a backbone for each gateway: what a fleet moves that knows no layers."""
        return max(layer.size_bytes for layer in layers) * self._size.gateways

    async def _beat(self) -> None:
        """Every gateway's heartbeat, spread over the period; news at once; unanswered requests again."""
        period_s = self._size.heartbeat_s
        now_s = time.monotonic()
        due = [(now_s + period_s * n / len(self.gateways), n) for n in range(len(self.gateways))]
        again_s = now_s + FETCH_AGAIN_S
        while True:
            now_s = time.monotonic()
            urgent, self._urgent[:] = list(self._urgent), []
            for gateway in urgent:
                if gateway.client.up and not gateway.report(time.time_ns()):
                    self._urgent.append(gateway)
            while due[0][0] <= now_s:
                at_s, place = due[0]
                gateway = self.gateways[place]
                sent = gateway.client.up and gateway.report(time.time_ns())
                heapq.heapreplace(due, (max(at_s + period_s, now_s) if sent else now_s + 0.5, place))
            if now_s >= again_s:
                again_s = now_s + FETCH_AGAIN_S
                for gateway in self.gateways:
                    gateway.fetch()
            await asyncio.sleep(TICK_S)


def _named(shown: dict[str, Any]) -> set[str]:
    """Gateways of a rollout's record that failed."""
    members = shown["members"]
    return {name for name, member in members.items() if member["outcome"] in ("failed", "refused")}
