"""Flower's own strategies, unmodified, with an ordinary ClientApp: the same over MQTT as on Flower's own grid.

The nodes of the MQTT grid are `edge.learner.Learner`s on a real broker; those of Flower's in-memory grid run in its
simulation engine on Ray. The ClientApp trains logistic regression, keeps a momentum in its context, heeds FedProx's
proximal term, and is evaluated; the wrappers for differential privacy run with Flower's own clipping mods.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    Krum,
    Strategy,
)

from cloud.federation.grid import MqttGrid
from common import codec, topics
from common.flower import message_from_bytes, message_to_bytes, name_message, node_id_of, take_identity
from common.frames import Courier, Frame
from common.messages import Chunk, FlowerFrame
from common.mqtt import Broker, MqttLink
from edge.learner import ClientAppCallable, Learner

NODES, ROUNDS, FEATURES = 6, 2, 8
ALL = {"min_available_nodes": NODES, "min_train_nodes": NODES, "min_evaluate_nodes": NODES}

Made = Callable[[], Strategy]
STRATEGIES: dict[str, Made] = {
    "FedAvg": lambda: FedAvg(**ALL),
    "FedProx": lambda: FedProx(proximal_mu=0.5, **ALL),
    "FedAdam": lambda: FedAdam(eta=0.3, **ALL),
    "FedMedian": lambda: FedMedian(**ALL),
    "Krum": lambda: Krum(num_malicious_nodes=1, **ALL),
    "DP, server clips": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(**ALL), 0.3, 0.5, NODES),
    "DP, server clips adaptively": lambda: DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(**ALL), 0.3, NODES),
    "DP, client clips": lambda: DifferentialPrivacyClientSideFixedClipping(FedAvg(**ALL), 0.3, 0.5, NODES),
    "DP, client clips adaptively": lambda: DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(**ALL), 0.3, NODES),
}
MODS = {"DP, client clips": fixedclipping_mod, "DP, client clips adaptively": adaptiveclipping_mod}
"""Flower's own, that a client of these strategies has to use."""


def choosing(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """One app for all strategies: with the mod that the one under way asks for."""
    mod = MODS.get(str(message.content["config"]["strategy"]))
    return mod(message, context, call_next) if mod else call_next(message, context)


def make_client_app() -> ClientApp:
    """An ordinary app, as Flower's tutorials write one."""
    app = ClientApp()

    def data_of(context: Context) -> tuple[np.ndarray, np.ndarray]:
        number = int(context.node_config["partition-id"])
        rng = np.random.default_rng(number)
        x = rng.normal(size=(40, FEATURES))
        return x, (x[:, 0] + 0.3 * number * x[:, 1] > 0).astype(float)

    def loss_of(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, x @ weights) - y * (x @ weights)))

    @app.train(mods=[choosing])
    def train(message: Message, context: Context) -> Message:
        x, y = data_of(context)
        given = message.content["arrays"].to_numpy_ndarrays()[0]
        weights, mu = given.copy(), float(message.content["config"].get("proximal-mu", 0.0))
        state = context.state["momentum"].to_numpy_ndarrays()[0] if "momentum" in context.state else np.zeros(FEATURES)
        for _ in range(4):
            slope = x.T @ (1 / (1 + np.exp(-x @ weights)) - y) / len(y) + mu * (weights - given)
            state = 0.5 * state + slope
            weights = weights - 0.5 * state
        context.state["momentum"] = ArrayRecord([state])
        metrics = MetricRecord({"num-examples": len(y), "loss": loss_of(weights, x, y)})
        return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        x, y = data_of(context)
        weights = message.content["arrays"].to_numpy_ndarrays()[0]
        metrics = MetricRecord({"num-examples": len(y), "loss": loss_of(weights, x, y)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


@dataclass(frozen=True)
class Found:
    """What a strategy ended with."""

    weights: np.ndarray
    train_loss: list[float]
    evaluate_loss: list[float]


def run_all(grid: Grid, strategies: dict[str, Made]) -> dict[str, Found]:
    """Every strategy on a grid; noise is drawn from the same seed."""
    found = {}
    for name, make in strategies.items():
        np.random.seed(7)
        result = make().start(
            grid=grid,
            initial_arrays=ArrayRecord([np.zeros(FEATURES)]),
            num_rounds=ROUNDS,
            train_config=ConfigRecord({"strategy": name}),
        )
        found[name] = Found(
            result.arrays.to_numpy_ndarrays()[0],
            [float(metrics["loss"]) for metrics in result.train_metrics_clientapp.values()],
            [float(metrics["loss"]) for metrics in result.evaluate_metrics_clientapp.values()],
        )
    return found


class Node:
    """A learner with somebody else's ClientApp on a link of its own."""

    def __init__(self, number: int, broker: Broker, app: ClientApp) -> None:
        self.name = f"node-{number}"
        self.link = MqttLink(broker, self.name, (topics.down_filter(self.name),), self._on)
        self.learner = Learner(self.name, app, self._send, {"partition-id": number, "num-partitions": NODES})

    def start(self) -> None:
        self.link.start()
        self.learner.start()

    def stop(self) -> None:
        self.learner.stop(5)
        self.link.stop()

    def _send(self, frame: Frame) -> bool:
        return self.link.publish(topics.up(self.name, "flower"), codec.encode(frame))

    def _on(self, _topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        assert isinstance(message, FlowerFrame | Chunk)
        self.learner.on_frame(message)


def over_mqtt(broker: Broker, strategies: dict[str, Made]) -> dict[str, Found]:
    nodes = [Node(number, broker, make_client_app()) for number in range(NODES)]

    def on_message(topic: str, payload: bytes) -> None:
        frame = codec.decode(payload)
        assert isinstance(frame, FlowerFrame)
        grid.on_frame(topics.parse_up(topic)[0], frame.message)

    centre = MqttLink(broker, "centre", (topics.up_filter(),), on_message, window=256)
    courier = Courier(lambda name, frame: centre.publish(topics.down(name, "flower"), codec.encode(frame)))
    grid = MqttGrid(courier.send, lambda: [node.name for node in nodes])
    try:
        centre.start()
        centre.wait_connected(15)
        for node in nodes:
            node.start()
        for node in nodes:
            node.link.wait_connected(15)
        time.sleep(0.3)  # subscriptions are made on connecting, and nothing tells when the broker has them
        found = run_all(grid, strategies)
        assert grid.counters["answered"] == 2 * NODES * ROUNDS * len(strategies), "each is trained and evaluated"
        assert all(node.learner.app_errors == 0 for node in nodes)
    finally:
        for node in nodes:
            node.stop()
        centre.stop()
    return found


def on_flowers_own_grid(strategies: dict[str, Made]) -> dict[str, Found]:
    ray = pytest.importorskip("ray")
    from flwr.simulation import run_simulation

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its workers cannot import a test
    found: dict[str, Found] = {}
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        found.update(run_all(grid, strategies))

    run_simulation(app, make_client_app(), NODES, backend_config={"client_resources": {"num_cpus": 1}})
    take_identity(1)
    return found


def test_strategies_that_look_at_replies_once_and_twice_learn_over_mqtt(broker: Broker) -> None:
    some = {name: STRATEGIES[name] for name in ("FedAvg", "DP, server clips adaptively")}
    for name, found in over_mqtt(broker, some).items():
        assert found.evaluate_loss[-1] < np.log(2), f"{name} is no better than a coin"
        assert len(found.train_loss) == len(found.evaluate_loss) == ROUNDS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # ray's advice to itself
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # run_simulation is the only way without a project folder
def test_all_are_the_same_as_on_flowers_own_grid(broker: Broker) -> None:
    ours, theirs = over_mqtt(broker, STRATEGIES), on_flowers_own_grid(STRATEGIES)
    assert ours.keys() == theirs.keys() == STRATEGIES.keys()
    for name in STRATEGIES:
        for part in ("weights", "train_loss", "evaluate_loss"):
            one, other = getattr(ours[name], part), getattr(theirs[name], part)
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12, err_msg=f"{name}: {part}")


def test_an_app_that_fails_says_so_at_once(broker: Broker) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del message, context
        raise ZeroDivisionError("an app of somebody else")

    learner = Learner("node-0", app, lambda frame: True)
    request = Message(RecordDict(), node_id_of("node-0"), "train", group_id="1")
    name_message(request, "1")
    reply = learner.answer(message_to_bytes(request))
    assert reply is not None
    found = message_from_bytes(reply)
    assert found.has_error()
    assert "an app of somebody else" in str(found.error.reason)
    assert learner.app_errors == 1
