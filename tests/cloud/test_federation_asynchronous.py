"""Asynchronous averaging over our own grid and the edge's own client: what the link loses, and who comes late."""

import random
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from cloud.federation.asynchronous import BufferedAsync
from cloud.federation.grid import MqttGrid
from common.errors import EnvironmentFault
from common.flower import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict, take_identity
from edge.learner import Learner

WANTED = 4.0
Train = Callable[[str, Message], Message]


def trained(message: Message, share: float = 0.5) -> Message:
    """The model that was given, half of the way to what the client wants."""
    given = message.content["arrays"]["w"].numpy()
    arrays = ArrayRecord({"w": Array((given + share * (WANTED - given)).astype(np.float32))})
    metrics = MetricRecord({"num-examples": 1, "loss": float(np.abs(WANTED - given).max())})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


class Fleet:
    """Gateways behind a link that drops what it is told to, both ways."""

    def __init__(self, *names: str, loses: Callable[[str], bool] = lambda _: False, ask_again_s: float = 0.0) -> None:
        take_identity(1)
        self.online, self._loses = list(names), loses
        self.work: Counter[str] = Counter()
        """How often each gateway has trained."""
        self.train: Train = lambda _name, message: trained(message)
        self._learners: dict[str, Learner] = {}
        self.grid = MqttGrid(self._send, lambda: self.online, ask_again_s=ask_again_s)

    def _send(self, name: str, data: bytes) -> bool:
        if self._loses(name):
            return True  # the link took it, and that is all that is known
        if name not in self._learners:
            self._learners[name] = Learner(name, lambda message, _: self._work(name, message), lambda _: True)
        reply = self._learners[name].answer(data)
        if reply is not None and not self._loses(name):
            self.grid.on_frame(name, reply)
        return True

    def _work(self, name: str, message: Message) -> Message:
        self.work[name] += 1
        return self.train(name, message)


def strategy(**more: object) -> BufferedAsync:
    return BufferedAsync(**{"buffer": 2, "min_available_nodes": 1, "min_train_nodes": 1, **more})  # type: ignore[arg-type]


def model() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(3, np.float32))})


def learn(averaging: BufferedAsync, fleet: Fleet, models: int, **more: object) -> ArrayRecord:
    record: ArrayRecord = averaging.run_async(
        fleet.grid,
        model(),
        models,
        wait=lambda _: time.sleep(0.001),
        waits_max=2000,
        **more,  # type: ignore[arg-type]
    )
    return record


@pytest.mark.parametrize("seed", range(3))
def test_a_link_that_loses_a_third_of_all_messages_keeps_nobody_out(seed: int) -> None:
    rng = random.Random(seed)
    fleet = Fleet("a", "b", "c", "d", loses=lambda _: rng.random() < 1 / 3)
    averaging = strategy()
    record = learn(averaging, fleet, 40)
    np.testing.assert_allclose(record["w"].numpy(), WANTED, atol=1e-3)
    assert averaging.counters["folded"] >= 80
    assert fleet.grid.counters["asked again"] > 0
    assert min(fleet.work.values()) >= 10, "everybody taught, again and again"
    assert sum(fleet.work.values()) <= averaging.counters["asked"], "what was lost cost a message and no work"


def test_a_gateway_that_connects_later_takes_part() -> None:
    fleet = Fleet("a", "b")

    def on_model(version: int, arrays: ArrayRecord, metrics: MetricRecord) -> None:
        if version == 3:
            fleet.online += ["late"]
        if version == 10:
            fleet.online.remove("b")

    learn(strategy(), fleet, 20, on_model=on_model)
    assert fleet.work["late"] >= 10
    assert fleet.work["b"] < fleet.work["a"]


def test_no_more_are_at_work_than_may_be_and_everybody_has_a_turn() -> None:
    names = [f"g{number}" for number in range(12)]
    fleet = Fleet(*names)
    averaging = strategy(concurrency=3, buffer=3)
    random.seed(2)
    asked: list[int] = []
    learn(averaging, fleet, 40, on_model=lambda *_: asked.append(averaging.counters["asked"]))
    assert asked[0] == 3
    assert set(np.diff(asked)) == {3}
    assert set(fleet.work) == set(names)


def test_those_that_went_away_hold_nobodys_place() -> None:
    fleet = Fleet("a", "b", loses=lambda name: name == "a")
    averaging = strategy(concurrency=1, buffer=1)
    random.seed(0)

    def leave(*_: object) -> None:
        fleet.online = ["b"]

    fleet.online = ["a"]
    with pytest.raises(EnvironmentFault):
        averaging.run_async(fleet.grid, model(), 1, wait=leave, waits_max=0)
    assert not fleet.work
    averaging.run_async(fleet.grid, model(), 2, wait=leave, waits_max=5)
    assert fleet.work["b"] == 2


def test_one_that_is_silent_for_too_long_is_asked_anew_with_the_newest_model() -> None:
    def deaf(name: str) -> bool:
        """Hears nothing of the first request, however often it is repeated."""
        return name == "b" and not fleet.grid.counters["unanswered"]

    fleet = Fleet("a", "b", loses=deaf)
    fleet.train = lambda _, message: time.sleep(0.001) or trained(message)  # type: ignore[func-returns-value]
    averaging = strategy(answer_within_s=0.05)
    learn(averaging, fleet, 200)
    assert averaging.counters["silent"] == fleet.grid.counters["unanswered"] == 1
    assert fleet.work["b"] > 0


def test_an_answer_after_its_time_is_late_and_holds_no_room() -> None:
    take_identity(1)
    kept: list[bytes] = []
    grid = MqttGrid(lambda _name, data: bool(kept.append(data)) or True, lambda: ["a"])
    request = RecordDict({"arrays": model(), "config": ConfigRecord()})
    (node,) = grid.get_node_ids()
    names = list(grid.push_messages([Message(request, node, "train", ttl=0.01) for _ in range(2)]))
    learner = Learner("a", lambda message, _: trained(message), lambda _: True)
    replies = [learner.answer(data) for data in kept]
    assert replies[0]
    assert replies[1]
    grid.on_frame("a", replies[0])  # in time, but nobody comes for it
    time.sleep(0.02)
    assert list(grid.pull_messages([])) == []
    grid.on_frame("a", replies[1])
    assert list(grid.pull_messages(names)) == []
    counted = {name: grid.counters[name] for name in ("answered", "stale", "unanswered", "late")}
    assert counted == dict.fromkeys(counted, 1)


def test_one_that_fails_is_not_asked_in_circles_and_when_all_fail_it_ends() -> None:
    fleet = Fleet("a", "b")

    def fail(name: str, message: Message) -> Message:
        if name == "b":
            raise ValueError("no data here")
        return trained(message)

    fleet.train = fail
    averaging = strategy()
    learn(averaging, fleet, 10)
    assert averaging.counters["folded"] == 20
    assert 0 < averaging.counters["failed"] <= 11, "once for each model"
    fleet.online = ["b"]
    with pytest.raises(EnvironmentFault, match="no client has sent"):
        strategy().run_async(fleet.grid, model(), 1, wait=lambda _: None, waits_max=5)


def test_started_like_any_strategy_it_reports_what_each_model_measured() -> None:
    fleet = Fleet("a", "b")
    seen: list[int] = []

    def evaluate(version: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(version)
        return MetricRecord({"first": float(arrays["w"].numpy()[0])})

    told: list[float] = []

    def train(_name: str, message: Message) -> Message:
        told.append(float(message.content["config"]["rate"]))  # type: ignore[arg-type]
        return trained(message)

    fleet.train = train
    result = strategy().start(
        fleet.grid, model(), num_rounds=4, timeout=5, train_config=ConfigRecord({"rate": 0.5}), evaluate_fn=evaluate
    )
    losses = [metrics["loss"] for metrics in result.train_metrics_clientapp.values()]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == WANTED
    assert seen == [1, 2, 3, 4]
    assert result.evaluate_metrics_serverapp[4]["first"] == pytest.approx(result.arrays["w"].numpy()[0])
    assert set(told) == {0.5}


def test_a_context_is_kept_from_request_to_request() -> None:
    """What mods remember (error feedback, momentum) lives there."""
    take_identity(1)
    seen: list[int] = []

    def count(message: Message, context: Context) -> Message:
        times = context.state["times"]["n"] + 1 if "times" in context.state else 1
        context.state["times"] = MetricRecord({"n": times})
        seen.append(times)
        return trained(message)

    learner = Learner("a", count, lambda _: True)
    fleet = Fleet("a")
    fleet._learners["a"] = learner
    learn(strategy(), fleet, 2)
    assert seen == [1, 2, 3, 4]
