"""Streaming averages: equal to Flower's, whole or not at all, and each wrong reply under its own reason."""

import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy
from hypothesis import given
from hypothesis import strategies as st

from cloud.federation.asynchronous import BufferedAsync
from cloud.federation.averaging import MeanMetrics, StreamingFedAvg, StreamingFedProx
from cloud.federation.folding import PARTIAL_FOLDS, Form, Mean, Misfit
from cloud.federation.hierarchy import TwoLevelFedAvg
from common.errors import EnvironmentFault
from common.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    name_message,
    take_identity,
)
from edge.compressing import compressing

Update = tuple[Sequence[np.ndarray], float]


class Nodes(Grid):  # type: ignore[misc]
    """A grid whose nodes answer at once with prepared updates, over the bytes of the wire."""

    def __init__(self, updates: dict[int, Update | bytes]) -> None:
        take_identity(1)
        self.updates = updates
        self.configs: list[ConfigRecord] = []
        self.held: list[Message] = []
        self.taken = 0

    def set_run(self, run: object) -> None: ...

    @property
    def run(self) -> object:
        raise NotImplementedError

    def create_message(self, *_: object, **__: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.updates)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            names.append(f"m{len(self.configs)}-{message.metadata.dst_node_id}")
            name_message(message, names[-1])
            self.configs.append(message.content["config"])
            self.held.append(self.reply(message))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        found = [reply for reply in self.held if reply.metadata.reply_to_message_id in wanted]
        self.held = [reply for reply in self.held if reply.metadata.reply_to_message_id not in wanted]
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        for message in messages:
            name_message(message, "asked")
            self.configs.append(message.content["config"])
            self.taken += 1
            yield self.reply(message)

    def reply(self, message: Message) -> Message:
        update = self.updates[message.metadata.dst_node_id]
        return message_from_bytes(message_to_bytes(Message(content=content_of(update), reply_to=message)))


def content_of(update: Update | bytes) -> RecordDict:
    if isinstance(update, bytes):
        array = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=update)
        return RecordDict({"arrays": ArrayRecord({"0": array}), "metrics": MetricRecord({"num-examples": 1.0})})
    arrays, weight = update
    return RecordDict(
        {
            "arrays": ArrayRecord(list(arrays)),
            "metrics": MetricRecord({"num-examples": weight, "loss": float(weight)}),
        }
    )


def run(strategy: Strategy, updates: dict[int, Update | bytes], model: Sequence[np.ndarray]) -> ArrayRecord:
    grid = Nodes(updates)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(list(model)), num_rounds=1, timeout=5)
    record: ArrayRecord = result.arrays
    return record


def quiet(**more: object) -> dict[str, object]:
    return {"fraction_evaluate": 0.0, "min_available_nodes": 1, "min_train_nodes": 1, **more}


shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=4)
dtypes = st.sampled_from(["<f4", "<f8", "<f2", "<i4"])


@given(shapes, dtypes, st.lists(st.integers(1, 10_000), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_the_mean_is_flowers(all_shapes: list[tuple[int, ...]], dtype: str, weights: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = [np.zeros(shape, dtype) for shape in all_shapes]
    updates: dict[int, Update | bytes] = {
        number + 2: ([np.asarray(10 * rng.normal(size=shape), dtype) for shape in all_shapes], weight)
        for number, weight in enumerate(weights)
    }
    ours, theirs = run(StreamingFedAvg(**quiet()), updates, model), run(FedAvg(**quiet()), updates, model)
    assert list(ours) == list(theirs)
    rounding = {"<f4": 1e-5, "<f8": 1e-12, "<f2": 2e-2, "<i4": 1e-12}[dtype]
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        np.testing.assert_allclose(array.numpy(), theirs[name].numpy(), rtol=rounding, atol=50 * rounding)


def test_many_folds_keep_more_digits_than_a_plain_float32_sum() -> None:
    rng = np.random.default_rng(5)
    rows = rng.uniform(0.5, 1.5, (40 * PARTIAL_FOLDS + 3, 64)).astype(np.float32)
    mean = Mean({"w": Form.of(np.dtype("f4"), (64,))})
    plain = np.zeros(64, np.float32)
    for row in rows:
        mean.add({"w": Array(row).data}, 1.0)
        plain += row
    truth = rows.astype(np.float64).mean(axis=0)
    ours = abs(mean.result()["w"] - truth).max()
    assert ours < 2e-7
    assert ours < abs(plain / np.float32(len(rows)) - truth).max() / 5


def test_an_update_at_an_odd_address_is_folded_alike() -> None:
    values = np.random.default_rng(0).normal(size=200_001).astype(np.float32)
    for shift in range(4):
        mean = Mean({"w": Form.of(np.dtype("f4"), values.shape)})
        mean.add({"w": memoryview(b"x" * shift + Array(values).data)[shift:]}, 3.0)
        np.testing.assert_allclose(mean.result()["w"], values, rtol=1e-6)


@pytest.mark.parametrize("place", [0, 65_535, 65_536, 199_999])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_wrong_value_anywhere_leaves_the_sum_as_it_was(place: int, value: float) -> None:
    good = np.ones(200_000, np.float32)
    bad = good.copy()
    bad[place] = value
    mean = Mean({"w": Form.of(np.dtype("f4"), good.shape)})
    mean.add({"w": Array(good).data}, 1.0)
    with pytest.raises(Misfit) as error:
        mean.add({"w": Array(bad).data}, 1.0)
    assert error.value.kind == "not-finite"
    assert (mean.folds, mean.weight) == (1, 1.0)
    np.testing.assert_array_equal(mean.result()["w"], good)


def test_values_whose_squares_overflow_are_finite() -> None:
    large = np.full(10, 1e30, np.float32)
    mean = Mean({"w": Form.of(np.dtype("f4"), large.shape)})
    mean.add({"w": Array(large).data}, 2.0)
    np.testing.assert_allclose(mean.result()["w"], large, rtol=1e-6)


def test_each_wrong_reply_is_counted_under_its_reason_and_left_out() -> None:
    one = np.ones(3, np.float32)
    wrong: dict[str, Update | bytes] = {
        "shape": ([np.ones((3, 1), np.float32)], 1),
        "dtype": ([np.ones(3, np.float64)], 1),
        "not-finite": ([np.array([1, math.nan, 1], np.float32)], 1),
        "oversize": ([np.ones(30_000, np.float32)], 1),
        "weight": ([one], -5),
        "malformed": b"\x93NUMPY no header",
    }
    updates: dict[int, Update | bytes] = {2: ([one], 1), 3: ([3 * one], 1)}
    updates |= dict(enumerate(wrong.values(), start=10))
    strategy = StreamingFedAvg(**quiet())
    record = run(strategy, updates, [np.zeros(3, np.float32)])
    np.testing.assert_allclose(record["0"].numpy(), 2 * one)
    assert {name: strategy.counters[name] for name in wrong} == dict.fromkeys(wrong, 1)
    assert strategy.counters["folded"] == 2


def test_a_second_reply_and_one_of_another_round_are_not_folded() -> None:
    strategy = StreamingFedAvg(**quiet())
    grid = Nodes({2: ([np.ones(3, np.float32)], 1), 3: ([np.ones(3, np.float32)], 1)})
    model = ArrayRecord([np.zeros(3, np.float32)])
    first, second = strategy.configure_train(4, model, ConfigRecord(), grid)
    for message in (first, second):
        name_message(message, "asked")
    reply = grid.reply(first)
    old = grid.reply(second)
    old.metadata.group_id = "3"
    strategy.aggregate_train(4, [reply, reply, old])
    counters = strategy.counters
    assert (counters["folded"], counters["duplicate"], counters["stale"]) == (1, 1, 1)


def test_too_few_good_updates_fail_the_round() -> None:
    updates: dict[int, Update | bytes] = {n: ([np.full(3, math.nan, np.float32)], 1) for n in range(2, 5)}
    updates[5] = ([np.ones(3, np.float32)], 1)
    with pytest.raises(EnvironmentFault, match="1 of 4 clients gave a usable update, the quorum is 50%"):
        run(StreamingFedAvg(**quiet(quorum=0.5)), updates, [np.zeros(3, np.float32)])


def test_spare_clients_are_asked_and_not_waited_for() -> None:
    updates: dict[int, Update | bytes] = {n: ([np.ones(3, np.float32)], 1) for n in range(2, 12)}
    strategy = StreamingFedAvg(**quiet(fraction_train=0.5, spare=0.4))
    grid = Nodes(updates)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3, np.float32)]), num_rounds=1)
    assert strategy.counters["asked"] == 7
    assert strategy.counters["folded"] == grid.taken == 5


def test_spare_clients_are_others_each_time() -> None:
    updates: dict[int, Update | bytes] = {n: ([np.ones(3, np.float32)], 1) for n in range(2, 42)}
    strategy = StreamingFedAvg(**quiet(fraction_train=0.1, spare=0.5))
    grid, model = Nodes(updates), ArrayRecord([np.zeros(3, np.float32)])
    random.seed(5)
    asked: set[int] = set()
    for number in range(60):
        messages = list(strategy.configure_train(number + 1, model, ConfigRecord(), grid))
        spare = [message.metadata.dst_node_id for message in messages[4:]]
        assert len(set(spare)) == 2
        asked |= set(spare)
    assert len(asked) > 30, "the first of the list are asked no more often than the last"


def test_two_levels_wait_for_no_spare_client_either() -> None:
    updates: dict[int, Update | bytes] = {n: ([np.full(3, float(n), "f4")], 1) for n in range(2, 12)}
    strategy = TwoLevelFedAvg(lambda node: f"site-{node % 3}", **quiet(fraction_train=0.5, spare=0.4))
    grid = Nodes(updates)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3, np.float32)]), num_rounds=1)
    assert strategy.counters["asked"] == 7
    assert strategy.counters["folded"] == grid.taken == 5
    assert 2 <= result.arrays["0"].numpy()[0] <= 11


def test_fedprox_tells_its_clients_as_flowers_does() -> None:
    updates: dict[int, Update | bytes] = {2: ([np.ones(3, np.float32)], 1)}
    told = []
    for strategy in (StreamingFedProx(0.25, **quiet()), FedProx(proximal_mu=0.25, **quiet())):
        grid = Nodes(updates)
        strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3, np.float32)]), num_rounds=1)
        told.append(dict(grid.configs[0]))
    assert told[0] == told[1]
    assert told[0]["proximal-mu"] == 0.25


def test_two_levels_weighed_by_samples_are_one_level_and_a_bound_holds_a_loud_site() -> None:
    rng = np.random.default_rng(3)
    updates: dict[int, Update | bytes] = {n: ([rng.normal(size=4).astype("f4")], 10 * n) for n in range(2, 9)}
    model = [np.zeros(4, np.float32)]
    flat = run(StreamingFedAvg(**quiet()), updates, model)
    two = run(TwoLevelFedAvg(lambda node: f"site-{node % 3}", **quiet()), updates, model)
    np.testing.assert_allclose(two["0"].numpy(), flat["0"].numpy(), rtol=1e-5, atol=1e-6)
    loud: dict[int, Update | bytes] = {2: ([np.zeros(1, "f4")], 1_000_000), 3: ([np.ones(1, "f4")], 100)}
    bounded = TwoLevelFedAvg(str, site_weight_max=100, **quiet())
    np.testing.assert_allclose(run(bounded, loud, [np.zeros(1, np.float32)])["0"].numpy(), [0.5])


def test_asynchronous_models_weigh_stale_updates_less() -> None:
    strategy = BufferedAsync(buffer=2, **quiet())
    grid = Nodes({2: ([np.ones(1, "f4")], 1), 3: ([np.zeros(1, "f4")], 1)})
    model = ArrayRecord([np.zeros(1, np.float32)])
    strategy.expect(model)
    strategy._begin(0, model)
    fresh, old = (Message(model_message(node, model), node, "train", group_id="1") for node in (2, 3))
    for message in (fresh, old):
        name_message(message, "asked")
    strategy._begin(3, model)
    assert strategy.take(grid.reply(fresh), began=3, version=3)
    assert strategy.take(grid.reply(old), began=0, version=3)
    (value,) = strategy._advance(4, model)["0"].numpy()
    assert value == pytest.approx(1 / (1 + 1 / math.sqrt(4)))
    assert not strategy.take(grid.reply(old), began=-9, version=4)
    assert strategy.counters["stale"] == 1


def model_message(node: int, model: ArrayRecord) -> RecordDict:
    return RecordDict({"arrays": model, "config": ConfigRecord({"node": node})})


def test_asynchronous_averaging_reaches_what_all_clients_want() -> None:
    updates: dict[int, Update | bytes] = {n: ([np.full(2, 4.0, "f4")], 1) for n in range(2, 6)}
    strategy = BufferedAsync(buffer=3, **quiet())
    model = ArrayRecord([np.zeros(2, np.float32)])
    record = strategy.run_async(Nodes(updates), model, 5, wait=lambda _: None, waits_max=3)
    np.testing.assert_allclose(record["0"].numpy(), 4.0)
    silent = Nodes({})
    with pytest.raises(EnvironmentFault, match="no client has sent"):
        strategy.run_async(silent, model, 1, wait=lambda _: None, waits_max=3)


@pytest.mark.parametrize(("scheme", "rate", "rounds"), [("int8", 0.5, 30), ("int4", 0.5, 40), ("topk", 0.05, 150)])
def test_compressed_updates_average_to_what_the_clients_meant(scheme: str, rate: float, rounds: int) -> None:
    """Through the mod and the wire, round after round; what a round loses the next ones bring.

    What waits makes error feedback a delayed loop: `topk` of a tenth swings up at a rate of 0.5 (docs/log.md).
    """
    take_identity(1)
    wanted = np.random.default_rng(2).normal(size=(6, 40)).astype(np.float32)
    client = ClientApp(mods=[compressing(scheme)])

    @client.train()
    def train(message: Message, context: Context) -> Message:
        (weights,) = message.content["arrays"].to_numpy_ndarrays()
        return Message(content_of(([weights + rate * (wanted - weights)], 10)), reply_to=message)

    contexts = {
        node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}) for node in (2, 3)
    }

    class Compressing(Nodes):
        def reply(self, message: Message) -> Message:
            node = message.metadata.dst_node_id
            return message_from_bytes(message_to_bytes(client(message, contexts[node])))

    strategy = StreamingFedAvg(**quiet())
    grid = Compressing({2: b"", 3: b""})
    model = ArrayRecord([np.zeros_like(wanted)])
    result = strategy.start(grid=grid, initial_arrays=model, num_rounds=rounds, timeout=5)
    assert strategy.counters["folded"] == 2 * rounds
    np.testing.assert_allclose(result.arrays["0"].numpy(), wanted, atol=0.05)


def test_a_compressed_update_that_does_not_fit_is_counted() -> None:
    strategy = StreamingFedAvg(**quiet())
    strategy.expect(ArrayRecord([np.zeros((2, 3), np.float32)]))
    grid = Nodes({2: b""})
    message = Message(model_message(2, ArrayRecord([np.zeros(1)])), 2, "train", group_id="1")
    name_message(message, "asked")
    for shape, kind in (((3, 2), "shape"), ((2, 3), "malformed")):
        array = Array(dtype="float32", shape=shape, stype="headframe.int8", data=b"no frame")
        content = RecordDict({"arrays": ArrayRecord({"0": array}), "metrics": MetricRecord({"num-examples": 1})})
        assert not strategy.fold(Message(content, reply_to=message), strategy.empty_mean(), MeanMetrics("num-examples"))
        assert strategy.counters[kind] == 1
    assert grid.updates
