"""One ServerApp, one ClientApp, three grids: MQTT, Flower's SuperLink with SuperNodes, Flower's simulation on Ray.

Real processes: `flwr run` from this repository as Flower's documentation says, in a Flower home of the test's own.
"""

import os
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cloud.federation.fleet_app import HEAD
from cloud.federation.fleet_app import app as server_app
from cloud.federation.grid import MqttGrid
from cloud.learning.heads import solve_lda
from common import codec, topics
from common.flower import Context, RecordDict, message_from_bytes, message_to_bytes, node_id_of
from common.ids import sample_id
from common.messages import FlowerFrame
from common.mqtt import Broker, MqttLink
from common.partition import Partition
from common.statistics import Statistics
from edge.fleet_client import app as client_app

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES, DIMENSION, BACKBONE, NODES = ("normal", "tear", "wood"), 16, "b" * 64, 3
FLOWER = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
ENDED_WITHIN_S = 60.0


@pytest.fixture
def partitions(tmp_path: Path) -> Path:
    """A folder with a file of labelled embeddings per node."""
    folder = tmp_path / "partitions"
    folder.mkdir()
    for number in range(NODES):
        rng = np.random.default_rng(number)
        labels = tuple(CLASSES[row] for row in rng.integers(0, 3, 30 + number))
        rows = rng.normal(size=(len(labels), DIMENSION)) + [[2.0 * CLASSES.index(label)] for label in labels]
        ids = tuple(sample_id(b"", f"node-{number}", "c", row) for row in range(len(labels)))
        Partition(ids, rows.astype(np.float32), labels, "belt", BACKBONE).save(folder / f"{number}.npz")
    return folder


def centralised(folder: Path) -> dict[str, np.ndarray]:
    """The head of all data in one place."""
    parts = [Partition.open(folder / f"{number}.npz") for number in range(NODES)]
    rows = np.concatenate([part.embeddings for part in parts])
    labels = [label for part in parts for label in part.labels]
    head = solve_lda(Statistics.of(CLASSES, rows, labels), 0.3)
    return {name: getattr(head, name) for name in ("directions", "offsets", "constants", "quadratic")}


def same(head: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, values in other.items():
        np.testing.assert_allclose(head[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


def over_mqtt(broker: Broker, folder: Path) -> dict[str, np.ndarray]:
    """The apps on our grid, a link per node."""
    names = [f"node-{number}" for number in range(NODES)]
    links: list[MqttLink] = []

    def node(number: int) -> MqttLink:
        def on_message(_topic: str, payload: bytes) -> None:
            frame = codec.decode(payload)
            assert isinstance(frame, FlowerFrame)
            config = {"data": str(folder / f"{number}.npz")}
            context = Context(
                run_id=1, node_id=node_id_of(names[number]), node_config=config, state=RecordDict(), run_config={}
            )
            reply = message_to_bytes(client_app(message_from_bytes(frame.message), context))
            link.publish(topics.up(names[number], "flower"), codec.encode(FlowerFrame(message=reply)))

        link = MqttLink(broker, names[number], (topics.down_filter(names[number]),), on_message)
        return link

    def on_reply(topic: str, payload: bytes) -> None:
        frame = codec.decode(payload)
        assert isinstance(frame, FlowerFrame)
        grid.on_frame(topics.parse_up(topic)[0], frame.message)

    centre = MqttLink(broker, "centre", (topics.up_filter(),), on_reply)
    grid = MqttGrid(
        lambda name, data: centre.publish(topics.down(name, "flower"), codec.encode(FlowerFrame(message=data))),
        lambda: names,
    )
    links = [centre, *(node(number) for number in range(NODES))]
    try:
        for link in links:
            link.start()
        for link in links:
            link.wait_connected(15)
        time.sleep(0.3)  # subscriptions are made on connecting, and nothing tells when the broker has them
        config = {**FLOWER["config"], "classes": ",".join(CLASSES), "backbone": BACKBONE}
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
        server_app(grid, context)
        return {name: array.numpy() for name, array in context.state[HEAD].items()}
    finally:
        for link in links:
            link.stop()


@contextmanager
def process(name: str, *arguments: str, home: Path) -> Iterator[None]:
    """A Flower program for the length of a block, with everything it starts."""
    with (home / f"{name}-{len(list(home.iterdir()))}.log").open("w") as log:
        started = subprocess.Popen(
            [str(Path(sys.executable).parent / name), *arguments],
            env=environment(home),
            cwd=home,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield
        finally:
            try:
                os.killpg(started.pid, 15)
                started.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, 9)
                started.wait(10)


def environment(home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **quiet, "FLWR_HOME": str(home), "PATH": path, "NO_COLOR": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, home: Path) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the SuperLink did not open its port: " + logs(home))


def logs(home: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(home.glob("*.log")))


def flwr_run(home: Path, port: int, out: Path, more: str = "") -> dict[str, np.ndarray]:
    """`flwr run`, and the head that the ServerApp wrote."""
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n{more}'
    )
    config = f'classes="{",".join(CLASSES)}" backbone="{BACKBONE}" out="{out}" data="{home.parent / "partitions"}"'
    done = subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), "run", str(REPOSITORY), "test", "--run-config", config],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + ENDED_WITHIN_S
    while not out.is_file():
        if time.monotonic() > deadline:
            pytest.fail(f"no head: {done.stdout}\n{logs(home)}")
        time.sleep(0.2)
    with np.load(out) as file:
        assert tuple(file["classes"]) == CLASSES
        return {name: file[name] for name in file.files if name != "classes"}


def on_superlink(home: Path, folder: Path) -> dict[str, np.ndarray]:
    home.mkdir()
    port = free_port()
    common = ("--insecure", "--port")
    with process("flower-superlink", *common, str(port), "--disable-runtime-dependency-installation", home=home):
        wait_for_port(port, home)
        nodes = [
            process(
                "flower-supernode",
                *common,
                str(free_port()),
                "--superlink",
                f"127.0.0.1:{port}",
                "--node-config",
                f'data="{folder / f"{number}.npz"}"',
                home=home,
            )
            for number in range(NODES)
        ]
        with nodes[0], nodes[1], nodes[2]:
            wait_for_nodes(home)
            return flwr_run(home, port, home / "head.npz")


def wait_for_nodes(home: Path) -> None:
    """Until every SuperNode says that it is connected."""
    deadline = time.monotonic() + 40
    while sum("SuperNode ID" in path.read_text() for path in home.glob("*node*.log")) < NODES:
        if time.monotonic() > deadline:
            return  # the head then misses nodes, and says so
        time.sleep(0.2)


def on_ray(home: Path) -> dict[str, np.ndarray]:
    home.mkdir()
    port = free_port()
    with process(
        "flower-superlink",
        "--insecure",
        "--simulation",
        "--port",
        str(port),
        "--disable-runtime-dependency-installation",
        home=home,
    ):
        wait_for_port(port, home)
        return flwr_run(home, port, home / "head.npz", f"[superlink.test.options]\nnum-supernodes = {NODES}\n")


def test_the_app_on_our_grid_solves_the_centralised_head(broker: Broker, partitions: Path) -> None:
    same(over_mqtt(broker, partitions), centralised(partitions))


@pytest.mark.slow
def test_the_same_app_by_flwr_run_on_superlink_and_supernodes(tmp_path: Path, partitions: Path) -> None:
    same(on_superlink(tmp_path / "deployed", partitions), centralised(partitions))


@pytest.mark.slow
def test_the_same_app_in_flowers_simulation_engine_on_ray(tmp_path: Path, partitions: Path) -> None:
    pytest.importorskip("ray")
    same(on_ray(tmp_path / "simulated"), centralised(partitions))


def test_the_bundle_holds_the_app_modules_and_shadows_nothing(tmp_path: Path) -> None:
    work = tmp_path / "app"
    work.mkdir()
    for name in ("pyproject.toml", *FLOWER["fab-include"]):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes((REPOSITORY / name).read_bytes())
    (work / "cloud" / "service.py").write_text("must not be packed")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), "build"],
        env=environment(tmp_path),
        cwd=work,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = work.glob("*.fab")
    names = {name for name in zipfile.ZipFile(bundle).namelist() if not name.startswith(".info/")}
    assert names == {"pyproject.toml", "cloud/federation/fleet_app.py", "edge/fleet_client.py"}


def test_a_node_without_data_says_how_to_give_it_some(tmp_path: Path) -> None:
    from common.errors import ConfigError, OperatorError
    from edge.fleet_client import partition_file

    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(ConfigError, match="--node-config"):
        partition_file(context)
    (tmp_path / "0.npz").write_bytes(b"no archive")
    with pytest.raises(OperatorError, match="no file of labelled embeddings"):
        Partition.open(tmp_path / "0.npz")
