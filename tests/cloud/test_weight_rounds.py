"""Rounds of weight updates by name: every strategy learns with the same client, and what cannot be is said."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cloud.cli import app as cli
from cloud.federation.fleet_app import FIGURES, HEAD, check_run
from cloud.federation.fleet_app import app as server_app
from cloud.federation.grid import MqttGrid
from cloud.federation.strategies import NAMES, make_strategy
from common.errors import ConfigError, EnvironmentFault, OperatorError, RefusedError, WireError
from common.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    name_message,
    node_id_of,
    take_identity,
)
from common.partition import Partition
from common.training import STEPS_MAX, AdapterTask, HeadTask, pack_task, read_task
from edge.contributor import Policy, make_client_app
from edge.fleet_client import app as client_app
from edge.learner import Learner
from edge.softmax import Softmax, train
from edge.trainer import Trainer, load_app

CLASSES, DIMENSION, BACKBONE, NODES = ("normal", "tear"), 8, "b" * 64, 5
CONFIG: Mapping[str, str | int | float] = {
    "strategy": "fedavg",
    "strategy-args": "",
    "task": "head",
    "scenario": "belt",
    "classes": "normal,tear",
    "backbone": BACKBONE,
    "nodes-min": NODES,
    "deadline-s": 5.0,
    "out": "",
    "rounds": 3,
    "dimension": DIMENSION,
    "steps": 10,
    "rate": 0.0,
    "compression": "",
}


def partition(number: int) -> Partition:
    rng = np.random.default_rng(number)
    labels = tuple(CLASSES[row % 2] for row in range(20 + number))
    rows = rng.normal(size=(len(labels), DIMENSION))
    rows[:, 0] += [3.0 * CLASSES.index(label) - 1.5 for label in labels]
    ids = tuple(bytes([number, row]) * 8 for row in range(len(labels)))
    return Partition(ids, rows.astype(np.float32), labels, "belt", BACKBONE)


@pytest.fixture
def fleet(tmp_path: Path) -> MqttGrid:
    """The app that `flwr run` names, on five nodes behind our grid."""
    learners: dict[str, Learner] = {}
    for number in range(NODES):
        partition(number).save(tmp_path / f"{number}.npz")
        config = {"data": str(tmp_path / f"{number}.npz")}
        learners[f"n{number}"] = Learner(f"n{number}", client_app, lambda _: True, config)

    def send(name: str, data: bytes) -> bool:
        reply = learners[name].answer(data)
        assert reply is not None
        grid.on_frame(name, reply)
        return True

    grid = MqttGrid(send, lambda: list(learners))
    return grid


def learn(grid: MqttGrid, **config: str | float) -> Context:
    told = {**CONFIG, **{key.replace("_", "-"): value for key, value in config.items()}}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=told)
    server_app(grid, context)
    return context


def accuracy(context: Context) -> float:
    head = {name: array.numpy() for name, array in context.state[HEAD].items()}
    parts = [partition(number) for number in range(NODES)]
    x = np.concatenate([part.embeddings for part in parts])
    truth = [CLASSES.index(label) for part in parts for label in part.labels]
    return float(((x @ head["weight"].T + head["bias"]).argmax(axis=1) == truth).mean())


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_that_can_be_named_learns(fleet: MqttGrid, name: str) -> None:
    context = learn(fleet, strategy=name, rounds=2, strategy_args='{"buffer": 5}' if name == "async" else "")
    losses = list(context.state[FIGURES]["loss"])
    assert len(losses) == 2
    assert losses[-1] < losses[0] == pytest.approx(np.log(2))
    assert accuracy(context) > (0.6 if name in ("fedadagrad", "fedadam", "fedyogi") else 0.85), "those step carefully"


@pytest.mark.parametrize("scheme", ["int8", "int4", "topk"])
def test_updates_may_be_compressed(fleet: MqttGrid, scheme: str) -> None:
    assert accuracy(learn(fleet, compression=scheme, strategy="fedprox")) > 0.85


def test_one_step_each_is_one_step_on_all_data_in_one_place(fleet: MqttGrid) -> None:
    context = learn(fleet, steps=1, rounds=4)
    parts = [partition(number) for number in range(NODES)]
    x = np.concatenate([part.embeddings for part in parts])
    targets = [CLASSES.index(label) for part in parts for label in part.labels]
    start = Softmax(np.zeros((2, DIMENSION), np.float32), np.zeros(2, np.float32))
    wanted, _ = train(start, x, targets, steps=4, rate=5.0)
    np.testing.assert_allclose(context.state[HEAD]["weight"].numpy(), wanted.weight, rtol=1e-4, atol=1e-6)


def test_a_proximal_term_holds_on_to_what_was_given() -> None:
    part = partition(0)
    start = Softmax(np.ones((2, DIMENSION), np.float32), np.zeros(2, np.float32))
    targets = [CLASSES.index(label) for label in part.labels]
    moved = [
        np.linalg.norm(train(start, part.embeddings, targets, steps=30, rate=1.0, mu=mu)[0].weight - start.weight)
        for mu in (0.0, 0.5)
    ]
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"strategy": "fedavgg"}, "no strategy 'fedavgg'.*two-level.*krum"),
        ({"strategy_args": '{"buffer": 3}'}, "fedavg takes no buffer.*spare"),
        ({"strategy_args": "buffer=3"}, "no JSON"),
        ({"strategy_args": "[3]"}, "no JSON object"),
        ({"strategy": "fedmedian", "compression": "int8"}, "does not open compressed"),
        ({"task": "body"}, "no task 'body'"),
        ({"task": "adapter", "strategy": "analytic"}, "not solved but trained"),
        ({"task": "adapter", "layer": "/nowhere.onnx"}, "no backbone /nowhere.onnx"),
        ({"classes": "normal"}, "fewer than two classes"),
    ],
)
def test_a_run_config_that_cannot_be_says_what_can(fleet: MqttGrid, config: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        learn(fleet, **config)


def test_a_run_whose_nodes_are_not_there_or_have_nothing_ends(fleet: MqttGrid) -> None:
    with pytest.raises(EnvironmentFault, match="5 of 6 nodes are there"):
        learn(fleet, nodes_min=6, deadline_s=0.1)
    with pytest.raises(EnvironmentFault, match="no client gave an update of use"):
        learn(fleet, backbone="c" * 64, rounds=1)
    with pytest.raises(EnvironmentFault, match="no client has sent an update"):
        learn(fleet, dimension=DIMENSION + 1, strategy="async", deadline_s=0.2)


def test_a_strategy_takes_what_its_own_class_takes() -> None:
    made = make_strategy("fedavg", '{"fraction_train": 0.5, "spare": 0.1}', nodes_min=3)
    assert (made.fraction_train, made.spare, made.min_available_nodes) == (0.5, 0.1, 3)
    made = make_strategy("async", '{"buffer": 7}', deadline_s=9.0)
    assert (made.buffer, made.answer_within_s) == (7, 9.0)
    assert make_strategy("async", '{"answer_within_s": 3.0}', deadline_s=9.0).answer_within_s == 3.0
    with pytest.raises(ConfigError, match="async takes no quorum"):
        make_strategy("async", '{"quorum": 0.5}')
    two = make_strategy("two-level", '{"site_weight_max": 9.0}', site_of=lambda node: f"site-{node}")
    assert two._site_of(4) == "site-4"
    assert make_strategy("fedadam", '{"eta": 0.3}').eta == 0.3
    check_run({**CONFIG, "strategy": "krum"})


# --- the client -----------------------------------------------------------------------------------


def head_message(task: HeadTask | AdapterTask, shape: tuple[int, int] = (2, DIMENSION), kind: str = "train") -> Message:
    take_identity(1)
    arrays = {"weight": Array(np.zeros(shape, np.float32)), "bias": Array(np.zeros(shape[0], np.float32))}
    content = RecordDict({"arrays": ArrayRecord(arrays), "config": pack_task(task)})
    message = Message(content, 7, kind)
    name_message(message, "asked")
    return message


TASK = HeadTask(backbone=BACKBONE, scenario="belt", classes=CLASSES)
ADAPTER = AdapterTask(backbone=BACKBONE, depth="adapter", rounds=1)
OPEN = Policy(shares_updates=True)


def asked(trainer: Trainer, message: Message) -> Message:
    return trainer(message, Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={}))


@pytest.mark.parametrize("policy", [Policy(), Policy(shares_updates=True, masked_only=True)])
def test_a_site_that_shares_no_updates_sends_no_weights(policy: Policy) -> None:
    named: Callable[[Message, Context], Message] = lambda message, _: message  # noqa: E731
    trainer = Trainer(partition(0), policy, named)
    assert not trainer.trains
    for task in (TASK, ADAPTER):
        with pytest.raises(RefusedError, match="shares no weight updates"):
            asked(trainer, head_message(task))


def test_a_class_with_few_samples_is_left_out() -> None:
    few = Policy(shares_updates=True, class_samples_min=1000)
    with pytest.raises(RefusedError, match="no labelled samples of belt"):
        asked(Trainer(partition(0), few), head_message(TASK))


def test_a_head_of_another_shape_and_an_evaluation_are_refused() -> None:
    trainer = Trainer(partition(0), OPEN)
    with pytest.raises(WireError, match="the run's dimension is the backbone's"):
        asked(trainer, head_message(TASK, (2, DIMENSION + 1)))
    with pytest.raises(RefusedError, match="nothing else"):
        asked(trainer, head_message(TASK, kind="evaluate"))


def test_whose_app_cannot_be_loaded_says_why_to_who_asks() -> None:
    trainer = Trainer.of(partition(0), OPEN, "no_such_package.app:app")
    assert not trainer.trains
    with pytest.raises(RefusedError, match="No module named 'no_such_package'"):
        asked(trainer, head_message(ADAPTER))
    with pytest.raises(RefusedError, match="names no app"):
        asked(Trainer.of(partition(0), OPEN, ""), head_message(ADAPTER))
    for reference in ("json", "json:nothing", ":", "json:__doc__"):
        with pytest.raises(ConfigError, match=r"module:attribute"):
            load_app(reference)


def test_a_site_without_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cloud.finetuning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    trainer = Trainer.of(partition(0), OPEN, "cloud.finetuning.site_app:app")
    assert not trainer.trains
    with pytest.raises(RefusedError, match=r"torch.*headframe\[cloud\]"):
        asked(trainer, head_message(ADAPTER))


def test_somebody_elses_app_gets_what_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def app(message: Message, context: Context) -> Message:
        seen.append(f"{message.metadata.message_type} {context.node_config['site']}")
        return Message(RecordDict(), reply_to=message)

    monkeypatch.setitem(sys.modules, "somebodys", SimpleNamespace(app=app))
    trainer = Trainer.of(partition(0), OPEN, "somebodys:app")
    assert trainer.trains
    whole = make_client_app(partition(0), OPEN, 7, respond=trainer)
    context = Context(run_id=1, node_id=7, node_config={"site": "deep"}, state=RecordDict(), run_config={})
    for kind in ("train", "evaluate"):
        message = head_message(TASK, kind=kind)
        message.content["config"] = ConfigRecord({"lr": 0.1})
        whole(message, context)
    assert seen == ["train deep", "evaluate deep"]
    assert "arrays" in whole(head_message(TASK), context).content
    assert len(seen) == 2


def test_a_task_that_cannot_be_read_is_refused() -> None:
    wrong = [
        b"\xff",
        HeadTask(backbone="", scenario="belt", classes=("one",)),
        HeadTask(backbone="", scenario="belt", classes=("one", "one")),
        HeadTask(backbone="", scenario="belt", classes=CLASSES, steps=STEPS_MAX + 1),
        AdapterTask(backbone="", depth="adapter", rounds=1, compression="zip"),
        AdapterTask(backbone="", depth="adapter", rounds=2, before=2),
        AdapterTask(backbone="", depth="adapter", rounds=2, batch=100_000),
    ]
    for item in wrong:
        config = ConfigRecord({"task": item}) if isinstance(item, bytes) else pack_task(item)
        with pytest.raises(WireError):
            read_task(RecordDict({"config": config}))
    assert read_task(RecordDict({"config": ConfigRecord({"lr": 0.1})})) is None


def test_a_node_keeps_the_states_of_runs_apart() -> None:
    """A round of the centre in between must not cost a run its memory of what compression lost."""
    seen: list[int] = []

    def count(message: Message, context: Context) -> Message:
        times = context.state["n"]["n"] + 1 if "n" in context.state else 1
        context.state["n"] = ConfigRecord({"n": times})
        seen.append(times)
        return Message(RecordDict(), reply_to=message)

    learner = Learner("a", count, lambda _: True)
    for number, run in enumerate((1, 2, 1, 2, 3, 4, 5, 1)):
        take_identity(1, run)
        message = Message(RecordDict(), node_id_of("a"), "train")
        name_message(message, f"m{number}")
        reply = learner.answer(message_to_bytes(message))
        assert reply is not None
        assert not message_from_bytes(reply).has_error()
    take_identity(1)
    assert seen == [1, 1, 2, 2, 1, 1, 1, 1], "and of the last few only"


def test_partitions_that_are_wrong_are_named(tmp_path: Path) -> None:
    part = partition(0)
    Partition(part.ids, part.embeddings, part.labels[:-1], "belt", BACKBONE).save(tmp_path / "one.npz")
    with pytest.raises(OperatorError, match="different numbers"):
        Partition.open(tmp_path / "one.npz")


def test_the_command_writes_what_a_node_answers_from(tmp_path: Path, tiny_backbone: Callable[..., bytes]) -> None:
    (tmp_path / "layer.onnx").write_bytes(tiny_backbone(DIMENSION))
    rows = ["file,class,site"]
    for number in range(12):
        colour = np.full((8, 8, 3), 250 if number % 2 else 5, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), colour)
        rows.append(f"{number}.png,{CLASSES[number % 2]},{'north' if number < 8 else 'deep'}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["partition", str(tmp_path), *words, "--scenario", "belt"])

    backbone = ("--backbone", str(tmp_path / "layer.onnx"))
    one = run(str(tmp_path / "one.npz"), *backbone)
    assert one.exit_code == 0, one.output
    whole = Partition.open(tmp_path / "one.npz")
    assert (len(whole.ids), whole.scenario, set(whole.labels)) == (12, "belt", set(CLASSES))
    for word in ('classes="normal,tear"', f'backbone="{whole.backbone}"', f"dimension={DIMENSION}"):
        assert word in one.output, "as the run config wants it"
    many = run(str(tmp_path / "sites"), *backbone, "--by-site", "--json")
    assert json.loads(many.stdout)["nodes"] == 2
    counts = [len(Partition.open(tmp_path / "sites" / f"{number}.npz").ids) for number in (0, 1)]
    assert counts == [4, 8], "deep, north"
    for words in ((), (*backbone, "--config", "cloud.toml")):
        assert "which backbone" in str(run(str(tmp_path / "x.npz"), *words).exception)
    missing = run(str(tmp_path / "x.npz"), "--backbone", str(tmp_path / "none.onnx"))
    assert "there is no backbone" in str(missing.exception)
