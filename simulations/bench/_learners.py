"""What `bench learning` compares: our closed form as it travels, Flower's gradient strategies, and the joint bound.

Every learner sees the same frozen embeddings. The gradient learners get what flatters them: features standardised with
the statistics of all sites' data, which no single one of them could know.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from flwr.supercore.run import Run
from numpy.typing import NDArray

from cloud.learning.heads import HeadWeights, solve_shared
from common.contribution import pack_reply, pack_request, unpack_reply, unpack_request
from common.flower import (
    SERVER_NODE_ID,
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    name_message,
    take_identity,
)
from common.packing import pack
from common.statistics import Statistics

Floats = NDArray[np.floating]
Labels = NDArray[np.str_]
SCENARIO = "bench"
RULES_SHRINKAGE, RULES_DIMENSIONS = 0.3, 512  # the defaults of cloud.settings.LearningSettings
PENALTIES = (0.001, 0.01, 0.1, 1.0)
LOCAL_STEPS, LOCAL_BATCH, LOCAL_RATE = 20, 32, 0.02
PROXIMAL_MU = 0.1
HARD_BELOW = 0.5  # Sedna's ThresholdFilter: a sample is hard when the top probability is lower


@dataclass(frozen=True, slots=True)
class Linear:
    """A softmax head on standardised features: weights (d + 1, c), the last row is the bias."""

    classes: tuple[str, ...]
    mean: Floats
    scale: Floats
    weights: Floats

    def features(self, embeddings: Floats) -> Floats:
        """(n, d + 1)"""
        z = (np.asarray(embeddings, np.float32) - self.mean) / self.scale
        return np.concatenate([z, np.ones((len(z), 1), np.float32)], axis=1)

    def predict(self, embeddings: Floats) -> list[str]:
        return [self.classes[i] for i in (self.features(embeddings) @ self.weights).argmax(axis=1)]

    def probabilities(self, embeddings: Floats) -> Floats:
        return softmax(self.features(embeddings) @ self.weights)


def softmax(logits: Floats) -> Floats:
    """Rows that sum to one."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = odds / odds.sum(axis=1, keepdims=True)
    return shares


def untrained(classes: Sequence[str], embeddings: Floats) -> Linear:
    """A head of zeros, standardising by these embeddings."""
    mean, scale = embeddings.mean(axis=0), embeddings.std(axis=0) + 1e-6
    return Linear(tuple(classes), mean, scale, np.zeros((embeddings.shape[1] + 1, len(classes)), np.float32))


# --- the joint bound ------------------------------------------------------------------------------


def fit_joint(classes: Sequence[str], embeddings: Floats, labels: Labels, penalty: float) -> Linear:
    """Logistic regression on everything in one place, by L-BFGS; `penalty` is the inverse of the ridge per sample."""
    head = untrained(classes, embeddings)
    x = torch.from_numpy(head.features(embeddings).astype(np.float32))
    truth = torch.tensor([head.classes.index(str(name)) for name in labels])
    weights = torch.zeros((x.shape[1], len(head.classes)), requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=80, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        ridge = (weights[:-1] ** 2).sum() / (2 * penalty * len(truth))
        loss = torch.nn.functional.cross_entropy(x @ weights, truth) + ridge
        loss.backward()
        return loss

    optimiser.step(closure)
    return Linear(head.classes, head.mean, head.scale, weights.detach().numpy())


def choose_penalty(
    classes: Sequence[str],
    embeddings: Floats,
    labels: Labels,
    groups: Labels,
    folds: int,
    penalties: Sequence[float] = PENALTIES,
) -> float:
    """The penalty with the best accuracy over `folds` folds, each with whole groups (scenes) held out."""
    names = np.random.default_rng(0).permutation(np.unique(groups))
    fold_of = {name: number % folds for number, name in enumerate(names)}
    fold = np.array([fold_of[name] for name in groups])

    def right(penalty: float) -> int:
        count = 0
        for number in range(folds):
            held = fold == number
            head = fit_joint(classes, embeddings[~held], labels[~held], penalty)
            count += int((np.array(head.predict(embeddings[held])) == labels[held]).sum())
        return count

    return max(penalties, key=right)


# --- ours -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What one analytic round cost and brought: per site its statistics as the centre unpacked them."""

    parts: dict[str, Statistics]
    bytes_per_site: float
    bytes_largest: int
    seconds: float


def contribute(
    classes: Sequence[str],
    embeddings: Floats,
    labels: Labels,
    sites: Mapping[str, NDArray[np.integer]],
    bytes_max: int = 0,
) -> Uploaded:
    """Every site's statistics through the product's own records and Flower's message bytes, and back."""
    take_identity(SERVER_NODE_ID)
    content = pack_request("bench", {SCENARIO: tuple(classes)}, {})
    request = unpack_request(content)
    began_s, sizes, parts = time.perf_counter(), [0], {}
    for number, (site, rows) in enumerate(sites.items(), start=2):
        asked = Message(content, number, "train")
        name_message(asked, f"ask-{number}")
        packed, _ = pack(classes, embeddings[rows], [str(name) for name in labels[rows]], bytes_max)
        ids = [int(row).to_bytes(16, "big") for row in rows]
        data = message_to_bytes(Message(pack_reply({SCENARIO: (packed, ids)}), reply_to=asked))
        sizes.append(len(data))
        parts[site] = unpack_reply(message_from_bytes(data).content, request)[SCENARIO][0].statistics()
    return Uploaded(parts, sum(sizes) / max(len(sites), 1), max(sizes), time.perf_counter() - began_s)


def add_up(parts: Iterable[Statistics]) -> Statistics:
    """The sum over sites."""
    total: Statistics | None = None
    for part in parts:
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no site contributed")
    return total


def solve(statistics: Statistics) -> HeadWeights:
    """The shared head, as a training run solves it with default settings."""
    return solve_shared(statistics, RULES_SHRINKAGE, RULES_DIMENSIONS)


# --- Flower's strategies --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Local:
    """A site's data of the current phase."""

    features: Floats
    truth: NDArray[np.integer]


class LocalGrid(Grid):  # type: ignore[misc]  # flwr is not typed for us
    """A Grid whose clients are functions in this process: Flower's strategies run on it as they are."""

    def __init__(self, clients: Mapping[int, Local], seed: int) -> None:
        self._clients = clients
        self._rng = np.random.default_rng(seed)
        self.bytes_up = 0
        take_identity(SERVER_NODE_ID)

    def set_run(self, run: Run) -> None:
        del run

    @property
    def run(self) -> Run:
        raise RuntimeError("this grid has no SuperLink run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        del messages
        raise RuntimeError("only send_and_receive is used here")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        del message_ids
        raise RuntimeError("only send_and_receive is used here")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Each client trains at once, and answers."""
        del timeout
        for number, message in enumerate(messages):
            name_message(message, f"m-{number}")
            reply = self._train(message)
            self.bytes_up += sum(array.numpy().nbytes for array in reply.content["arrays"].values())
            yield reply

    def _train(self, message: Message) -> Message:
        """Mini-batch SGD on the client's own data, with FedProx's proximal term where the strategy asks for it."""
        own = self._clients[message.metadata.dst_node_id]
        start = message.content["arrays"]["weights"].numpy()
        mu = float(message.content["config"].get("proximal-mu", 0.0))
        weights = sgd(start, own.features, own.truth, self._rng, LOCAL_STEPS, mu)
        content = RecordDict(
            {
                "arrays": ArrayRecord({"weights": Array(weights)}),
                "metrics": MetricRecord({"num-examples": len(own.truth)}),
            }
        )
        return Message(content, reply_to=message)


def sgd(
    start: Floats, features: Floats, truth: NDArray[np.integer], rng: np.random.Generator, steps: int, mu: float = 0.0
) -> Floats:
    """Cross-entropy steps from `start` (d + 1, c)."""
    weights = start.copy()
    one_hot = np.eye(start.shape[1], dtype=np.float32)[truth]
    for _ in range(steps):
        rows = rng.integers(0, len(truth), min(LOCAL_BATCH, len(truth)))
        x = features[rows]
        gradient = x.T @ (softmax(x @ weights) - one_hot[rows]) / len(rows) + mu * (weights - start)
        weights -= (LOCAL_RATE * gradient).astype(np.float32)
    return weights


def run_flower(
    name: str, head: Linear, clients: Mapping[int, Local], rounds: int, fraction: float, seed: int
) -> tuple[Linear, int]:
    """One phase of Flower's FedAvg or FedProx from `head`. Returns the new head and the bytes sent up."""
    common = {"fraction_train": fraction, "fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
    logging.getLogger("flwr").setLevel(logging.ERROR)
    strategy = FedProx(proximal_mu=PROXIMAL_MU, **common) if name == "FedProx" else FedAvg(**common)
    grid = LocalGrid(clients, seed)
    arrays = ArrayRecord({"weights": Array(head.weights)})
    result = strategy.start(grid, initial_arrays=arrays, num_rounds=rounds, train_config=ConfigRecord())
    weights = result.arrays["weights"].numpy()
    return Linear(head.classes, head.mean, head.scale, weights), grid.bytes_up


def fine_tune_hard(
    head: Linear, embeddings: Floats, labels: Labels, seed: int, steps: int
) -> tuple[Linear, NDArray[np.bool_]]:
    """Sedna's and Ianvs's incremental loop: fine-tune on the new samples that the head finds hard, and on nothing else.

    Returns:
        The head, and which samples (n,) were hard and so were uploaded.
    """
    hard: NDArray[np.bool_] = head.probabilities(embeddings).max(axis=1) < HARD_BELOW
    if not hard.any():
        return head, hard
    truth = np.array([head.classes.index(str(name)) for name in labels[hard]])
    weights = sgd(head.weights, head.features(embeddings[hard]), truth, np.random.default_rng(seed), steps)
    return Linear(head.classes, head.mean, head.scale, weights), hard
