"""Samples for the tests of the edge, and a gateway whose link, looks and time the test turns by hand."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud.learning.golden import make_golden
from common.backbone import Opener, open_session
from common.ids import layer_hash, sample_id
from common.manifest import SHARED, Layer, Manifest, Scenario, encode_manifest
from common.messages import Desired, Fetch, LayerPart, Prediction, Sample, Scores
from edge.installer import Installer
from edge.perception import Model
from edge.settings import InstallSettings
from edge.tally import Observation, Pair, Tally
from simulations.single_key import Signer, SingleKey

MakeSample = Callable[..., Sample]


@pytest.fixture(scope="session")
def make_sample() -> MakeSample:
    """A sample for each number; any field can be replaced, the id follows the content."""

    def make(number: int = 0, *, value: float = 0.5, size: int = 200, **fields: object) -> Sample:
        sample = Sample(
            sample_id=b"",
            gateway_id="north-1",
            site_id="north",
            camera_id="belt",
            captured_at_ns=1_700_000_000_000_000_000 + number,
            release_id="r1-00000000",
            backbone="b" * 64,
            width_px=48,
            height_px=32,
            jpeg=np.random.default_rng(number).bytes(size),
            embedding=np.array([number % 100, 1, 0.5, -2], "<f2").tobytes(),
            predictions=(Prediction("belt", ("normal", "tear"), (0.25, 0.75), 1.5),),
            scores=Scores(0.1, 0.2, 0.3, 0.4, value),
            reason="novel",
        )
        sample = msgspec.structs.replace(sample, **fields)
        name = sample_id(sample.jpeg, sample.gateway_id, sample.camera_id, sample.captured_at_ns)
        return msgspec.structs.replace(sample, sample_id=name)

    return make


NOW_NS = 1_790_000_000 * 10**9


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_ns, self.now_s = NOW_NS, 0.0

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_s(self) -> float:
        return self.now_s


class Depot:
    """The centre as the installer sees it: layers by hash, answered part by part."""

    def __init__(self, folder: Path, backbone: bytes, head: Callable[..., bytes]) -> None:
        self.signer = Signer.open(folder / "release.key")
        self.layers: dict[str, bytes] = {}
        self.deltas: dict[tuple[str, str], bytes] = {}
        self.backbone = self.put(backbone)
        self.make_head = head

    def put(self, data: bytes) -> Layer:
        self.layers[layer_hash(data)] = data
        return Layer(layer_hash(data), len(data))

    def release(self, sequence: int, seed: int = 0, **changes: object) -> tuple[Manifest, Desired]:
        head = self.put(self.make_head(self.backbone.hash, seed=seed))
        values = {
            "sequence": sequence,
            "created_at_ns": NOW_NS,
            "expires_at_ns": NOW_NS + 10**15,
            "minimum_agent": "0.1.0",
            "backbone": self.backbone,
            "scenarios": (Scenario("belt", ("normal", "tear"), "normal", {SHARED: head}),),
            **changes,
        }
        manifest = Manifest(**values)  # type: ignore[arg-type]
        data = encode_manifest(manifest)
        return manifest, Desired(manifest=data, signature=self.signer.sign(data))

    def golden_for(self, manifest: Manifest, folder: Path) -> Layer:
        """The golden layer of a release, made as the centre does."""
        for name, data in self.layers.items():
            (folder / name).write_bytes(data)
        return self.put(make_golden(manifest.backbone, manifest.variants, manifest.scenarios, lambda n: folder / n))

    def answer(self, fetch: Fetch, length: int = 1000) -> LayerPart:
        data, base = self.layers.get(fetch.layer, b""), ""
        for held in fetch.bases:
            if (held, fetch.layer) in self.deltas:
                data, base = self.deltas[held, fetch.layer], held
        part = data[fetch.offset : fetch.offset + min(fetch.length, length)]
        return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=len(data), data=part, base=base)


class HandStage:
    """A stage whose looks the test makes: every release that is handed over to run, and what was counted."""

    def __init__(self) -> None:
        self.models: list[Model] = []
        self.runs: Model | None = None
        self.beside: Model | None = None
        self.on_trial = self.rescued = False
        self.seen = Observation()

    def hand_over(
        self, model: Model | None, beside: Model | None = None, *, on_trial: bool = False, rescue: bool = False
    ) -> None:
        if model and model is not self.runs:
            self.models.append(model)
        self.runs, self.beside, self.on_trial, self.rescued = model, beside, on_trial, rescue
        self.seen = Observation(running=model.release_id if model else "", tallies=self.seen.tallies)

    def observe(self) -> Observation:
        return self.seen

    def look(self, frames: int, **changes: object) -> None:
        """Both have looked at so many frames more; other figures as the test says."""
        pair, tallies = self.seen.pair, dict(self.seen.tallies)
        for model in filter(None, (self.runs, self.beside)):
            before = tallies.get(model.release_id, Tally())
            tallies[model.release_id] = Tally(frames=before.frames + frames, took_ms=[10.0] * frames)
        if self.beside:
            pair = Pair(compared=pair.compared + frames)
        self.seen = msgspec.structs.replace(self.seen, tallies=tallies, pair=pair)
        self.seen = msgspec.structs.replace(self.seen, **changes)


class Gateway:
    """An installer with a link and a stage that the test turns by hand."""

    def __init__(self, folder: Path, key: str, opener: Opener = open_session) -> None:
        self.clock, self.stage = Clock(), HandStage()
        self.asked: list[Fetch] = []
        self.models = self.stage.models
        self.online = True
        self.installer = Installer(
            folder,
            SingleKey(key),
            "north",
            self.clock,
            self._ask,
            self.stage,
            InstallSettings(),
            opener,
            aside=lambda work: work(),
        )

    @property
    def runs(self) -> str:
        """The release that runs; empty: none."""
        return self.stage.runs.release_id if self.stage.runs else ""

    @property
    def phases(self) -> dict[str, str]:
        """As reported."""
        return {item.release_id: item.phase for item in self.installer.health()}

    def proves_itself(self) -> None:
        """Enough healthy frames for whatever the release has to show."""
        for _ in range(2):
            self.stage.look(100)
            self.installer.step()

    def _ask(self, fetch: Fetch) -> bool:
        if self.online:
            self.asked.append(fetch)
        return self.online

    def run(self, depot: Depot, steps: int = 1000) -> None:
        for _ in range(steps):
            if not self.asked:
                break
            self.installer.on_layer(depot.answer(self.asked.pop(0)))

    def install(self, depot: Depot, desired: Desired) -> None:
        """From desired to committed."""
        self.installer.on_desired(desired)
        self.run(depot)
        self.proves_itself()


@pytest.fixture
def depot(tmp_path: Path, tiny_backbone: Callable[..., bytes], tiny_head: Callable[..., bytes]) -> Depot:
    return Depot(tmp_path, tiny_backbone(), tiny_head)


@pytest.fixture
def gateway(tmp_path: Path, depot: Depot) -> Gateway:
    return Gateway(tmp_path / "releases", depot.signer.public_hex)


@pytest.fixture
def start_gateway(tmp_path: Path, depot: Depot) -> Callable[..., Gateway]:
    """Starts the gateway's agent once more on the same disk, after whatever ended the one before."""
    return lambda **fields: Gateway(tmp_path / "releases", depot.signer.public_hex, **fields)


@pytest.fixture(scope="session")
def make_depot(tiny_backbone: Callable[..., bytes], tiny_head: Callable[..., bytes]) -> Callable[[Path], Depot]:
    """A centre with its key in a folder."""
    return lambda folder: Depot(folder, tiny_backbone(), tiny_head)


@pytest.fixture(scope="session")
def make_gateway() -> Callable[[Path, str], Gateway]:
    """A gateway with its releases in a folder, and the key it trusts."""
    return Gateway
