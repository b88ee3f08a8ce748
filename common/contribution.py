"""The records of a federation round: what the centre asks a gateway, and what it answers. Both sides use this.

Request (train): a ConfigRecord `request` with the backbone hash, scenarios, classes, the labels of that gateway's own
samples, and how many bytes the statistics of a scenario may have. Reply: per scenario an ArrayRecord
`statistics/<scenario>` in one of the forms of `common.packing`, a ConfigRecord `covered` with the ids counted, and a
MetricRecord `metrics` with the number of samples and, per scenario, the share of the variance that was left to the
diagonal (`lost/<scenario>`).
"""

from collections.abc import Mapping, Sequence

import msgspec

from common.errors import WireError
from common.flower import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from common.ids import SAMPLE_ID_BYTES
from common.packing import Packed, Triangle, read_packed
from common.statistics import Statistics

Labels = Mapping[str, Mapping[bytes, str]]
"""scenario -> sample id -> label"""


class Request(msgspec.Struct, frozen=True):
    """What a gateway is asked."""

    backbone: str
    scenarios: dict[str, tuple[str, ...]]
    """scenario -> classes, in the order of the statistics."""
    labels: dict[str, dict[str, str]]
    """scenario -> sample id in hex -> label: what people said about this gateway's own samples."""
    bytes_max: int = 0
    """Bound on the arrays of a scenario's statistics; 0 is none, and then nothing is lost."""
    class_samples_min: int = 0
    """A class of which a gateway has fewer is not told of."""


def pack_request(
    backbone: str,
    scenarios: Mapping[str, Sequence[str]],
    labels: Labels,
    bytes_max: int = 0,
    class_samples_min: int = 0,
) -> RecordDict:
    """The content of a train message."""
    request = Request(
        backbone,
        {name: tuple(classes) for name, classes in scenarios.items()},
        {name: {key.hex(): label for key, label in given.items()} for name, given in labels.items()},
        bytes_max,
        class_samples_min,
    )
    return RecordDict({"request": ConfigRecord({"request": msgspec.msgpack.encode(request)})})


def is_request(content: RecordDict) -> bool:
    """Whether a train message asks for statistics: others ask for weights (`common.training`)."""
    return "request" in content


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


def pack_reply(
    parts: Mapping[str, tuple[Packed | Statistics, Sequence[bytes]]], lost: Mapping[str, float] | None = None
) -> RecordDict:
    """The content of a reply: statistics and covered ids per scenario.

    Args:
        lost: per scenario the share of the variance that packing left to the diagonal.
    """
    content = RecordDict()
    covered: dict[str, bytes] = {}
    classes: dict[str, list[str]] = {}
    for scenario, (statistics, names) in parts.items():
        packed = Triangle.of(statistics) if isinstance(statistics, Statistics) else statistics
        arrays = {name: Array(array) for name, array in packed.arrays().items()}
        content[f"statistics/{scenario}"] = ArrayRecord(arrays)
        covered[scenario] = b"".join(names)
        classes[f"classes/{scenario}"] = list(packed.classes)
    content["covered"] = ConfigRecord({**covered, **classes})
    losses = {f"lost/{scenario}": float(share) for scenario, share in (lost or {}).items()}
    content["metrics"] = MetricRecord({"samples": sum(len(names) for _, names in parts.values()), **losses})
    return content


def unpack_reply(content: RecordDict, request: Request) -> dict[str, tuple[Packed, set[bytes]]]:
    """Statistics, still packed, and covered ids per scenario, checked.

    Raises:
        WireError: a scenario that was not asked for, shapes or ids that do not fit, values that are not finite or not
            possible (negative counts, a moment whose trace is smaller than its sums allow).
    """
    found: dict[str, tuple[Packed, set[bytes]]] = {}
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
            statistics = read_packed(classes, arrays)
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
