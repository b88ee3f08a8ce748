"""The records of a round: what was packed is unpacked, and what cannot be true is refused."""

import numpy as np
import pytest

from common.contribution import Request, pack_reply, pack_request, unpack_reply, unpack_request
from common.errors import WireError
from common.flower import Array, ArrayRecord, ConfigRecord, RecordDict
from common.statistics import Statistics

CLASSES = ("normal", "tear")
REQUEST = Request("b" * 64, {"belt": CLASSES}, {})
IDS = [bytes([number]) * 16 for number in range(4)]


def part(count: int = 4) -> Statistics:
    rng = np.random.default_rng(0)
    return Statistics.of(CLASSES, rng.normal(size=(count, 5)), ["normal", "tear"] * (count // 2))


def test_a_request_comes_back_with_its_labels() -> None:
    labels = {"belt": {IDS[0]: "tear", IDS[1]: ""}}
    request = unpack_request(pack_request("b" * 64, {"belt": CLASSES}, labels))
    assert request == Request("b" * 64, {"belt": CLASSES}, {"belt": {IDS[0].hex(): "tear", IDS[1].hex(): ""}})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"request": ConfigRecord({"request": b"\xc1"})}),
        RecordDict({"request": ConfigRecord({"request": "text"})}),
        RecordDict({"request": ConfigRecord({"other": b""})}),
    ],
)
def test_what_is_no_request_is_refused(content: RecordDict) -> None:
    with pytest.raises(WireError):
        unpack_request(content)


def test_a_reply_comes_back_to_the_digit() -> None:
    packed, covered = unpack_reply(pack_reply({"belt": (part(), IDS)}), REQUEST)["belt"]
    statistics = packed.statistics()
    for field in ("counts", "sums", "moment"):
        np.testing.assert_array_equal(getattr(statistics, field), getattr(part(), field))
    assert covered == set(IDS)
    assert unpack_reply(pack_reply({}), REQUEST) == {}


def broken(**changes: np.ndarray) -> RecordDict:
    content = pack_reply({"belt": (part(), IDS)})
    arrays = {name: array.numpy() for name, array in content["statistics/belt"].items()} | changes
    content["statistics/belt"] = ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in arrays.items()})
    return content


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": np.array([-2.0, 6.0])},
        {"counts": np.array([1.5, 2.5])},
        {"counts": np.array([3.0, 2.0])},  # covers four ids
        {"sums": np.full((2, 5), np.nan)},
        {"sums": np.full((2, 5), 1e6)},  # larger than the moment allows
        {"sums": np.zeros((2, 4))},
        {"moment": np.zeros(14)},
        {"moment": np.full(15, np.inf)},
        {"moment": np.zeros((3, 5))},
    ],
)
def test_statistics_that_cannot_be_true_are_refused(changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(WireError):
        unpack_reply(broken(**changes), REQUEST)


def test_a_scenario_that_was_not_asked_for_and_ids_that_are_not_whole_are_refused() -> None:
    with pytest.raises(WireError, match="not asked"):
        unpack_reply(pack_reply({"helmet": (part(), IDS)}), REQUEST)
    content = pack_reply({"belt": (part(), IDS)})
    content["covered"] = ConfigRecord({"belt": b"x" * 63, "classes/belt": list(CLASSES)})
    with pytest.raises(WireError, match="whole"):
        unpack_reply(content, REQUEST)
    content["covered"] = ConfigRecord({})
    with pytest.raises(WireError):
        unpack_reply(content, REQUEST)
