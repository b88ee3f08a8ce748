"""`headframe demo`: the whole loop on one machine, with real processes, a real broker and real video.

Prepares a first release from the seen sites, starts the centre and a gateway per site, lets an oracle label what was
uploaded, runs rounds, and measures before and after with the very models that the gateways run.
"""

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cloud.learning.gates import balanced_accuracy
from cloud.service import Service
from cloud.settings import CloudSettings
from common.backbone import Backbone
from common.errors import EnvironmentFault, OperatorError
from common.manifest import decode_manifest, release_id
from common.mqtt import Broker
from common.settings import load_settings
from edge.perception import Model, load_model
from simulations.ledger import check_ledgers
from simulations.oracle import Oracle
from simulations.processes import Centre, Managed, make_gateway, wait_for
from simulations.report import write_report
from simulations.result import DemoResult, Picture, RoundSummary, SiteResult
from simulations.screen import LiveScreen
from simulations.world import BeltWorld, FolderWorld, SitePlan, VideoWorld, World

WATCH_S = 30.0
ROUND_S = 90.0
ROUNDS = 3
SAMPLES_PER_HOUR = 2400.0  # of a gateway: a day's worth of samples in the minutes of a demo
KILLS = 2  # one gateway, then the centre
MARKER = ".headframe-demo"  # a folder without it is somebody's own, and is not emptied
PICTURES_MAX = 24


@dataclass
class Traffic:
    """Bytes of a gateway over its restarts: an agent counts from its own start."""

    up: int = 0
    down: int = 0
    _seen: tuple[int, int] = (0, 0)

    def add(self, up: int, down: int) -> None:
        """Take what a state report says."""
        before_up, before_down = self._seen
        self.up += up - before_up if up >= before_up else up
        self.down += down - before_down if down >= before_down else down
        self._seen = up, down


@dataclass
class Demo:
    """One run of the demo in a folder of its own."""

    world: World
    out: Path
    screen: LiveScreen
    kill: bool
    gateways: dict[str, Managed] = field(default_factory=dict)
    traffic: dict[str, "Traffic"] = field(default_factory=dict)
    rounds: list[RoundSummary] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)

    def run(self) -> DemoResult:
        """From nothing to the result; every process is stopped on the way out."""
        began_s = time.monotonic()
        self.centre = Centre(self.out / "centre")
        self.screen.note("training the first release on the seen sites")
        first, root = self._first_release()
        before = self._accuracies({site.name: first for site in self.world.sites})
        self.screen.accuracies("before", before)
        try:
            self._start(root)
            for number in range(ROUNDS):
                self._watch(number)
                self._round(number)
            return self._finish(before, began_s)
        finally:
            for managed in [*self.gateways.values(), self.centre.managed]:
                managed.stop()

    def _first_release(self) -> tuple[str, Path]:
        """Train on what the group already has; returns (release id, file of the root of trust)."""
        service = Service(load_settings(CloudSettings, self.centre.config), Broker())
        try:
            _, path = service.registry.backbone()
            backbone = Backbone.open(path)
            for scenario, items in self.world.datasets.items():
                service.catalogue.add("base", scenario, items, backbone)
            outcome = service.trainer.run("demo: first release")
            if not outcome.release_id:
                raise EnvironmentFault("the first release did not pass its gate", json.dumps(outcome.record["gate"]))
            root = self.out / "root.json"
            root.write_bytes(service.repository.root())
            return outcome.release_id, root.resolve()
        finally:
            service.store.close()

    def _start(self, root: Path) -> None:
        self.centre.start()
        for number, site in enumerate(self.world.sites):
            values = self._edge_values(site, root, "both" if number == len(self.world.sites) - 1 else "samples")
            self.gateways[site.name] = make_gateway(self.out / "gateways" / site.name, values)
            self.gateways[site.name].start()
        self._wait_release()

    def _edge_values(self, site: SitePlan, root: Path, share: str) -> dict[str, Any]:
        return {
            "gateway_id": f"gw-{site.name}",
            "site_id": site.name,
            "release_root": root,
            "share": share,
            "heartbeat_s": 1.0,
            "broker": {"port": self.centre.where["mqtt_port"]},
            "selection": {"samples_per_hour": self._samples_per_hour(site), "window_s": 6.0},
            "uplink": {"resend_s": 5.0},
            "cameras": [
                {
                    "id": camera.id,
                    "source": camera.source.resolve(),
                    "looks_per_s": camera.looks_per_s,
                    "paced": camera.paced,
                    "loop": camera.loop,
                    "picture_fps": camera.picture_fps,
                }
                for camera in site.cameras
            ],
        }

    def _samples_per_hour(self, site: SitePlan) -> float:
        """No more is sent than may be labelled: the choice is the selection's, not the queue's."""
        if self.world.label_budget is None:
            return SAMPLES_PER_HOUR
        return self.world.label_budget[site.name] * 3600.0 / (ROUNDS * WATCH_S)

    def _watch(self, number: int) -> None:
        """Let the cameras run, show what happens, kill what is to be killed, label what has come."""
        if number == 0:
            self.oracle = Oracle(self.centre.url, self.world.truth, self.world.label_budget)
        self.oracle.url = self.centre.url
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            self._show()
            time.sleep(0.5)
            if self.kill and time.monotonic() > deadline - WATCH_S / 2 and len(self.kills) == number < KILLS:
                self._kill(number)
        self.screen.note(f"oracle labels what was uploaded (round {number + 1})")
        labelled = self.oracle.label_queue(list(self.world.datasets))
        self.screen.note(f"{labelled} samples labelled")

    def _kill(self, number: int) -> None:
        """kill -9 of a gateway in the first watch, of the centre (and its broker) in the second."""
        victim = self.gateways[self.world.sites[-1].name] if number == 0 else self.centre.managed
        victim.kill()
        self.kills.append(f"kill -9 {victim.name}")
        self.screen.note(self.kills[-1])
        if number == 0:
            victim.start()
        else:
            self.centre.start()
            self.oracle.url = self.centre.url

    def _round(self, number: int) -> None:
        run_id = self.centre.post("rounds", {"author": "demo"})["run_id"]
        self.screen.note(f"round {number + 1}: federation, training, gate")
        wait_for(lambda: self._run_of(run_id)["finished_ns"] is not None, ROUND_S, "the round", self.centre.managed)
        run = self._run_of(run_id)
        release = str(run["record"].get("release_id", ""))
        if release:
            self.screen.note(f"round {number + 1}: {release} goes to a canary, then to all")
            self._wait_release()
        per_site = self._accuracies(self._running_releases())
        self.screen.accuracies(f"round {number + 1}", per_site)
        labels = sum(map(len, self.oracle.given.values()))
        gate = dict(run["record"].get("gate", {}))
        self.rounds.append(RoundSummary(run_id, labels, release, gate, per_site))
        self.screen.note(f"round {number + 1}: {run['status']} {release}")

    def _run_of(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = next(run for run in self.centre.get("runs") if run["run_id"] == run_id)
        return run

    def _wait_release(self) -> None:
        """Wait until no rollout is under way and every gateway reports that it runs what the active release carries."""
        wait_for(self._all_current, ROUND_S, "the release on every gateway", self.centre.managed, every_s=0.5)

    def _all_current(self) -> bool:
        self._show()
        for managed in self.gateways.values():
            if not managed.alive:
                managed.start()
        if any(row["phase"] in ("waiting", "running") for row in self.centre.get("rollouts")):
            return False
        releases = self.centre.get("releases")
        active = next((release["content"] for release in releases if release["status"] == "active"), "")
        content = {release["release_id"]: release["content"] for release in releases}
        states = {state["gateway_id"]: state["release_id"] for state in self.centre.get("states")}
        return all(content.get(states.get(gateway.name, "")) == active for gateway in self.gateways.values())

    def _show(self) -> None:
        states = self.centre.get("states")
        for state in states:
            self.traffic.setdefault(state["site_id"], Traffic()).add(state["bytes_up"], state["bytes_down"])
        self.screen.fleet(states, self.centre.get("counts"))

    def _running_releases(self) -> dict[str, str]:
        """What each gateway has on its own disk as current."""
        found = {}
        for site, managed in self.gateways.items():
            current = managed.log.parent / "data" / "releases" / "current"
            manifest = decode_manifest(msgspec.msgpack.decode(current.read_bytes())["manifest"])
            found[site] = release_id(manifest)
        return found

    def _model(self, site: str, release: str) -> Model:
        """The model of a release at a site, loaded by the edge's own code from the centre's layers."""
        service = Service(load_settings(CloudSettings, self.centre.config), Broker())
        try:
            row = next(row for row in service.store.releases() if row.release_id == release)
            return load_model(release, decode_manifest(row.manifest), service.registry.layer_path, site)
        finally:
            service.store.close()

    def _accuracies(self, releases: dict[str, str]) -> dict[str, float]:
        """Mean over scenarios of balanced accuracy, per site, on pictures that nobody labelled."""
        labelled = self._labelled_frames()
        found = {}
        for site, release in releases.items():
            model = self._model(site, release)
            truths: dict[str, list[str]] = {name: [] for name in self.world.datasets}
            predicted: dict[str, list[str]] = {name: [] for name in self.world.datasets}

            def exclude(camera: str, at_ns: int, site: str = site) -> bool:
                return (site, camera, round(at_ns / 1e6)) in labelled

            for picture, truth in self.world.evaluation(site, exclude):
                for prediction in model.look(picture).predictions:
                    answer = truth.get(prediction.scenario)
                    if answer is not None:
                        truths[prediction.scenario].append(answer)
                        predicted[prediction.scenario].append(prediction.top)
            scores = [balanced_accuracy(truths[name], predicted[name]) for name in truths if truths[name]]
            if scores:
                found[site] = sum(scores) / len(scores)
        return found

    def _labelled_frames(self) -> set[tuple[str, str, int]]:
        if not self.gateways:
            return set()
        rows = self.centre.get("samples", labelled=True, limit=10_000)
        return {(row["site_id"], row["camera_id"], round(row["captured_at_ns"] / 1e6)) for row in rows}

    def _finish(self, before: dict[str, float], began_s: float) -> DemoResult:
        self._show()
        after = self.rounds[-1].per_site
        states = {state["site_id"]: state for state in self.centre.get("states")}
        sites = [
            SiteResult(
                site=site.name,
                seen=site.seen,
                before=before.get(site.name, float("nan")),
                after=after.get(site.name, float("nan")),
                labels=len(self.oracle.given.get(site.name, ())),
                samples=int(states[site.name]["receipted"]),
                bytes_up=self.traffic[site.name].up,
                bytes_down=self.traffic[site.name].down,
            )
            for site in self.world.sites
        ]
        pictures = self._pictures()
        rollouts = self.centre.get("rollouts")
        self.checks["every new release ran on a canary before it was active"] = all(
            row["phase"] in ("completed", "superseded") and row["waves"][0] < len(self.gateways) for row in rollouts
        ) and len(rollouts) == sum(bool(summary.release_id) for summary in self.rounds)
        for managed in self.gateways.values():
            managed.stop()
        self.checks |= check_ledgers(self.out, list(self.gateways), self.centre)
        self.checks["every gateway stopped cleanly"] = all(
            m.process is not None and m.process.returncode == 0 for m in self.gateways.values()
        )
        if self.kill:
            self.checks["an edge agent and the centre were killed"] = len(self.kills) == KILLS
        return DemoResult(
            sites=sites,
            rounds=self.rounds,
            pictures=pictures,
            kills=self.kills,
            checks=self.checks,
            seconds=time.monotonic() - began_s,
        )

    def _pictures(self) -> list[Picture]:
        """The labelled samples that did it, most valuable first, from all sites in turn."""
        import httpx

        rows = [
            row
            for row in self.centre.get("samples", labelled=True, limit=10_000)
            if len(row["labels"]) == len(self.world.datasets)  # not where the truth of one scenario is ambiguous
        ]
        rows.sort(key=lambda row: -row["scores"]["value"])
        by_site: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_site.setdefault(row["site_id"], []).append(row)
        each = max(1, PICTURES_MAX // max(1, len(by_site)))
        found = []
        for site, own in by_site.items():
            for row in own[:each]:
                jpeg = httpx.get(f"{self.centre.url}/api/v1/samples/{row['sample_id']}.jpg", timeout=20).content
                label = ", ".join(sorted({v for v in row["labels"].values() if v != "normal"})) or "normal"
                found.append(Picture(site, row["camera_id"], row["reason"], label, jpeg, dict(row["scores"])))
        return found


def run_demo(*, data: Path | None, videos: list[Path], out: Path, kill: bool, seed: int, as_json: bool) -> int:
    """Build the world, run the demo, print the table, write the report; 0 when the checks hold."""
    _clear(out)
    with LiveScreen(quiet=as_json) as screen:
        screen.note("building the world: clips and pictures")
        world: World
        if data is not None:
            world = FolderWorld(data, out / "world").build(screen.note)
        elif videos:
            world = VideoWorld(videos, out / "world", seed).build(screen.note)
        else:
            world = BeltWorld(out / "world", seed).build(screen.note)
        result = Demo(world, out, screen, kill).run()
    report = out / "report.html"
    write_report(report, result)
    screen.summary(result, report, as_json=as_json)
    return 0 if all(result.checks.values()) else 1


def _clear(out: Path) -> None:
    """Empty the folder of an earlier demo.

    Raises:
        OperatorError: the folder holds something else.
    """
    marker = out / MARKER
    if out.exists() and not marker.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OperatorError(f"{out} is not empty and not of an earlier demo", "Give another folder with --out.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.touch()
