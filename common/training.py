"""The records of a round of weight updates: what clients are told beside the weights. Both sides use this.

A train message of Flower's strategies for weights has an ArrayRecord and a ConfigRecord. The latter has Flower's own
keys (`server-round`, `proximal-mu`) and, as `task`, what is to be trained. A round of statistics is another matter
(`common.contribution`).
"""

from typing import Final

import msgspec

from common.compression import SCHEMES
from common.errors import WireError
from common.flower import ConfigRecord, RecordDict

TASK: Final = "task"
ROUND: Final = "server-round"
"""Key of Flower's strategies: 1, 2, …"""
PROXIMAL: Final = "proximal-mu"
"""Key of Flower's FedProx."""
HEAD_RATE: Final = 5.0  # embeddings are taken at length 1: their gradients are small
STEPS_MAX: Final = 10_000  # of a client in a round; more is a mistake
BATCH_MAX: Final = 512  # pictures; more fill a box's memory


class HeadTask(msgspec.Struct, frozen=True, tag="head", kw_only=True):
    """A softmax head on frozen embeddings: `weight` (classes, d) and `bias` (classes,)."""

    backbone: str
    scenario: str
    classes: tuple[str, ...]
    steps: int = 20
    """Of gradient descent over all samples of a client, in a round."""
    rate: float = 0.0
    """0: `HEAD_RATE`."""
    compression: str = ""

    @property
    def rate_used(self) -> float:
        return self.rate or HEAD_RATE


class AdapterTask(msgspec.Struct, frozen=True, tag="adapter", kw_only=True):
    """Numbers of the backbone itself; the recipe of a fine-tune."""

    backbone: str
    depth: str
    rounds: int
    """In all: the rate falls over them."""
    before: int = 0
    """Rounds that were over when this run began: it goes on after a crash."""
    batch: int = 16
    rate: float = 0.0
    distillation: float = 0.1
    seed: int = 0
    compression: str = ""


Task = HeadTask | AdapterTask


def pack_task(task: Task) -> ConfigRecord:
    """The config of a run's train messages."""
    return ConfigRecord({TASK: msgspec.msgpack.encode(task)})


def read_task(content: RecordDict) -> Task | None:
    """What is to be trained; None: the message is of somebody else's strategy and says nothing of it.

    Raises:
        WireError: it cannot be read, or asks for what there is not.
    """
    data = next((record[TASK] for record in content.config_records.values() if TASK in record), None)
    if not isinstance(data, bytes):
        return None
    try:
        task: Task = msgspec.msgpack.decode(data, type=Task)
    except msgspec.DecodeError as error:
        raise WireError(f"not a task of a round: {error}") from error
    if task.compression not in ("", *SCHEMES):
        raise WireError(f"an update is to be compressed by {task.compression!r}: not known here")
    if isinstance(task, HeadTask) and not (len(set(task.classes)) >= 2 and 0 < task.steps <= STEPS_MAX):
        raise WireError(f"a head of {len(task.classes)} classes in {task.steps} steps cannot be trained")
    if isinstance(task, AdapterTask) and not (0 <= task.before < task.rounds and 0 < task.batch <= BATCH_MAX):
        raise WireError(f"{task.rounds} rounds of batches of {task.batch}, {task.before} over: not to be trained")
    return task


def round_of(content: RecordDict) -> int:
    """The number of the round, from 1.

    Raises:
        WireError: the message has none.
    """
    found = next((record[ROUND] for record in content.config_records.values() if ROUND in record), None)
    if not isinstance(found, int) or found < 1:
        raise WireError(f"a train message without {ROUND!r} in its config")
    return found


def proximal_of(content: RecordDict) -> float:
    """How hard FedProx says to hold on to the model; 0 by other strategies."""
    found = next((record[PROXIMAL] for record in content.config_records.values() if PROXIMAL in record), 0.0)
    return float(found) if isinstance(found, float | int) else 0.0
