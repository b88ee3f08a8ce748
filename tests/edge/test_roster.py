"""What fits into a gateway's budget, and who watches what."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from edge.roster import AGENT_BYTES, MB, WORKER_BYTES, Roster, deal_again, packet_bytes, plan, share_out, worker_count
from edge.settings import BudgetSettings, CameraSettings, EdgeSettings


def camera(name: str, priority: int = 0, **fields: object) -> CameraSettings:
    return CameraSettings(id=name, source="rtsp://main", priority=priority, **fields)


def gateway(*cameras: CameraSettings, workers: int | None = None, **budget: float) -> EdgeSettings:
    return EdgeSettings(
        gateway_id="gw-1",
        site_id="north",
        release_root=Path("root.json"),
        cameras=cameras,
        workers=workers,
        budget=BudgetSettings(**budget),
    )


def many(count: int) -> tuple[CameraSettings, ...]:
    return tuple(camera(f"camera-{number}") for number in range(count))


def test_processes_come_with_the_number_of_cameras_and_stay_within_the_cores() -> None:
    assert worker_count(gateway(*many(48)), cores=4) == 0
    assert worker_count(gateway(*many(49)), cores=4) == 2
    assert worker_count(gateway(*many(500)), cores=4) == 4
    assert worker_count(gateway(*many(500), cores=2), cores=4) == 2
    assert worker_count(gateway(*many(3), workers=8), cores=4) == 3
    assert worker_count(gateway(*many(8), workers=8, cores=1.5), cores=4) == 2
    assert plan(gateway(*many(500), cores=0.5), cores=4).workers == 0, "one worker is a process for nothing"


def test_cameras_are_dealt_out_and_stay_where_they_are_when_others_come_and_go() -> None:
    one, two, three, four, five = many(5)
    dealt = share_out((one, two, three, four, five), 2)
    assert dealt == [(one, three, five), (two, four)]
    changed = camera(two.id, looks_per_s=1)
    new = camera("new")
    assert deal_again(dealt, (new, changed, four, five)) == [(five, new), (changed, four)]


def test_without_a_budget_all_run_as_they_should() -> None:
    made = plan(gateway(*many(300)), cores=4)
    assert made.workers == 4
    assert not made.roster.shares
    assert not made.sentence


def test_a_small_memory_takes_workers_first_then_the_least_important() -> None:
    cameras = (*many(60), camera("belt", priority=10), camera("shaft", priority=10))
    whole = plan(gateway(*cameras), cores=4).memory_bytes
    fewer = plan(gateway(*cameras, memory_mb=(whole - WORKER_BYTES) // MB), cores=4)
    assert fewer.workers == 0
    assert not fewer.roster.shares
    less = plan(gateway(*cameras, memory_mb=(whole - 3 * WORKER_BYTES) // MB), cores=4)
    assert set(less.roster.shares.values()) == {0.5}
    assert not {"belt", "shaft"} & set(less.roster.shares)
    assert "camera-0, camera-1" in less.sentence
    assert "at 0.5" in less.sentence
    fixed = plan(gateway(*cameras, memory_mb=(whole - WORKER_BYTES) // MB), cores=4, workers=2)
    assert fixed.workers == 2, "processes that run already stay"
    assert fixed.roster.shares


def test_what_cannot_fit_is_refused_with_what_it_would_take() -> None:
    with pytest.raises(ConfigError, match=r"does not hold 50 cameras.*that takes 1135"):
        plan(gateway(*many(50), memory_mb=500), cores=4)
    assert AGENT_BYTES + 50 * 17.5 * MB == 1135 * MB  # 16 MB to decode a main stream, an eighth of 12 MB of packets
    assert plan(gateway(*many(50), memory_mb=1135), cores=4).memory_bytes <= 1135 * MB


def test_a_process_gets_its_part_of_samples_and_cores() -> None:
    cameras = many(4)
    roster = Roster(cameras, 120.0, {cameras[0].id: 0.5}, cores=2.0)
    part = roster.part(cameras[:1], 2)
    assert (part.samples_per_hour, part.cores, part.of(cameras[0].id)) == (30.0, 1.0, 0.5)
    assert roster.part((), 2).samples_per_hour == 0
    assert packet_bytes(cameras[0], 0.5) == 6_000_000
    assert packet_bytes(camera("small", memory_bytes_max=1_000_000), 0.5) == 1_000_000


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=80), st.integers(100, 4000))
def test_a_plan_keeps_its_budget_and_a_more_important_camera_never_gets_less(
    kinds: list[tuple[int, bool]], memory_mb: int
) -> None:
    cameras = tuple(
        camera(f"camera-{number}", priority, substream="rtsp://sub" if has_sub else None)
        for number, (priority, has_sub) in enumerate(kinds)
    )
    try:
        made = plan(gateway(*cameras, memory_mb=memory_mb), cores=4)
    except ConfigError:
        return
    assert made.memory_bytes <= memory_mb * MB
    shares = [made.roster.of(one.id) for one in sorted(cameras, key=lambda one: one.priority)]
    assert shares == sorted(shares)
