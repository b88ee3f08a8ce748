"""The records of a federation round: what the centre asks a gateway, and what it answers. Both sides use this.

Request (train): a ConfigRecord `request` with the backbone hash, scenarios, classes, and the labels of that gateway's
own samples. Reply: per scenario an ArrayRecord `statistics/<scenario>` (counts, sums, moment as upper triangle, all
float64, so that the federated sum equals the centralised one), a ConfigRecord `covered` with the ids counted, and a
MetricRecord `metrics`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.errors import WireError
from common.flower import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from common.ids import SAMPLE_ID_BYTES
from common.statistics import Statistics

DIMENSION_MAX = 8192
CLASSES_MAX = 1000
Labels = Mapping[str, Mapping[bytes, str]]
"""scenario -> sample id -> label"""


class Request(msgspec.Struct, frozen=True):
    """What a gateway is asked."""

    backbone: str
    scenarios: dict[str, tuple[str, ...]]
    """scenario -> classes, in the order of the statistics."""
    labels: dict[str, dict[str, str]]
    """scenario -> sample id in hex -> label: what people said about this gateway's own samples."""


def pack_request(backbone: str, scenarios: Mapping[str, Sequence[str]], labels: Labels) -> RecordDict:
    """The content of a train message."""
    request = Request(
        backbone,
        {name: tuple(classes) for name, classes in scenarios.items()},
        {name: {key.hex(): label for key, label in given.items()} for name, given in labels.items()},
    )
    return RecordDict({"request": ConfigRecord({"request": msgspec.msgpack.encode(request)})})


def unpack_request(content: RecordDict) -> Request:
    """Raises:
    WireError: not a request.
    """
    try:
        data = content["request"]["request"]
        if not isinstance(data, bytes):
            raise WireError("the request of the round is not bytes")
        return msgspec.msgpack.decode(data, type=Request)
    except (KeyError, TypeError, msgspec.DecodeError) as error:
        raise WireError(f"not a request of a round: {error}") from error


def pack_reply(parts: Mapping[str, tuple[Statistics, Sequence[bytes]]]) -> RecordDict:
    """The content of a reply: statistics and covered ids per scenario."""
    content = RecordDict()
    covered: dict[str, bytes] = {}
    classes: dict[str, list[str]] = {}
    for scenario, (statistics, names) in parts.items():
        content[f"statistics/{scenario}"] = ArrayRecord(
            {
                "counts": Array(statistics.counts),
                "sums": Array(statistics.sums),
                "moment": Array(statistics.moment.ravel()[_upper(statistics.dimension)]),
            }
        )
        covered[scenario] = b"".join(names)
        classes[f"classes/{scenario}"] = list(statistics.classes)
    content["covered"] = ConfigRecord({**covered, **classes})
    content["metrics"] = MetricRecord({"samples": sum(len(names) for _, names in parts.values())})
    return content


def unpack_reply(content: RecordDict, request: Request) -> dict[str, tuple[Statistics, set[bytes]]]:
    """Statistics and covered ids per scenario, checked.

    Raises:
        WireError: a scenario that was not asked for, shapes or ids that do not fit, values that are not finite or not
            possible (negative counts, a moment whose trace is smaller than its sums allow).
    """
    found: dict[str, tuple[Statistics, set[bytes]]] = {}
    try:
        ids = content["covered"]
        for key in content:
            if not key.startswith("statistics/"):
                continue
            scenario = key.removeprefix("statistics/")
            if scenario not in request.scenarios:
                raise WireError(f"statistics of scenario {scenario!r}, which was not asked for")
            arrays = {name: array.numpy() for name, array in content[key].items()}
            classes = tuple(str(label) for label in ids[f"classes/{scenario}"])
            statistics = _statistics(classes, arrays)
            names = bytes(ids[scenario])
            if len(names) % SAMPLE_ID_BYTES:
                raise WireError("covered ids are not whole")
            covered = {names[i : i + SAMPLE_ID_BYTES] for i in range(0, len(names), SAMPLE_ID_BYTES)}
            if len(covered) != int(statistics.total):
                raise WireError(f"statistics of {statistics.total:g} samples cover {len(covered)} ids")
            found[scenario] = statistics.over(request.scenarios[scenario]), covered
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"not a reply of a round: {error!r}") from error
    return found


@lru_cache(maxsize=2)  # 6.5 MB at 1280 dimensions, and most of the time that packing took
def _upper(dimension: int) -> NDArray[np.integer]:
    """Flat places of the upper triangle, row by row."""
    rows, columns = np.triu_indices(dimension)
    places: NDArray[np.integer] = rows * dimension + columns
    return places


def _statistics(classes: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> Statistics:
    if len(classes) > CLASSES_MAX:
        raise WireError(f"{len(classes)} classes are over the bound of {CLASSES_MAX}")
    counts, sums, packed = (np.asarray(arrays[name], dtype=np.float64) for name in ("counts", "sums", "moment"))
    dimension = int((np.sqrt(8 * packed.size + 1) - 1) / 2)
    if packed.ndim != 1 or dimension > DIMENSION_MAX or dimension * (dimension + 1) // 2 != packed.size:
        raise WireError(f"a moment of {packed.size} values is no triangle within the bound")
    moment = np.zeros((dimension, dimension))
    moment.ravel()[_upper(dimension)] = packed
    moment += np.triu(moment, 1).T
    statistics = Statistics(classes, counts, sums, moment)
    if (counts < 0).any() or (counts != np.round(counts)).any():
        raise WireError("counts must be whole and not negative")
    power = np.divide((sums**2).sum(axis=1), counts, out=np.zeros(len(counts)), where=counts > 0).sum()
    if np.trace(moment) < power * (1 - 1e-6) - 1e-6:
        raise WireError("the second moment is smaller than the sums allow")
    return statistics
