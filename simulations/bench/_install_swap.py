"""Releases installed while eight streams are looked at: what the swap costs the frames around it.

Part of `headframe bench installer`. Eight paced cameras play a generated belt at their own moments; the model is the
default backbone. The real installer takes one release after the other through self-test, shadow, swap and probation;
every second one has another backbone file. A frame's time is from when the look loop could begin with it to the end of
its look, the swap included where it falls there; its CPU time is that of the look loop's thread. A swap's spike is the
longest of the three frames from the first that the new release sees, over the median of the hundred around them;
beside it stands the same figure at every other place, which is what the machine does anyway.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from cloud.learning.export import export_head
from cloud.learning.golden import make_golden
from cloud.learning.heads import solve_lda
from common.backbone import Backbone
from common.clock import SystemClock
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario, encode_manifest
from common.messages import Desired
from common.statistics import Statistics
from edge.frames import Frame
from edge.installer import LAYERS, Installer
from edge.lookout import Lookout
from edge.perception import View
from edge.settings import CameraSettings, EdgeSettings, EventSettings, GearSettings, InstallSettings
from edge.threads import one_thread_each
from simulations.belts import BeltCamera
from simulations.bench._edge_models import write_float_backbone
from simulations.clips import write_clip
from simulations.processes import wait_for
from simulations.single_key import Signer, SingleKey

STREAMS: Final = 8
LOOKS_PER_S: Final = 4.0
"""Of each stream: 32 looks a second keep a core about a quarter busy, and another quarter in shadow."""
CLIP_S: Final = 12.0
SWAPS: Final = {True: 3, False: 16}
AROUND: Final = 50
"""Frames on each side of a swap that its median is of."""
SPIKE: Final = 3
INSTALL_S: Final = 60.0
SETTINGS: Final = InstallSettings(shadow_frames=15, probation_frames=30, latency_ratio=10.0)


@dataclass(frozen=True, slots=True)
class Looked:
    """One frame."""

    release_id: str
    took_s: float
    cpu_s: float


class _Record:
    """Every frame, in the order of the look loop; its thread calls `look`."""

    def __init__(self, lookout: Lookout | None = None) -> None:
        self.lookout = lookout
        self.frames: list[Looked] = []
        self._ended_s = self._cpu_s = 0.0

    def look(self, frame: Frame, _: View) -> None:
        now_s, cpu_s = time.monotonic(), time.thread_time()
        model = self.lookout.model if self.lookout else None
        took_s = now_s - max(frame.ready_s, self._ended_s)
        self.frames.append(Looked(model.release_id if model else "", took_s, cpu_s - self._cpu_s))
        self._ended_s, self._cpu_s = now_s, cpu_s


def measure_swap(*, quick: bool) -> dict[str, Any]:
    """Install releases on eight streams."""
    with tempfile.TemporaryDirectory(prefix="headframe-swap-") as name, one_thread_each():
        folder = Path(name)
        maker = _Maker.build(folder)
        cameras = tuple(_camera(folder, number) for number in range(STREAMS))
        settings = EdgeSettings(
            gateway_id="bench",
            site_id="bench",
            data_dir=folder / "data",
            release_root=Path("root.json"),
            cameras=cameras,
            events=EventSettings(enabled=False),
            install=SETTINGS,
        )
        record = _Record()
        lookout = Lookout(settings, cameras, SystemClock(), lambda _: None, record.look)
        record.lookout = lookout
        installer = Installer(
            folder / "data" / "releases",
            SingleKey(maker.signer.public_hex),
            "bench",
            SystemClock(),
            lambda _: True,
            lookout,
            SETTINGS,
        )
        lookout.start()
        dropped = 0
        try:
            for sequence in range(1, SWAPS[quick] + 2):
                _install(installer, maker.release(sequence))
                if sequence == 1:
                    began = len(record.frames)
                    wait_for(lambda: len(record.frames) > began + 2 * AROUND, INSTALL_S, "frames", every_s=0.02)  # noqa: B023
                    dropped = sum(state.dropped for state in lookout.states)
            seen = len(record.frames)
            wait_for(lambda: len(record.frames) > seen + AROUND, INSTALL_S, "frames", every_s=0.02)
            states = lookout.states
        finally:
            lookout.stop(5)
    return _figures(record.frames, sum(state.dropped for state in states) - dropped)


def _install(installer: Installer, desired: Desired) -> None:
    installer.on_desired(desired)

    def committed() -> bool:
        installer.step()
        if installer.outcome.startswith(("refused", "rolled back")):
            raise RuntimeError(installer.outcome)
        return installer.outcome.startswith("committed") and not any(
            item.phase != "committed" for item in installer.health()
        )

    wait_for(committed, INSTALL_S, "the install", every_s=0.02)


def _camera(folder: Path, number: int) -> CameraSettings:
    path = folder / f"belt-{number % 2}.mp4"
    if not path.exists():
        write_clip(path, BeltCamera("south-drift", number, 3), CLIP_S)
    return CameraSettings(
        id=f"belt-{number}",
        source=str(path),
        loop=True,
        looks_per_s=LOOKS_PER_S,
        gears=GearSettings(
            gate=0, motion_min=0, alert_looks_per_s=LOOKS_PER_S, steady_looks_per_s=LOOKS_PER_S, floor_s=1 / LOOKS_PER_S
        ),
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    """Releases whose layers lie on the gateway's disk already: what is measured is the swap, not the link."""

    layers: Path
    signer: Signer
    files: tuple[bytes, bytes]
    """The two backbones."""
    backbones: tuple[Layer, Layer]
    dimension: int

    @classmethod
    def build(cls, folder: Path) -> "_Maker":
        layers = folder / "data" / "releases" / LAYERS
        layers.mkdir(parents=True)
        path = write_float_backbone(folder)
        model = onnx.load(path)
        helper.set_model_props(
            model, {**{item.key: item.value for item in model.metadata_props}, "headframe.bench": "another file"}
        )
        files = path.read_bytes(), model.SerializeToString()
        backbones = _put(layers, files[0]), _put(layers, files[1])
        return cls(layers, Signer.open(folder / "key"), files, backbones, Backbone.open(path).dimension)

    def release(self, sequence: int) -> Desired:
        """Two releases on each backbone in turn: an install with another head alone, and one with all."""
        number = sequence // 2 % 2
        backbone = self.backbones[number]
        if not (self.layers / backbone.hash).exists():  # the installer removes what it no longer needs
            _put(self.layers, self.files[number])
        labels = ["normal", "tear"] * 50
        x = np.random.default_rng(sequence).normal(0, 1, (len(labels), self.dimension))
        x[1::2, 0] += 4
        weights = solve_lda(Statistics.of(("normal", "tear"), x, labels), 0.5)
        head = _put(self.layers, export_head(weights, "belt", backbone.hash))
        scenarios = (Scenario("belt", ("normal", "tear"), "normal", {SHARED: head}),)
        golden = _put(self.layers, make_golden(backbone, (), scenarios, lambda name: self.layers / name))
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
        data = encode_manifest(manifest)
        return Desired(manifest=data, signature=self.signer.sign(data))


def _put(layers: Path, data: bytes) -> Layer:
    path = layers / layer_hash(data)
    path.write_bytes(data)
    return Layer(path.name, len(data))


def _figures(frames: Sequence[Looked], dropped: int) -> dict[str, Any]:
    swaps = [n for n in range(1, len(frames)) if frames[n].release_id != frames[n - 1].release_id]
    swaps = [n for n in swaps if AROUND <= n < len(frames) - AROUND]
    near = {n + step for n in swaps for step in range(-SPIKE, 2 * SPIKE)}
    others = [n for n in range(AROUND, len(frames) - AROUND, SPIKE) if n not in near]
    wall = [_spike([frame.took_s for frame in frames], n) for n in swaps]
    cpu = [_spike([frame.cpu_s for frame in frames], n) for n in swaps]
    usual = [_spike([frame.took_s for frame in frames], n) for n in others]
    return {
        "swap_dropped": dropped,
        "swap_spike_ratio": round(median(wall), 2),
        "swap_spike_ratio_max": round(max(wall), 2),
        "swap_spike_cpu_ratio": round(median(cpu), 2),
        "swap_spike_cpu_ratio_max": round(max(cpu), 2),
        "ordinary_spike_ratio": round(median(usual), 2),
        "ordinary_spike_ratio_p99": round(float(np.percentile(usual, 99)), 2),
        "swap": {
            "streams": STREAMS,
            "swaps": len(swaps),
            "frames": len(frames),
            "median_frame_ms": round(1e3 * median(frame.took_s for frame in frames), 1),
        },
    }


def _spike(times_s: Sequence[float], at: int) -> float:
    """The longest of a few frames over the median of those around."""
    around = [*times_s[at - AROUND : at], *times_s[at + SPIKE : at + AROUND]]
    return max(times_s[at : at + SPIKE]) / median(around)
