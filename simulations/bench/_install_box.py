"""A gateway for the benchmark of installs, in a process of its own: the real installer over a real look loop.

The camera is a folder of pictures played for ever, the models are small, the centre is a folder of layers. What the
process does is seen from outside through a `Gauge` in shared memory, so that no pipe of ours stands among the system
calls that are made to fail. Faults are put in at the installer's own seams (what answers a request, what opens a
model) and, for the two moments of writing, in `Slots`.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from ctypes import c_char, c_double
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Final

import cv2
import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cloud.learning.export import export_head
from cloud.learning.golden import make_golden
from cloud.learning.heads import solve_lda
from common import manifest as keys
from common.backbone import Opened, open_session
from common.clock import SystemClock
from common.delta import make_delta
from common.errors import EnvironmentFault
from common.ids import layer_hash
from common.logs import configure_logs
from common.manifest import SHARED, Layer, Manifest, Scenario, decode_manifest, encode_manifest, release_id
from common.messages import Desired, Fetch, LayerPart
from common.statistics import Statistics
from common.weights import find_tensors
from edge.installer import LAYERS, Installer, in_a_thread
from edge.lookout import Lookout
from edge.settings import CameraSettings, EdgeSettings, EventSettings, GearSettings, InstallSettings
from edge.slots import Slot, Slots
from simulations.single_key import Signer, SingleKey

SITE: Final = "north"
PICTURES: Final = 50
FPS: Final = 30.0
DIMENSION: Final = 12
PART_BYTES: Final = 2000
"""Small parts: many writes in one install."""
AGAIN_S: Final = 0.3
"""The centre repeats what it desires after so long; a real one takes its time."""
HURRIED: Final = InstallSettings(
    shadow_frames=5, shadow_s=3.0, probation_frames=8, probation_s=4.0, hang_s=1.0, test_s=2.0, latency_ratio=10.0
)
"""The states as in an agent, each for a few frames."""

processes = get_context("forkserver")


class Gauge:
    """What a box shows of itself while it lives, and after it has died."""

    _PLACES: Final = ("go", "ready", "looks", "looked_s", "stepped_s")

    def __init__(self) -> None:
        self._numbers = RawArray(c_double, len(self._PLACES))
        self._texts = [RawArray(c_char, 512), RawArray(c_char, 512)]

    def get(self, place: str) -> float:
        return float(self._numbers[self._PLACES.index(place)])

    def set(self, place: str, value: float) -> None:
        self._numbers[self._PLACES.index(place)] = value

    @property
    def running(self) -> str:
        return bytes(self._texts[0].value).decode()

    @property
    def outcome(self) -> str:
        return bytes(self._texts[1].value).decode(errors="replace")

    def say(self, running: str, outcome: str) -> None:
        for text, value in zip(self._texts, (running, outcome), strict=True):
            text.value = value.encode()[:500]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and when."""

    state: str
    """fetching, testing, shadow, swapping, probation or committing."""
    kind: str
    """error, kill, hang, or kill for good."""


STATES: Final = ("fetching", "testing", "shadow", "swapping", "probation", "committing")
KINDS: Final = ("error", "kill", "hang", "kill for good")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a box is told."""

    folder: Path
    """Its data_dir."""
    depot: Path
    """The centre's layers by hash, and deltas as `<base>.<layer>`."""
    pictures: Path
    key: str
    desired: Desired | None
    fault: Fault | None = None
    aside: bool = True
    """Load and test in a thread, as the agent does; False keeps every file operation in the main thread."""


@dataclass(frozen=True, slots=True)
class Depot:
    """Releases to install, made in the run."""

    folder: Path
    signer: Signer

    def release(self, sequence: int, seed: int) -> Desired:
        """One with a backbone and a head of its own, and the golden layer."""
        backbone = self.put(_backbone(seed))
        head = self.put(_head(backbone.hash, seed))
        scenarios = (Scenario("belt", ("normal", "tear"), "normal", {SHARED: head}),)
        golden = self.put(make_golden(backbone, (), scenarios, lambda name: self.folder / name))
        now_ns = time.time_ns()
        manifest = Manifest(
            sequence=sequence,
            created_at_ns=now_ns,
            expires_at_ns=now_ns + 10**15,
            minimum_agent="0.1.0",
            backbone=backbone,
            scenarios=scenarios,
            golden=golden,
        )
        return self.sign(manifest)

    def again(self, desired: Desired, sequence: int) -> Desired:
        """The same layers under another sequence number: how the centre rolls back."""
        return self.sign(msgspec.structs.replace(decode_manifest(desired.manifest), sequence=sequence))

    def sign(self, manifest: Manifest) -> Desired:
        data = encode_manifest(manifest)
        return Desired(manifest=data, signature=self.signer.sign(data))

    def put(self, data: bytes) -> Layer:
        path = self.folder / layer_hash(data)
        path.write_bytes(data)
        return Layer(path.name, len(data))

    def put_deltas(self, old: Desired, new: Desired) -> None:
        """Deltas of the models, as a centre has them."""
        before, after = (decode_manifest(item.manifest) for item in (old, new))
        for a, b in zip(before.layers_for(SITE)[:2], after.layers_for(SITE)[:2], strict=True):
            data = [(self.folder / name).read_bytes() for name in (a.hash, b.hash)]
            delta = make_delta(data[0], data[1], find_tensors(data[0]), find_tensors(data[1]))
            (self.folder / f"{a.hash}.{b.hash}").write_bytes(delta)


def _backbone(seed: int) -> bytes:
    weights = np.random.default_rng(seed).normal(0, 0.3, (192, DIMENSION)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [keys.IMAGE], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], [keys.EMBEDDING]),
        ],
        "small",
        [helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", DIMENSION])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(
        model, {keys.KIND: "backbone", keys.INPUT_PX: "8", keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
    )
    data: bytes = model.SerializeToString()
    return data


def _head(backbone: str, seed: int) -> bytes:
    labels = ["normal", "tear"] * 50
    x = np.random.default_rng(seed).normal(0, 1, (len(labels), DIMENSION))
    x[1::2, 0] += 4
    return export_head(solve_lda(Statistics.of(("normal", "tear"), x, labels), 0.1), "belt", backbone)


def write_pictures(folder: Path) -> None:
    """What the camera sees."""
    folder.mkdir()
    for number in range(PICTURES):
        cv2.imwrite(str(folder / f"{number:03d}.png"), np.full((12, 16, 3), 5 * number, np.uint8))


def start_box(plan: Plan, gauge: Gauge) -> Any:
    """A process that lives until it is killed; warm: what it imports has been imported."""
    process = processes.Process(target=_live, args=(plan, gauge), daemon=True)
    process.start()
    return process


def warm_up() -> None:
    """Start the server that boxes are forked from."""
    processes.set_forkserver_preload([__name__])
    forkserver.ensure_running()


def layers_whole(folder: Path, running: str) -> bool:
    """Whether a slot holds the release that runs, and every layer of it is on disk with its hash."""
    releases = folder / "releases"
    for name in ("current", "previous"):
        path = releases / name
        if not path.exists():
            continue
        manifest = decode_manifest(msgspec.msgpack.decode(path.read_bytes(), type=Slot).manifest)
        if release_id(manifest) != running:
            continue
        paths = [(releases / LAYERS / layer.hash, layer) for layer in manifest.layers_for(SITE)]
        return all(path.is_file() and layer_hash(path.read_bytes()) == layer.hash for path, layer in paths)
    return False


class _Faults:
    """Fires what a plan says, where the box comes to it."""

    def __init__(self, plan: Plan) -> None:
        self._fault, self._fired = plan.fault, plan.folder / "fired"
        self._backbone = decode_manifest(plan.desired.manifest).backbone.hash if plan.desired else ""

    def at(self, state: str) -> None:
        """Come to a state."""
        fault = self._fault
        if fault is None or fault.state != state:
            return
        again = self._fired.exists()
        self._fired.touch()
        if fault.kind == "kill for good" or (fault.kind == "kill" and not again):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "hang" and (state not in ("swapping", "committing") or not again):
            time.sleep(3600)
        if fault.kind == "error":
            raise EnvironmentFault(f"fault while {state}") if state in ("swapping", "committing") else RuntimeError

    def silences(self, state: str) -> bool:
        """A peer that hangs says nothing; it does not make the box wait."""
        return self._fault == Fault(state, "hang")

    def open(self, path: Path, kind: str) -> Opened:
        """The installer's opener: the model of the new release fails where the plan says."""
        session, metadata, name = open_session(path, kind)
        return (_FaultySession(session, self), metadata, name) if name == self._backbone else (session, metadata, name)

    def into_slots(self) -> None:
        """The two moments of writing what runs."""
        install, commit = Slots.install, Slots.commit

        def faulty_install(slots: Slots, slot: Slot, running: Slot | None) -> None:
            self.at("swapping")
            install(slots, slot, running)

        def faulty_commit(slots: Slots) -> None:
            self.at("committing")
            commit(slots)

        setattr(Slots, "install", faulty_install)  # noqa: B010 - in this process alone, which is made to fail
        setattr(Slots, "commit", faulty_commit)  # noqa: B010


class _FaultySession:
    """A session that knows by its thread in which state it runs."""

    STATES: Final = {"shadow": "shadow", "lookout": "probation"}

    def __init__(self, session: Any, faults: _Faults) -> None:
        self._session, self._faults = session, faults

    def run(self, *arguments: Any) -> Any:
        self._faults.at(self.STATES.get(threading.current_thread().name, "testing"))
        return self._session.run(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def _live(plan: Plan, gauge: Gauge) -> None:
    configure_logs("CRITICAL")
    faults = _Faults(plan)
    if plan.fault:
        faults.into_slots()
    camera = CameraSettings(
        id="belt",
        source=str(plan.pictures),
        loop=True,
        looks_per_s=FPS,
        picture_fps=FPS,
        gears=GearSettings(gate=0, motion_min=0),
    )
    settings = EdgeSettings(
        gateway_id="box",
        site_id=SITE,
        data_dir=plan.folder,
        release_root=Path("root.json"),
        cameras=(camera,),
        events=EventSettings(enabled=False),
        install=HURRIED,
    )
    looks = 0

    def looked(*_: object) -> None:
        nonlocal looks
        looks += 1
        gauge.set("looked_s", time.monotonic())
        gauge.set("looks", looks)

    depot = {path.name: path.read_bytes() for path in plan.depot.iterdir()}  # the centre's disk does not fail
    lookout = Lookout(settings, settings.cameras, SystemClock(), lambda _: None, looked)
    asked: list[Fetch] = []

    def ask(fetch: Fetch) -> bool:
        asked.append(fetch)
        return True

    installer = Installer(
        plan.folder / "releases",
        SingleKey(plan.key),
        SITE,
        SystemClock(),
        ask,
        lookout,
        settings.install,
        opener=faults.open,
        aside=in_a_thread if plan.aside else _at_once,
    )
    lookout.start()
    gauge.set("stepped_s", time.monotonic())
    gauge.set("ready", 1)
    while not gauge.get("go"):
        time.sleep(0.002)
    booted = installer.boot()
    gauge.say(booted.release_id if booted else "", "")
    desired_s = 0.0
    while True:
        if plan.desired and time.monotonic() - desired_s > AGAIN_S:
            desired_s = time.monotonic()
            installer.on_desired(plan.desired)
        while asked:
            part = _answer(depot, asked.pop(0), faults)
            if part:
                installer.on_layer(part)
        installer.step()
        model = lookout.model
        gauge.say(model.release_id if model else "", installer.outcome)
        gauge.set("stepped_s", time.monotonic())
        time.sleep(0.005)


def _at_once(work: Callable[[], None]) -> None:
    work()


def _answer(depot: Mapping[str, bytes], fetch: Fetch, faults: _Faults) -> LayerPart | None:
    """What the centre sends; None when it stays silent."""
    if faults.silences("fetching"):
        return None
    try:
        faults.at("fetching")
    except RuntimeError:
        return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=0, data=b"")
    delta = next((f"{base}.{fetch.layer}" for base in fetch.bases if f"{base}.{fetch.layer}" in depot), "")
    data = depot[delta or fetch.layer]
    part = data[fetch.offset : fetch.offset + PART_BYTES]
    base = delta.partition(".")[0]
    return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=len(data), data=part, base=base)
