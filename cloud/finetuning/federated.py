"""The adapter trained where the pictures are: a Flower client for a site that has torch, and what its server needs.

For a server at a mine, not for a gateway. What travels is scale and shift of every batch-norm, 170 KB for the default
backbone, folded by any strategy for weight updates (`cloud.federation.averaging`). Each client's softmax head stays
with it: sites see different classes, and heads are solved anew afterwards anyway. The result is a layer for
`headframe cloud finetune --weights`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cloud.finetuning.examples import Example
from cloud.finetuning.graph import Network
from cloud.finetuning.tuning import Recipe, State, Tuning
from common.errors import WireError
from common.flower import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

ROUND: Final = "server-round"
"""Key that Flower's strategies put into the config of a train message: 1, 2, …"""


def adapter_arrays(layer: bytes, recipe: Recipe) -> ArrayRecord:
    """What a strategy begins with: the trained weights of the running backbone."""
    return _record(Network(layer, recipe.depth))


def layer_with(layer: bytes, recipe: Recipe, arrays: ArrayRecord) -> bytes:
    """The backbone's file with what the rounds came to.

    Raises:
        WireError: arrays of another backbone or depth.
    """
    network = Network(layer, recipe.depth)
    _set(network, arrays)
    return network.layer()


def make_adapter_app(path: Path, examples: Sequence[Example], recipe: Recipe) -> Callable[[Message, Context], Message]:
    """A Flower ClientApp that trains one epoch on its own pictures in each round.

    Args:
        path: the backbone that runs, the same at every client.
        recipe: the same everywhere; its epochs are the rounds over which the rate falls.

    Raises:
        OperatorError: fewer than two classes here: such a client is not asked.
    """
    from flwr.clientapp import ClientApp

    tuning, app = Tuning(path, examples, recipe), ClientApp()
    state: list[State] = []  # made at the first round: the teacher looks at every picture

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        del context
        if not state:
            state.append(tuning.begin())
        (arrays,) = message.content.array_records.values()
        _set(state[0].network, arrays)
        loss = tuning.epoch(_round_of(message.content), state[0])
        metrics = MetricRecord({"num-examples": len(examples), "loss": loss})
        return Message(RecordDict({"arrays": _record(state[0].network), "metrics": metrics}), reply_to=message)

    called: Callable[[Message, Context], Message] = app
    return called


def _record(network: Network) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in network.values().items()})


def _set(network: Network, arrays: ArrayRecord) -> None:
    network.take({name: array.numpy() for name, array in arrays.items()})


def _round_of(content: RecordDict) -> int:
    """Rounds before this one."""
    configs: list[ConfigRecord] = list(content.config_records.values())
    found = configs[0].get(ROUND) if configs else None
    if not isinstance(found, int) or found < 1:
        raise WireError(f"a train message without {ROUND!r} in its config")
    return found - 1
