"""`headframe bench loop`: does the loop win back what an unseen scene costs? On real mining belts.

The first release is trained on the `train` scenes of belt-defects. Then a gateway at every `test` scene plays that
scene's pictures; its own selection picks at most a tenth of them; they travel over a real broker into the store, are
labelled, a round makes a release, and each gateway installs it. Measured is what the gateways then run, on the
pictures that nobody labelled. The comparator is the same run with the choice left to chance.
"""

import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud.broker import EmbeddedBroker
from cloud.desk import Desk
from cloud.learning.candidates import Labelled
from cloud.learning.datasets import Item, read_folder
from cloud.learning.export import read_head
from cloud.learning.gates import balanced_accuracy
from cloud.service import Service
from cloud.settings import CloudBrokerSection, CloudSettings, LearningSettings, RolloutSettings
from common.backbone import Backbone
from common.errors import EnvironmentFault
from common.manifest import SHARED, decode_manifest
from common.mqtt import Broker
from common.pictures import read_picture
from common.settings import BrokerSection
from edge.agent import Agent
from edge.perception import Model, load_model
from edge.settings import CameraSettings, EdgeSettings, InstallSettings, SelectionSettings
from edge.sources import FOLDER_EPOCH_NS
from simulations.data import find_data

log = logging.getLogger(__name__)

SCENARIO = "belt-defect"
SAMPLES_PER_PICTURE = 0.075  # and one for each new camera: together at most a tenth of all pictures
SEEDS, QUICK_SEEDS = 5, 1
WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Balanced accuracies of one arm of one seed."""

    before: float
    after: float
    before_pooled: float
    after_pooled: float
    lookalike: float
    seen_before: float
    seen_after: float
    labels: int
    pictures: int


def bench_loop(*, quick: bool) -> dict[str, object]:
    """Run all seeds, each with selection and with chance."""
    began_s = time.monotonic()
    data = find_data("belt-defects")
    seeds = list(range(QUICK_SEEDS if quick else SEEDS))
    unseen = read_folder(data, "test")
    if quick:  # every other scene
        scenes = sorted({item.site for item in unseen})[::2]
        unseen = [item for item in unseen if item.site in scenes]
    chosen: list[Measured] = []
    by_chance: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="headframe-bench-") as name:
        first = _prepare(Path(name) / "first", read_folder(data, "train"))
        for seed in seeds:
            for arm, trickle in ((chosen, 0.0), (by_chance, 1.0)):
                folder = Path(name) / f"{seed}-{trickle:g}"
                shutil.copytree(first, folder)
                with Arm(folder, unseen, seed, trickle) as run:
                    arm.append(run.measure())
                shutil.rmtree(folder)

    def mean(rows: list[Measured], field: str) -> float:
        return float(np.mean([getattr(row, field) for row in rows]))

    return {
        "unseen_before": mean(chosen, "before"),
        "unseen_after": mean(chosen, "after"),
        "unseen_random": mean(by_chance, "after"),
        "seen_loss": mean(chosen, "seen_before") - mean(chosen, "seen_after"),
        "seen_loss_worst": max(row.seen_before - row.seen_after for row in chosen),
        "labels": mean(chosen, "labels"),
        "labels_random": mean(by_chance, "labels"),
        "label_share": mean(chosen, "labels") / mean(chosen, "pictures"),
        "seeds": len(seeds),
        "seen_before": mean(chosen, "seen_before"),
        "unseen_before_pooled": mean(chosen, "before_pooled"),
        "unseen_after_pooled": mean(chosen, "after_pooled"),
        "unseen_random_pooled": mean(by_chance, "after_pooled"),
        "unseen_lookalike": mean(chosen, "lookalike"),
        "unseen_after_by_seed": [round(row.after, 4) for row in chosen],
        "unseen_random_by_seed": [round(row.after, 4) for row in by_chance],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _settings(folder: Path, port: int = 1883) -> CloudSettings:
    return CloudSettings(
        data_dir=folder,
        broker=CloudBrokerSection(port=port),
        learning=LearningSettings(round_deadline_s=20.0, quorum=0.0, personal_labels_min=1),
        rollout=RolloutSettings(enabled=False),  # what was learnt is measured, on cameras that have played to the end
    )


def _prepare(folder: Path, items: list[Item]) -> Path:
    """A centre that has made its first release from the train scenes; copied for every arm."""
    service = Service(_settings(folder), Broker())
    try:
        _, path = service.registry.backbone()
        service.catalogue.add("train-scenes", SCENARIO, items, Backbone.open(path))
        service.trainer.run("bench: first release")
    finally:
        service.store.close()
    return folder


class Arm:
    """One run: a broker, the centre, a gateway per unseen scene."""

    def __init__(self, folder: Path, items: list[Item], seed: int, trickle: float) -> None:
        self._folder, self._seed, self._trickle = folder, seed, trickle
        self._scenes: dict[str, list[Item]] = {}
        for item in items:
            self._scenes.setdefault(item.site, []).append(item)
        for scene, own in self._scenes.items():
            random.Random(f"{seed}-{scene}").shuffle(own)
        self._stack = ExitStack()
        self._agents: dict[str, Agent] = {}

    def __enter__(self) -> "Arm":
        broker = EmbeddedBroker(self._folder / "broker", "127.0.0.1", 0)
        broker.start()
        self._stack.callback(broker.stop)
        self._port = broker.broker.port
        self._service = Service(_settings(self._folder, self._port), broker.broker)
        self._root = self._folder / "root.json"
        self._root.write_bytes(self._service.repository.root())
        self._service.start()
        self._stack.callback(self._service.stop)
        self._service.link.wait_connected(20)
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor(len(self._agents) or 1) as pool:
            list(pool.map(Agent.stop, self._agents.values()))
        self._stack.close()

    def measure(self) -> Measured:
        """Play every scene, label what came, learn, and measure what runs."""
        first = next(r.release_id for r in self._service.store.releases())
        for scene, items in self._scenes.items():
            self._agents[scene] = self._start_gateway(scene, items)
        self._wait(lambda: all(a.ended and a.spool.figures().rows == 0 for a in self._agents.values()), "the uploads")
        labelled = self._label()
        last = self._learn()
        return self._compare(first, last, labelled)

    def _start_gateway(self, scene: str, items: list[Item]) -> Agent:
        """A gateway whose camera plays the scene's pictures, one per second of video time, as fast as it can."""
        camera = self._folder / "cameras" / scene
        camera.mkdir(parents=True)
        for number, item in enumerate(items):
            shutil.copy(item.path, camera / f"{number:04d}.jpg")
        settings = EdgeSettings(
            gateway_id=f"gw-{scene}",
            site_id=scene,
            data_dir=self._folder / "gateways" / scene,
            release_root=self._root,
            heartbeat_s=0.5,
            broker=BrokerSection(port=self._port),
            cameras=(CameraSettings(id="camera-1", source=str(camera), looks_per_s=1, picture_fps=1, paced=False),),
            # dozens of agents share this process: how long a look takes says nothing of a release
            install=InstallSettings(latency_ratio=1000.0, shadow_s=0.0, probation_s=0.0),
            selection=SelectionSettings(
                samples_per_hour=3600 * SAMPLES_PER_PICTURE, window_s=3600, trickle=self._trickle, similarity_max=1.0
            ),
        )
        agent = Agent(settings)
        agent.start()
        return agent

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            self._service.step()
            for agent in self._agents.values():
                agent.step()
            if time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"bench loop: {what} took longer than {WAIT_S:g} s", "Is the machine overloaded?"
                )
            time.sleep(0.1)

    def _label(self) -> dict[str, set[int]]:
        """The oracle: the truth of what was uploaded, and of nothing else. Returns the labelled pictures per scene."""
        labelled: dict[str, set[int]] = {scene: set() for scene in self._scenes}
        rows = []
        for sample in self._service.store.samples(limit=10_000):
            number = round((sample.captured_at_ns - FOLDER_EPOCH_NS) / 1e9)
            labelled[sample.site_id].add(number)
            rows.append((sample.sample_id, SCENARIO, self._scenes[sample.site_id][number].label))
        Desk(self._service).label(rows, "oracle")
        return labelled

    def _learn(self) -> str:
        """A round, and its release on every gateway; returns what runs."""
        run_id, store = self._service.rounds.queue("bench"), self._service.store
        self._wait(lambda: store.run(run_id).finished_ns is not None, "the round")
        self._wait(lambda: self._service.rollouts.engine.settled, "the rollout")
        active = next(r.release_id for r in store.releases() if r.status == "active")
        self._wait(lambda: all(a.release_id == active for a in self._agents.values()), "the installs")
        return active

    def _compare(self, first: str, last: str, labelled: dict[str, set[int]]) -> Measured:
        store, path = self._service.store, self._service.registry.layer_path
        manifests = {r.release_id: decode_manifest(r.manifest) for r in store.releases()}
        truth: dict[str, list[str]] = {}
        said: dict[str, dict[str, list[str]]] = {first: {}, last: {}, "lookalike": {}}
        model: Model | None = None
        for scene, items in self._scenes.items():
            model = load_model(first, manifests[first], path, scene, model.backbone if model else None)
            views = [model.look(read_picture(item.path)) for item in items]
            rest = [n for n in range(len(items)) if n not in labelled[scene]]
            if not rest:
                continue
            truth[scene] = [items[n].label for n in rest]
            said[first][scene] = [views[n].predictions[0].top for n in rest]
            head = read_head(path(manifests[last].scenarios[0].head_for(scene).hash).read_bytes())
            said[last][scene] = head.predict(np.stack([views[n].embedding for n in rest]))
            units = np.stack([v.embedding / np.linalg.norm(v.embedding) for v in views])
            known = sorted(labelled[scene])
            said["lookalike"][scene] = (
                [items[known[int(np.argmax(units[known] @ units[n]))]].label for n in rest]
                if known
                else said[first][scene]
            )
        gold = self._service.catalogue.datasets(SCENARIO)[0].gold
        seen = [_accuracy(path(manifests[n].scenarios[0].heads[SHARED].hash).read_bytes(), gold) for n in (first, last)]
        return Measured(
            before=_by_scene(truth, said[first]),
            after=_by_scene(truth, said[last]),
            before_pooled=_pooled(truth, said[first]),
            after_pooled=_pooled(truth, said[last]),
            lookalike=_by_scene(truth, said["lookalike"]),
            seen_before=seen[0],
            seen_after=seen[1],
            labels=sum(map(len, labelled.values())),
            pictures=sum(map(len, self._scenes.values())),
        )


def _accuracy(head: bytes, gold: Labelled) -> float:
    return balanced_accuracy(gold.labels, read_head(head).predict(gold.embeddings))


def _by_scene(truth: dict[str, list[str]], said: dict[str, list[str]]) -> float:
    """Mean over scenes of the balanced accuracy within the scene."""
    return float(np.mean([balanced_accuracy(truth[scene], said[scene]) for scene in truth]))


def _pooled(truth: dict[str, list[str]], said: dict[str, list[str]]) -> float:
    """Balanced accuracy over all pictures of all scenes."""
    return balanced_accuracy([t for s in truth for t in truth[s]], [p for s in truth for p in said[s]])
