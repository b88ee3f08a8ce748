"""A backbone trained where the pictures are: the centre's command, a real broker, gateways that have torch."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cloud.cli import app
from cloud.finetuning import rounds, site_app
from cloud.finetuning.federated import adapter_arrays, task_of
from cloud.finetuning.tuning import Recipe
from cloud.learning.export import set_default_backbone
from common import codec, topics
from common.errors import ConfigError, EnvironmentFault, OperatorError
from common.flower import ConfigRecord, Context, Message, RecordDict, name_message, node_id_of, take_identity
from common.ids import layer_hash
from common.labelled import labelled_pictures, picture_of
from common.messages import Chunk, FlowerFrame, Sample, State
from common.mqtt import Broker, MqttLink
from common.training import pack_task
from common.weights import read_weights
from edge.contributor import Policy, make_client_app
from edge.exemplars import Exemplars
from edge.learner import Learner
from edge.trainer import Trainer
from tests.cloud.normed import CLASSES, picture, small_backbone

SCENARIO = "belt"
NAMES = ("deep-1", "deep-2", "north-1")


def write_pictures(folder: Path, count: int, first: int) -> None:
    for number in range(count):
        label = CLASSES[number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / label / f"{number}.png"), picture(label, first + number))


class Site:
    """A gateway's learner, as the agent wires it, on a link of its own; it reports its state."""

    def __init__(self, name: str, broker: Broker, folder: Path, layers: Path, named: str) -> None:
        self.name, self.folder = name, folder
        self.exemplars = Exemplars.open(folder / "exemplars.db")
        self.trainer = Trainer.of(self.exemplars, Policy(shares_updates=True), named)
        whole = make_client_app(self.exemplars, Policy(shares_updates=True), node_id_of(name), respond=self.trainer)
        config = {"site": name[:-2], "layers": str(layers), "pictures": str(folder / "pictures"), "threads": 1}
        self.link = MqttLink(broker, name, (topics.down_filter(name),), self._on_message)
        self.learner = Learner(name, whole, self._send, config)
        self._stopping = threading.Event()
        self._heart = threading.Thread(target=self._beat)

    def start(self) -> None:
        self.link.start()
        self.learner.start()
        self._heart.start()

    def stop(self) -> None:
        self._stopping.set()
        self._heart.join(5)
        self.learner.stop(10)
        self.link.stop()
        self.exemplars.close()

    def _beat(self) -> None:
        state = codec.encode(state_of(self.name, trains=self.trainer.trains))
        while not self._stopping.wait(0.1):
            self.link.publish(topics.up(self.name, "state"), state)

    def _send(self, frame: FlowerFrame | Chunk) -> bool:
        return self.link.publish(topics.up(self.name, "flower"), codec.encode(frame))

    def _on_message(self, _topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        assert isinstance(message, FlowerFrame | Chunk)
        self.learner.on_frame(message)


def state_of(name: str, *, trains: bool) -> State:
    return State(
        gateway_id=name, site_id=name[:-2], at_ns=0, agent_version="0", release_id="", share="updates", trains=trains
    )


@contextmanager
def sites(broker: Broker, folder: Path, layers: Path, apps: Mapping[str, str]) -> Iterator[dict[str, Site]]:
    made = {}
    for number, (name, named) in enumerate(apps.items()):
        write_pictures(folder / name / "pictures", 8, 100 * (number + 1))
        made[name] = Site(name, broker, folder / name, layers, named)
    try:
        for site in made.values():
            site.start()
        for site in made.values():
            site.link.wait_connected(15)
        yield made
    finally:
        for site in made.values():
            site.stop()


class Centre:
    """The commands of a centre with a first release, on the test's broker."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder, self.layers = folder / "data", folder / "data" / "layers"
        write_pictures(folder / "archive", 60, 0)
        layer = small_backbone()
        self.layers.mkdir(parents=True)
        (self.layers / layer_hash(layer)).write_bytes(layer)
        set_default_backbone(self.layers, layer_hash(layer))
        self.config = folder / "cloud.toml"
        settings = f"[broker]\nembedded = false\nport = {broker.port}\n[learning]\ntolerance = 1.0\n"
        self.config.write_text(f'data_dir = "{self.folder}"\n{settings}')
        assert self.run("dataset", "add", str(folder / "archive"), "--scenario", SCENARIO).exit_code == 0
        assert self.run("train").exit_code == 0

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--config", str(self.config)])


@pytest.fixture
def centre(tmp_path: Path, broker: Broker) -> Centre:
    return Centre(tmp_path, broker)


TRAINED = dict.fromkeys(NAMES, "cloud.finetuning.site_app:app")


def test_the_command_trains_at_the_sites_and_releases_what_comes_of_it(
    centre: Centre, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "HEARD_S", 3.0)
    apps = {**TRAINED, "plain-1": ""}
    words = ["finetune", "--federated", "--epochs", "2", "--batch", "4", "--rate", "0.002", "--json"]
    with sites(broker, tmp_path / "sites", centre.layers, apps):
        found = centre.run(*words, "--strategy", "two-level", "--compression", "int8", "--sites-min", "3")
        assert found.exit_code == 0, (found.output, found.exception)
        record = json.loads(found.stdout)
    assert record["release_id"].startswith("r2-")
    assert len(record["curve"]) == 2
    assert record["parameters"]["federated"]["strategy"] == "two-level"
    assert record["parameters"]["counters"]["answered"] == 6, "three sites in two rounds, the plain one is not asked"
    before = read_weights(small_backbone())
    after = read_weights((centre.layers / record["backbone"]).read_bytes())
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed <= {f"bn{n}.{part}" for n in (1, 2, 3) for part in ("scale", "shift")}
    assert changed
    assert list((centre.folder / "finetuning").glob("*.npz")) == [], "nothing is left of a run that is over"


def test_a_run_that_is_cut_short_goes_on_after_its_last_round(
    centre: Centre, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "HEARD_S", 3.0)
    words = (
        "finetune",
        "--federated",
        "--epochs",
        "3",
        "--batch",
        "4",
        "--rate",
        "0.002",
        "--sites-min",
        "3",
        "--json",
    )
    kept = rounds.FederatedTuning._keep

    def cut(self: rounds.FederatedTuning, arrays: object, done: int) -> None:
        kept(self, arrays, done)  # type: ignore[arg-type]
        if done == 2:
            raise KeyboardInterrupt

    with sites(broker, tmp_path / "sites", centre.layers, TRAINED):
        with monkeypatch.context() as patched:
            patched.setattr(rounds.FederatedTuning, "_keep", cut)
            assert centre.run(*words).exit_code != 0
        assert len(list((centre.folder / "finetuning").glob("*.rounds.npz"))) == 1
        found = centre.run(*words)
    assert found.exit_code == 0, (found.output, found.exception)
    record = json.loads(found.stdout)
    assert record["parameters"]["counters"]["answered"] == 3, "one round was left"
    assert len(record["curve"]) == 1


def test_what_cannot_be_is_said_before_anybody_is_asked(
    centre: Centre, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "HEARD_S", 0.2)
    with sites(broker, tmp_path / "sites", centre.layers, {"plain-1": ""}):
        alone = centre.run("finetune", "--federated").exception
    assert isinstance(alone, EnvironmentFault)
    assert "0 of 2 gateways that train are online" in str(alone)
    for words, match in (
        (("--strategy", "average"), "no strategy 'average'"),
        (("--strategy", "krum", "--compression", "int8"), "does not open compressed"),
        (("--weights", "tuned.onnx"), "--weights trains nothing"),
        (("--compression", "zip"), "no compression 'zip'"),
    ):
        error = centre.run("finetune", "--federated", *words).exception
        assert isinstance(error, OperatorError | ConfigError), words
        assert match in str(error)


# --- what a site trains on ------------------------------------------------------------------------


def context(folder: Path, **config: str | int) -> Context:
    known = {"layers": str(folder / "layers"), "site": "deep", **config}
    return Context(run_id=1, node_id=7, node_config=known, state=RecordDict(), run_config={})


def test_pictures_labelled_at_the_gateways_page_are_trained_on(
    tmp_path: Path, make_sample: Callable[..., Sample]
) -> None:
    exemplars = Exemplars.open(tmp_path / "exemplars.db")
    samples = []
    for number in range(6):
        jpeg = cv2.imencode(".jpg", picture(CLASSES[number % 2], number))[1].tobytes()
        samples.append(make_sample(number, jpeg=jpeg))
        exemplars.remember(samples[-1], keep_picture=number != 0)
    exemplars.label({sample.sample_id: {SCENARIO: CLASSES[n % 2]} for n, sample in enumerate(samples[:5])})
    file = tmp_path / "exemplars.db"
    found = site_app.examples_of(context(tmp_path, labelled=str(file)))
    assert {example.id for example in found} == {sample.sample_id for sample in samples[1:5]}
    assert {example.target for example in found} == {(SCENARIO, label) for label in CLASSES}
    assert found[0].read().shape == (12, 12, 3)
    write_pictures(tmp_path / "pictures", 4, 50)
    more = site_app.examples_of(context(tmp_path, labelled=str(file), pictures=str(tmp_path / "pictures")))
    assert len(more) == 8
    exemplars.drop_picture(samples[1].sample_id)
    assert len(labelled_pictures(file)) == 3
    with pytest.raises(OperatorError, match="not kept any more"):
        picture_of(file, samples[1].sample_id)
    exemplars.close()
    (tmp_path / "broken.db").write_bytes(b"no database" * 100)
    with pytest.raises(EnvironmentFault, match=r"broken\.db"):
        labelled_pictures(tmp_path / "broken.db")


def test_a_site_without_pictures_or_without_the_backbone_says_so(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no labelled pictures"):
        site_app.examples_of(context(tmp_path, labelled=str(tmp_path / "none.db")))
    with pytest.raises(OperatorError, match="is not in"):
        site_app._layer(context(tmp_path), "b" * 64)


def test_fedprox_holds_on_to_the_weights_that_came(tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    layer = small_backbone()
    (tmp_path / "layers" / layer_hash(layer)).write_bytes(layer)
    write_pictures(tmp_path / "pictures", 8, 0)
    take_identity(1)

    def moved(mu: float) -> float:
        arrays = adapter_arrays(layer, Recipe())
        task = task_of(layer_hash(layer), Recipe(epochs=1, batch=4, rate=0.02))
        config = ConfigRecord({**pack_task(task), "server-round": 1, "proximal-mu": mu})
        message = Message(RecordDict({"arrays": arrays, "config": config}), 7, "train")
        name_message(message, f"mu {mu}")
        reply = site_app.app(message, context(tmp_path, pictures=str(tmp_path / "pictures")))
        assert not reply.has_error()
        made = reply.content["arrays"]
        return float(sum(np.square(made[name].numpy() - arrays[name].numpy()).sum() for name in arrays))

    assert moved(100.0) < 0.2 * moved(0.0)
