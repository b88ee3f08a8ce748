"""The installer as a machine: whatever is desired, seen, cut off or refused by the disk, what runs is whole."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from common.errors import EnvironmentFault
from common.ids import layer_hash
from common.manifest import decode_manifest, release_id
from edge import slots

Depot = Gateway = Any  # of conftest.py


class PowerCut(BaseException):
    """Nothing catches it."""


class Disk:
    """Stands in front of the atomic write: the n-th from now fails, or is the last thing this process does."""

    def __init__(self) -> None:
        self._write = slots.write_atomically
        self.before: dict[int, BaseException] = {}
        self._writes = 0

    def fail(self, after: int, how: BaseException) -> None:
        self.before = {self._writes + after: how}

    def write(self, path: Path, data: bytes) -> None:
        self._writes += 1
        fault = self.before.pop(self._writes, None)
        if fault:
            raise fault
        self._write(path, data)


def make_machine(
    make_depot: Callable[[Path], Depot], make_gateway: Callable[[Path, str], Gateway], disk: Disk
) -> type[RuleBasedStateMachine]:
    class Installing(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.folder = Path(tempfile.mkdtemp(prefix="installing-"))
            self.depot = make_depot(self.folder)
            self.sequence, self.desired = 1, self.depot.release(1)[1]
            self.gateway = make_gateway(self.folder / "releases", self.depot.signer.public_hex)
            self.gateway.install(self.depot, self.desired)

        def survive(self, act: Callable[[], object]) -> None:
            """Do it; a power cut on the way is followed by a start."""
            try:
                act()
            except PowerCut:
                self.start()

        def start(self) -> None:
            disk.before.clear()
            self.gateway = make_gateway(self.folder / "releases", self.depot.signer.public_hex)
            self.gateway.installer.boot()

        @rule(seed=st.integers(0, 5))
        def a_release_is_desired(self, seed: int) -> None:
            self.sequence += 1
            self.desired = self.depot.release(self.sequence, seed=seed)[1]
            self.survive(lambda: self.gateway.installer.on_desired(self.desired))

        @rule()
        def the_centre_repeats_itself(self) -> None:
            self.survive(lambda: self.gateway.installer.on_desired(self.desired))

        @rule(parts=st.integers(1, 12))
        def parts_arrive(self, parts: int) -> None:
            self.survive(lambda: self.gateway.run(self.depot, steps=parts))

        @rule(seed=st.integers(0, 5))
        def a_release_comes_to_probation(self, seed: int) -> None:
            self.a_release_is_desired(seed)
            self.survive(lambda: self.gateway.run(self.depot))
            self.gateway.stage.look(30)
            self.survive(self.gateway.installer.step)

        @rule(frames=st.integers(0, 60))
        def frames_are_looked_at(self, frames: int) -> None:
            self.gateway.stage.look(frames)
            self.survive(self.gateway.installer.step)

        @rule(what=st.sampled_from([{"deaths": 1}, {"failed": "a look failed"}, {"stuck_s": 60.0}]))
        def a_look_goes_wrong(self, what: dict[str, object]) -> None:
            self.gateway.stage.look(1, **what)
            self.survive(self.gateway.installer.step)

        @rule(seconds=st.sampled_from([1.0, 6.0, 40.0]))
        def time_passes(self, seconds: float) -> None:
            self.gateway.clock.now_s += seconds
            self.survive(self.gateway.installer.step)

        @rule()
        def the_power_is_cut(self) -> None:
            self.start()

        @rule()
        def the_agent_is_stopped_and_started(self) -> None:
            self.survive(self.gateway.installer.stop)
            self.start()

        @rule(after=st.integers(1, 4))
        def the_power_will_be_cut_at_a_write(self, after: int) -> None:
            disk.fail(after, PowerCut())

        @rule(after=st.integers(1, 4))
        def the_disk_will_refuse_a_write(self, after: int) -> None:
            disk.fail(after, EnvironmentFault("The disk is full"))

        @invariant()
        def something_runs_and_is_whole(self) -> None:
            gateway = getattr(self, "gateway", None)
            if gateway is None:
                return
            model = gateway.stage.runs
            assert model is not None, gateway.installer.outcome
            for layer in model.manifest.layers_for("north"):
                assert layer_hash(gateway.installer.layer_path(layer.hash).read_bytes()) == layer.hash

        @invariant()
        def a_slot_holds_what_runs_or_what_it_goes_back_to(self) -> None:
            gateway = getattr(self, "gateway", None)
            if gateway is None:
                return
            held = []
            for name in (slots.CURRENT, slots.PREVIOUS):
                path = self.folder / "releases" / name
                if path.exists():
                    held.append(decode_manifest(msgspec.msgpack.decode(path.read_bytes(), type=slots.Slot).manifest))
            assert gateway.runs in [release_id(manifest) for manifest in held]

        @invariant()
        def what_went_back_does_not_run(self) -> None:
            gateway = getattr(self, "gateway", None)
            if gateway is not None:
                gone = slots.Slots(self.folder / "releases").gone_back()
                assert gateway.runs not in [item.release_id for item in gone]

        def teardown(self) -> None:
            disk.before.clear()
            shutil.rmtree(getattr(self, "folder", "/nowhere"), ignore_errors=True)

    return Installing


def test_whatever_happens_a_whole_release_runs(
    make_depot: Callable[[Path], Depot],
    make_gateway: Callable[[Path, str], Gateway],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Disk()
    monkeypatch.setattr(slots, "write_atomically", disk.write)
    machine = make_machine(make_depot, make_gateway, disk)
    run_state_machine_as_test(machine, settings=settings(max_examples=30, stateful_step_count=30, deadline=None))
