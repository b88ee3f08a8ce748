"""One app, three grids: MQTT, Flower's SuperLink with SuperNodes, Flower's simulation on Ray.

Real processes, in a Flower home of the test's own, by the very lines of docs/federation.md.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from cloud.federation.fleet_app import HEAD, check_run
from cloud.federation.fleet_app import app as server_app
from cloud.federation.grid import MqttGrid
from cloud.learning.heads import solve_lda
from common import codec, topics
from common.flower import Context, RecordDict, message_from_bytes, message_to_bytes, node_id_of
from common.ids import layer_hash, sample_id
from common.messages import FlowerFrame
from common.mqtt import Broker, MqttLink
from common.partition import Partition
from common.statistics import Statistics
from common.training import HEAD_RATE
from common.weights import read_weights
from edge.fleet_client import app as client_app
from edge.softmax import Softmax, train
from tests.cloud.normed import picture, small_backbone

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES, DIMENSION, BACKBONE, NODES = ("normal", "tear", "wood"), 16, "b" * 64, 3
FLOWER = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
DOCUMENT = (REPOSITORY / "docs" / "federation.md").read_text(encoding="utf-8")
ENDED_WITHIN_S = 60.0
ROUNDS, STEPS = 2, 5

Arrays = dict[str, np.ndarray]
Config = dict[str, str | int | float]

LEARNT: dict[str, Config] = {
    "analytic": {},
    "fedavg": {"strategy": "fedavg", "rounds": ROUNDS, "steps": STEPS},
    "two-level": {"strategy": "two-level", "rounds": ROUNDS, "steps": STEPS, "compression": "int8"},
    "async": {"strategy": "async", "strategy-args": '{"buffer": 3}', "rounds": 1, "steps": 60},
    "adapter": {"strategy": "fedprox", "strategy-args": '{"proximal_mu": 0.1}', "task": "adapter", "rounds": 1},
}


@pytest.fixture
def world(tmp_path: Path) -> "World":
    """What three nodes have: embeddings, pictures, and the backbone's file."""
    return World(tmp_path)


class World:
    """Folders of partitions, pictures and layers."""

    def __init__(self, folder: Path) -> None:
        self.partitions, self.pictures, self.layers = (folder / n for n in ("partitions", "pictures", "layers"))
        self.partitions.mkdir()
        for number in range(NODES):
            rng = np.random.default_rng(number)
            labels = tuple(CLASSES[row] for row in rng.integers(0, 3, 30 + number))
            rows = rng.normal(size=(len(labels), DIMENSION))
            for row, label in enumerate(labels):
                rows[row, CLASSES.index(label)] += 4.0
            ids = tuple(sample_id(b"", f"node-{number}", "c", row) for row in range(len(labels)))
            Partition(ids, rows.astype(np.float32), labels, "belt", BACKBONE).save(self.partitions / f"{number}.npz")
            for place, label in enumerate(("normal", "tear") * 3):
                file = self.pictures / str(number) / label / f"{place}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(file), picture(label, 10 * number + place))
        self.layers.mkdir()
        self.layer = self.layers / layer_hash(small_backbone())
        self.layer.write_bytes(small_backbone())

    def node_config(self, number: int) -> dict[str, str]:
        """What one of them says of itself."""
        return {
            "data": str(self.partitions / f"{number}.npz"),
            "app": "cloud.finetuning.site_app:app",
            "pictures": str(self.pictures / str(number)),
            "layers": str(self.layers),
        }

    def run_config(self, name: str, out: Path) -> Config:
        """What a run says."""
        if name == "adapter":
            return {**LEARNT[name], "layer": str(self.layer), "out": str(out)}
        known: Config = {"classes": ",".join(CLASSES), "backbone": BACKBONE, "dimension": DIMENSION, "out": str(out)}
        return {**known, **LEARNT[name]}

    def check(self, name: str, found: Arrays | bytes) -> None:
        """Whether this is what has to come of it."""
        if isinstance(found, bytes):
            before, after = read_weights(self.layer.read_bytes()), read_weights(found)
            changed = {key for key in before if not np.array_equal(before[key], after[key])}
            assert changed == {f"bn{n}.{part}" for n in (1, 2, 3) for part in ("scale", "shift")}
            assert len(found) == self.layer.stat().st_size
        elif name == "async":  # in which order answers come is nobody's to say
            rows, truth = self.everything()
            x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            said = (x @ found["weight"].T + found["bias"]).argmax(axis=1)
            assert (said == truth).mean() > 0.9
        else:
            wanted, rtol = (self.centralised(), 1e-9) if name == "analytic" else (self.averaged(), 1e-4)
            atol = 0.02 if LEARNT[name].get("compression") else rtol
            for key, values in wanted.items():
                np.testing.assert_allclose(found[key], values, rtol=rtol, atol=atol, err_msg=f"{name}: {key}")

    def parts(self) -> list[Partition]:
        return [Partition.open(self.partitions / f"{number}.npz") for number in range(NODES)]

    def everything(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and classes of all nodes."""
        parts = self.parts()
        truth = [CLASSES.index(label) for part in parts for label in part.labels]
        return np.concatenate([part.embeddings for part in parts]), np.array(truth)

    def centralised(self) -> Arrays:
        """The head of all data in one place."""
        rows, truth = self.everything()
        head = solve_lda(Statistics.of(CLASSES, rows, [CLASSES[k] for k in truth]), 0.3)
        return {name: getattr(head, name) for name in ("directions", "offsets", "constants", "quadratic")}

    def averaged(self) -> Arrays:
        """The head by weight updates, averaged by hand."""
        head = Softmax(np.zeros((len(CLASSES), DIMENSION), np.float32), np.zeros(len(CLASSES), np.float32))
        for _ in range(ROUNDS):
            made = []
            for part in self.parts():
                targets = [CLASSES.index(label) for label in part.labels]
                made.append((len(targets), train(head, part.embeddings, targets, steps=STEPS, rate=HEAD_RATE)[0]))
            total = sum(n for n, _ in made)
            weight, bias = (sum(n / total * getattr(one, key) for n, one in made) for key in ("weight", "bias"))
            head = Softmax(np.asarray(weight, np.float32), np.asarray(bias, np.float32))
        return {"weight": head.weight, "bias": head.bias}


# --- our grid -------------------------------------------------------------------------------------


def over_mqtt(broker: Broker, world: World, out: Path) -> Iterator[tuple[str, Arrays | bytes]]:
    """The apps on our grid, a link per node."""
    names = [f"node-{number}" for number in range(NODES)]
    links: list[MqttLink] = []

    def node(number: int) -> MqttLink:
        contexts: dict[int, Context] = {}

        def on_message(_topic: str, payload: bytes) -> None:
            frame = codec.decode(payload)
            assert isinstance(frame, FlowerFrame)
            message, config = message_from_bytes(frame.message), world.node_config(number)
            run = message.metadata.run_id
            fresh = Context(run, node_id_of(names[number]), dict(config), RecordDict(), {})
            reply = message_to_bytes(client_app(message, contexts.setdefault(run, fresh)))
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
        for name in LEARNT:
            config = {**FLOWER["config"], **world.run_config(name, out / name)}
            context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
            server_app(grid, context)
            assert len(context.state[HEAD])
            yield name, opened(out / name)
    finally:
        for link in links:
            link.stop()


def opened(file: Path) -> Arrays | bytes:
    """What a ServerApp wrote: a head, or a layer."""
    data = file.read_bytes()
    if not data.startswith(b"PK"):
        return data
    with np.load(file) as arrays:
        assert tuple(arrays["classes"]) == CLASSES
        return {name: arrays[name] for name in arrays.files if name != "classes"}


def test_the_app_on_our_grid_learns_what_it_has_to(broker: Broker, world: World, tmp_path: Path) -> None:
    learnt = []
    for name, found in over_mqtt(broker, world, tmp_path / "out"):
        world.check(name, found)
        learnt.append(name)
    assert learnt == list(LEARNT)


# --- Flower's own ---------------------------------------------------------------------------------


def documented(program: str, number: int = 0) -> list[str]:
    """The words of a line of the document that runs a program."""
    lines = re.findall(rf"^    ({re.escape(program)} .+)$", DOCUMENT, re.MULTILINE)
    return shlex.split(lines[number])


def documented_config() -> str:
    """All that the document puts into Flower's config.toml."""
    return "\n".join(re.findall(r"^    (\[superlink\..+|\w[\w.-]* = .+)$", DOCUMENT[: DOCUMENT.index("## Str")], re.M))


def in_toml(config: Mapping[str, str | int | float]) -> str:
    """As --run-config and --node-config take it."""
    texts = {key: f"'{value}'" if '"' in str(value) else f'"{value}"' for key, value in config.items()}
    return " ".join(f"{key}={texts[key] if isinstance(value, str) else value}" for key, value in config.items())


@contextmanager
def process(words: list[str], home: Path) -> Iterator[None]:
    """A Flower program for the length of a block, with everything it starts."""
    with (home / f"{words[0]}-{len(list(home.iterdir()))}.log").open("w") as log:
        started = subprocess.Popen(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
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
    return {**os.environ, **quiet, "FLWR_HOME": str(home), "PATH": path, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], timeout_s: float, home: Path, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(home.glob("*.log")))
            pytest.fail(f"{what} did not come: {logs}")
        time.sleep(0.1)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def flwr_run(home: Path, config: Config) -> Arrays | bytes:
    """The document's `flwr run`, with another run config; what its ServerApp wrote."""
    words = documented("flwr run")
    place = words.index("--run-config") + 1
    said = tomllib.loads(words[place].replace(" ", "\n"))
    assert set(said) <= set(FLOWER["config"]), "the document's own keys are there"
    words[place] = in_toml(config)
    done = subprocess.run(
        [str(Path(sys.executable).parent / words[0]), *words[1:]],
        env=environment(home),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = Path(str(config["out"]))
    wait_for(out.is_file, ENDED_WITHIN_S, home, f"what the run was to write; {done.stdout}")
    return opened(out)


def superlink(home: Path, number: int) -> ExitStack:
    """The document's SuperLink, its port and connection changed for one that is free."""
    port, stack = free_port(), ExitStack()
    (home / "config.toml").write_text(documented_config().replace(":8000", f":{port}"))
    (home / "port").write_text(str(port))
    stack.enter_context(process([*documented("flower-superlink", number), "--port", str(port)], home))
    wait_for(lambda: is_open(port), 40, home, "the SuperLink's port")
    return stack


@pytest.mark.slow
def test_the_same_app_by_flwr_run_on_superlink_and_supernodes(tmp_path: Path, world: World) -> None:
    home = tmp_path / "deployed"
    home.mkdir()
    with superlink(home, 0) as stack:
        for number in range(NODES):
            words = documented("flower-supernode")
            words[words.index("--superlink") + 1] = f"127.0.0.1:{(home / 'port').read_text()}"
            words[words.index("--node-config") + 1] = in_toml(world.node_config(number))
            stack.enter_context(process([*words, "--port", str(free_port())], home))
        nodes = lambda: sum("SuperNode ID" in path.read_text() for path in home.glob("*node*.log"))  # noqa: E731
        wait_for(lambda: nodes() == NODES, 40, home, "the SuperNodes")
        config = {**world.run_config("analytic", home / "analytic"), "nodes-min": NODES}
        world.check("analytic", flwr_run(home, config))
        slowly = {"strategy": "async", "strategy-args": '{"buffer": 3}', "nodes-min": NODES}
        world.check("adapter", flwr_run(home, {**world.run_config("adapter", home / "adapter"), **slowly}))


@pytest.mark.slow
def test_the_same_app_in_flowers_simulation_engine_on_ray(tmp_path: Path, world: World) -> None:
    pytest.importorskip("ray")
    home = tmp_path / "simulated"
    home.mkdir()
    with superlink(home, 1):
        config = {**world.run_config("analytic", home / "analytic"), "data": str(world.partitions)}
        world.check("analytic", flwr_run(home, config))
        named = {"app": "cloud.finetuning.site_app:app", "layers": str(world.layers), "data": str(world.pictures)}
        world.check("adapter", flwr_run(home, {**world.run_config("adapter", home / "adapter"), **named}))


# --- the bundle, and what is said where something is missing --------------------------------------


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


def test_flower_reads_every_config_of_the_document_and_knows_its_keys() -> None:
    from flwr.common.config import parse_config_args

    lines = [
        *re.findall(r"^    (flwr run .+)$", DOCUMENT, re.M),
        *re.findall(r"^    (flower-supernode .+)$", DOCUMENT, re.M),
    ]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)
        of_run = "--run-config" in words
        said = parse_config_args([words[words.index("--run-config" if of_run else "--node-config") + 1]])
        assert set(said) <= (set(FLOWER["config"]) if of_run else {"data", "app", "pictures", "layers"}), line
        if of_run and "classes" in said:
            check_run({**FLOWER["config"], **said})


def test_a_node_without_data_says_how_to_give_it_some(tmp_path: Path) -> None:
    from common.errors import ConfigError, OperatorError
    from edge.fleet_client import partition_file

    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(ConfigError, match="--node-config"):
        partition_file(context)
    (tmp_path / "0.npz").write_bytes(b"no archive")
    with pytest.raises(OperatorError, match="no file of labelled embeddings"):
        Partition.open(tmp_path / "0.npz")
