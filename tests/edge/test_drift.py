"""A camera notices that its picture has changed, within a hundred looks, and leaves ordinary ones in peace."""

import numpy as np

from edge.drift import REFERENCE, STREAM, CameraDrift, DriftWatch, Usual

DIMENSION = 80
MINUTE_NS = 60 * 10**9


def looks(rng: np.random.Generator, count: int, shift: float = 0.0) -> np.ndarray:
    """Correlated features of long tails, as embeddings have; a shift of so many deviations in a third of them."""
    mixing = np.random.default_rng(0).normal(size=(DIMENSION, DIMENSION)) * np.geomspace(1, 0.05, DIMENSION)
    white = rng.standard_t(6, size=(count, DIMENSION)) / np.sqrt(1.5)
    white[:, ::3] += shift
    return white @ mixing.T + 3.0


def alarm_at(camera: CameraDrift, stream: np.ndarray) -> int | None:
    camera.restart()
    return next((n for n, look in enumerate(stream, start=1) if camera.observe(look) >= 1.0), None)


def test_a_shift_is_seen_within_a_hundred_looks_and_ordinary_ones_are_not() -> None:
    rng = np.random.default_rng(1)
    camera = CameraDrift(Usual.of(looks(rng, REFERENCE)))
    delays = [alarm_at(camera, looks(rng, STREAM, shift=0.35)) for _ in range(20)]
    assert all(delay is not None and delay <= STREAM for delay in delays), delays
    false_alarms = sum(alarm_at(camera, looks(rng, STREAM)) is not None for _ in range(300))
    assert false_alarms <= 3


def test_the_usual_is_learnt_first_then_the_level_rises_and_falls_again() -> None:
    rng = np.random.default_rng(2)
    watch = DriftWatch(every_s=60)
    watch.adopt("backbone")
    clock = iter(range(0, 10_000 * MINUTE_NS, MINUTE_NS))
    for look in looks(rng, REFERENCE):
        watch.tell("belt", next(clock), look)
        assert watch.level("belt") == 0
    for look in looks(rng, 60, shift=1.5):
        watch.tell("belt", next(clock), look)
    assert watch.level("belt") > 1
    for look in looks(rng, 400):
        watch.tell("belt", next(clock), look)
    assert watch.level("belt") < 1, "the dust was wiped off"
    assert watch.level("other") == 0
    watch.adopt("backbone")
    assert watch.level("belt") > 0
    watch.adopt("another")
    assert watch.level("belt") == 0


def test_neighbouring_looks_and_numbers_that_are_none_do_not_count() -> None:
    rng = np.random.default_rng(3)
    watch = DriftWatch(every_s=60)
    watch.tell("belt", 0, np.full(DIMENSION, np.nan))
    for number, look in enumerate(looks(rng, REFERENCE)):
        watch.tell("belt", number * MINUTE_NS, look)
        watch.tell("belt", number * MINUTE_NS + MINUTE_NS // 2, np.full(DIMENSION, 1e6))
    for number, look in enumerate(looks(rng, 30), start=REFERENCE):
        watch.tell("belt", number * MINUTE_NS, look)
    assert 0 < watch.level("belt") < 1


def test_a_picture_that_stands_still_has_no_drift() -> None:
    camera = CameraDrift(Usual.of(np.full((REFERENCE, DIMENSION), 2.0)))
    assert alarm_at(camera, np.full((STREAM, DIMENSION), 2.0)) is None
