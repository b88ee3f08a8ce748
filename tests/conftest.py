"""Fixtures that every test may use."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from cloud.learning.export import export_head
from cloud.learning.heads import Form, solve
from cloud.trust import Repository
from common import manifest as keys
from common.clock import SystemClock
from common.mqtt import Broker
from common.quiet import silence_flower
from common.statistics import Statistics

silence_flower()
settings.register_profile("headframe", deadline=None, print_blob=True)  # a shared machine has no steady pace
settings.load_profile("headframe")
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real pictures, videos and weights; the test is skipped where it is absent."""
    folder = Path(os.environ.get("HEADFRAME_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"sample data not found at {folder}; set HEADFRAME_DATA")
    return folder


@pytest.fixture(scope="session")
def release_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of trust for gateways that install nothing."""
    folder = tmp_path_factory.mktemp("trust")
    path = folder / "root.json"
    path.write_bytes(Repository.open(folder, SystemClock()).root())
    return path


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def broker(tmp_path: Path, free_port: int) -> Iterator[Broker]:
    """A real MQTT broker (nats-server) of the test's own."""
    config = tmp_path / "nats.conf"
    config.write_text(
        f'server_name: test\nlisten: "127.0.0.1:-1"\nmax_payload: 64MB\n'
        f'jetstream {{ store_dir: "{tmp_path / "jetstream"}" }}\nmqtt {{ listen: "127.0.0.1:{free_port}" }}\n'
    )
    binary = shutil.which("nats-server") or str(Path(sys.executable).parent / "nats-server")
    process = subprocess.Popen([binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", free_port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.fail("nats-server did not open its MQTT port in 10 s")
        yield Broker(port=free_port)
    finally:
        process.kill()
        process.wait(timeout=10)


@pytest.fixture(scope="session")
def tiny_backbone() -> Callable[..., bytes]:
    """Bytes of a small L0 backbone: 8 x 8 pixels, a random projection to `dimension` features."""

    def build(dimension: int = 12, seed: int = 0) -> bytes:
        weights = np.random.default_rng(seed).normal(0, 0.3, (192, dimension)).astype(np.float32)
        graph = helper.make_graph(
            [
                helper.make_node("Flatten", [keys.IMAGE], ["flat"], axis=1),
                helper.make_node("MatMul", ["flat", "weights"], [keys.EMBEDDING]),
            ],
            "tiny",
            [helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, 8, 8])],
            [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", dimension])],
            [numpy_helper.from_array(weights, "weights")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        metadata = {keys.KIND: "backbone", keys.INPUT_PX: "8", keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
        helper.set_model_props(model, metadata)
        data: bytes = model.SerializeToString()
        return data

    return build


@pytest.fixture(scope="session")
def tiny_head() -> Callable[..., bytes]:
    """Bytes of a head for a backbone: `normal`, `tear` and more where asked, told apart by the first feature."""

    def build(
        backbone_hash: str,
        dimension: int = 12,
        scenario: str = "belt",
        seed: int = 0,
        classes: int = 2,
        form: Form = "lda",
    ) -> bytes:
        rng = np.random.default_rng(seed)
        names = ("normal", "tear", *(f"tear-{number}" for number in range(2, classes)))
        labels = [names[row % classes] for row in range(50 * classes)]
        x = rng.normal(0, 1, (len(labels), dimension))
        x[:, 0] += [4 * names.index(label) for label in labels]
        weights = solve(Statistics.of(names, x, labels), 0.1, form)
        return export_head(weights, scenario, backbone_hash)

    return build


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Closed after each module: Playwright's event loop would be in the way of tests with one of their own."""
    from playwright.sync_api import sync_playwright

    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=binary, args=[*flags, "--disable-sync", "--no-first-run"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: object) -> Iterator[object]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB")  # type: ignore[attr-defined]
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []
