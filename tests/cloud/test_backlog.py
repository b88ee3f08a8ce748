"""The backlog: bounded in samples and bytes, and nothing waits longer than it must."""

import threading
import time
from collections.abc import Callable

from cloud.backlog import Backlog, bytes_of
from common.messages import Sample

MakeSample = Callable[..., Sample]


def test_it_is_bounded_in_samples_and_in_bytes(make_sample: MakeSample) -> None:
    by_count, by_bytes = Backlog(3, 10**9), Backlog(100, 3 * bytes_of(make_sample()) // 2)
    for backlog, bound in ((by_count, 3), (by_bytes, 2)):
        taken = [backlog.put(make_sample(number), 0) for number in range(5)]
        assert taken == [True] * bound + [False] * (5 - bound)
        assert not backlog.has_room()
        assert backlog.fullness >= 1
        assert len(backlog.take(10, 10**9, 1, 0.01)) == bound
        assert backlog.has_room()
        assert backlog.fullness == 0


def test_one_larger_than_the_bound_passes_alone(make_sample: MakeSample) -> None:
    backlog = Backlog(10, 1000)
    assert backlog.put(make_sample(size=(200, 300)), 0)
    assert not backlog.put(make_sample(1), 0)
    assert len(backlog.take(10, 10, 1, 0)) == 1


def test_who_waits_for_room_gets_it(make_sample: MakeSample) -> None:
    backlog = Backlog(1, 10**9)
    backlog.put(make_sample(), 0)
    taker = threading.Timer(0.1, lambda: backlog.take(1, 10**9, 1, 0))
    taker.start()
    assert backlog.put(make_sample(1), 10)
    taker.join()


def test_a_batch_waits_for_others_but_not_for_long_and_not_when_full(make_sample: MakeSample) -> None:
    backlog = Backlog(4, 10**9)
    assert backlog.take(10, 10**9, 0.05, 5) == []
    backlog.put(make_sample(), 0)
    began_s = time.monotonic()
    assert len(backlog.take(10, 10**9, 1, 0.1)) == 1
    assert 0.05 < time.monotonic() - began_s < 5
    for number in range(4):
        backlog.put(make_sample(number), 0)
    began_s = time.monotonic()
    assert len(backlog.take(3, 10**9, 1, 30)) == 3, "a full batch goes at once"
    assert time.monotonic() - began_s < 20
