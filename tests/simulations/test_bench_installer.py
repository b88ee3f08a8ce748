"""Installs that are cut off for real: a few of the points and cases of `headframe bench installer`."""

import pytest

from common.manifest import decode_manifest, release_id
from simulations.bench._install_box import Fault, warm_up
from simulations.bench._install_cases import run_case
from simulations.bench._install_faults import Point, Runner, why_no_strace
from simulations.bench.installer import Ground


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    warm_up()
    return Ground.prepare(tmp_path_factory.mktemp("installs"))


@pytest.mark.parametrize(
    "point",
    [
        Point("rename", 2, "kill"),
        Point("fsync", 5, "EIO"),
        Point("write", 6, "ENOSPC"),
        Point("openat", 42, "EIO"),  # once left a whole part that was never taken
    ],
    ids=lambda point: f"{point.fault} at {point.call} {point.number}",
)
def test_after_a_file_operation_that_failed_a_whole_release_looks(ground: Ground, point: Point) -> None:
    if why := why_no_strace():
        pytest.skip(why)
    allowed = [release_id(decode_manifest(way.manifest)) for way in (ground.ways[0].old, ground.ways[0].new)]
    left = Runner(ground.on_first, ground.plan, ground.folder, allowed).run(point)
    assert left.good(allowed), left
    assert left.healed == f"committed {allowed[1]}"


@pytest.mark.parametrize(
    ("way", "fault", "runs"),
    [
        (0, Fault("probation", "hang"), "old"),
        (1, Fault("probation", "kill"), "new"),
        (2, Fault("shadow", "error"), "old"),
    ],
    ids=str,
)
def test_whatever_goes_wrong_in_a_state_a_whole_release_looks(
    ground: Ground, way: int, fault: Fault, runs: str
) -> None:
    ended = run_case(ground.ways[way], fault, ground.plan, ground.folder)
    assert ended.good, ended
    assert ended.running == runs, ended
