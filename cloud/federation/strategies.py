"""The strategies for weight updates by their names, as a run config or an option names them.

Ours fold replies as they come; Flower's own are taken as they are. What a strategy takes beside is given as JSON and
checked against its own parameters, so none of them has to be listed here.
"""

import inspect
import json
from collections.abc import Callable
from typing import Any, Final

from flwr.serverapp import strategy as flowers
from flwr.serverapp.strategy import Strategy

from cloud.federation.asynchronous import ANSWER_WITHIN_S, BufferedAsync
from cloud.federation.averaging import StreamingFedAvg, StreamingFedProx
from cloud.federation.hierarchy import TwoLevelFedAvg
from common.compression import SCHEMES
from common.errors import ConfigError

OURS: Final[dict[str, type[StreamingFedAvg]]] = {
    "fedavg": StreamingFedAvg,
    "fedprox": StreamingFedProx,
    "two-level": TwoLevelFedAvg,
    "async": BufferedAsync,
}
FLOWERS: Final = {
    name.lower(): getattr(flowers, name)
    for name in (
        "Bulyan",
        "FedAdagrad",
        "FedAdam",
        "FedAvgM",
        "FedMedian",
        "FedTrimmedAvg",
        "FedYogi",
        "Krum",
        "MultiKrum",
    )
}
"""Those for any model. FedXgb is for trees, QFedAvg wants clients that know of it, and the wrappers for differential
privacy take a strategy: from Python."""
NAMES: Final = (*OURS, *FLOWERS)
COMMON: Final = frozenset({"fraction_train", "weighted_by_key"})
"""Of FedAvg's own parameters, those that may be given; the others are given here, or hold functions."""
OF_ROUNDS: Final = frozenset({"fraction_train", "quorum", "spare"})
"""What means nothing where there are no rounds."""
BUFFER: Final = 2  # of `async`, where nothing is said: the smallest that averages


def make_strategy(
    name: str,
    arguments: str = "",
    *,
    nodes_min: int = 1,
    deadline_s: float = ANSWER_WITHIN_S,
    site_of: Callable[[int], str] = str,
) -> Strategy:
    """A strategy that asks for training only.

    Args:
        arguments: JSON object of what it takes beside, such as `{"proximal_mu": 0.1}`.
        nodes_min: with fewer online it does not begin.
        deadline_s: how long `async` waits for an answer, where the arguments do not say.
        site_of: node id -> site, for two levels; by default each node is its own.

    Raises:
        ConfigError: there is no such strategy, or it does not take this.
    """
    kind = OURS.get(name) or FLOWERS.get(name)
    if kind is None:
        raise ConfigError(f"there is no strategy {name!r}", f"There are {', '.join(NAMES)}.")
    known = _parameters(kind)
    given = _read(name, arguments)
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"{name} takes no {', '.join(unknown)}", f"It takes {', '.join(sorted(known))}.")
    if kind is TwoLevelFedAvg:
        given["site_of"] = site_of
    if kind is BufferedAsync:
        given = {"buffer": BUFFER, "answer_within_s": deadline_s, **given}
    nodes = {"min_train_nodes": nodes_min, "min_available_nodes": nodes_min, "min_evaluate_nodes": nodes_min}
    try:
        made: Strategy = kind(**{"fraction_evaluate": 0.0, **nodes, **given})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} does not take {arguments}: {error}", "Mend the arguments.") from error
    return made


def check_compression(name: str, compression: str) -> None:
    """Raises:
    ConfigError: there is no such compression, or this strategy does not open what it makes.
    """
    if compression and compression not in SCHEMES:
        raise ConfigError(f"there is no compression {compression!r}", f"There are {', '.join(SCHEMES)}.")
    if compression and name not in OURS:
        raise ConfigError(f"{name} does not open compressed updates", f"These do: {', '.join(OURS)}.")


def _parameters(kind: type) -> frozenset[str]:
    """What a strategy takes beside what every one takes."""
    common = set(inspect.signature(flowers.FedAvg.__init__).parameters)
    found: set[str] = set()
    for ancestor in kind.__mro__:
        if "__init__" in vars(ancestor) and ancestor is not object:
            parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
            found |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    known = frozenset(found - common - {"site_of", "selection_rule"}) | COMMON
    return known - OF_ROUNDS if issubclass(kind, BufferedAsync) else known


def _read(name: str, arguments: str) -> dict[str, Any]:
    try:
        given = json.loads(arguments or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"the arguments of {name} are no JSON: {error}", 'Such as {"fraction_train": 0.5}.'
        ) from error
    if not isinstance(given, dict):
        raise ConfigError(f"the arguments of {name} are no JSON object", 'Such as {"fraction_train": 0.5}.')
    return given
